package build

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/mesh"
)

// doc is a ServiceEntry with metadata and spec in flow style.
func doc(metadata, spec string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {%s}\nspec: {%s}\n---\n", metadata, spec)
}

// TestConflicts declares hosts and ports twice. The older document wins what the two cannot both have; the report names
// the other one.
func TestConflicts(t *testing.T) {
	const tls, tcp = "{number: 443, name: tls, protocol: TLS}", "{number: 443, name: tcp, protocol: TCP}"
	for _, c := range []struct {
		name, text string
		clusters   string // in force, with their endpoints
		loser      string // the document that is not wholly in force
		reason     string
	}{
		{name: "same host, other ports: united",
			text: doc("name: a", "hosts: [h.x], ports: ["+tls+"], resolution: DNS") +
				doc("name: b", "hosts: [h.x], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS"),
			clusters: "outbound|443||h.x=h.x:443 outbound|80||h.x=h.x:80"},
		{name: "same host, same port: endpoints united",
			text: doc("name: a", "hosts: [h.x], ports: ["+tls+"], resolution: STATIC, endpoints: [{address: 10.0.0.1}]") +
				doc("name: b", "hosts: [h.x], ports: ["+tls+"], resolution: STATIC, endpoints: [{address: 10.0.0.2}, {address: 10.0.0.1}]"),
			clusters: "outbound|443||h.x=10.0.0.1:443,10.0.0.2:443"},
		{name: "port with two protocols",
			text: doc("name: a", "hosts: [h.x], ports: ["+tls+"], resolution: DNS") +
				doc("name: b", "hosts: [h.x], ports: ["+tcp+", {number: 80, name: http, protocol: HTTP}], resolution: DNS"),
			clusters: "outbound|443||h.x=h.x:443 outbound|80||h.x=h.x:80", loser: "default/b", reason: "spec.ports[0]: port 443 of h.x is TLS"},
		{name: "port with two resolutions, the older is later in the file",
			text: doc("name: a, creationTimestamp: '2026-01-02T00:00:00Z'", "hosts: [h.x], ports: ["+tls+"], resolution: NONE") +
				doc("name: b, creationTimestamp: '2026-01-01T00:00:00Z'", "hosts: [h.x], ports: ["+tls+"], resolution: DNS"),
			clusters: "outbound|443||h.x=h.x:443", loser: "default/a", reason: "resolution DNS in ServiceEntry default/b"},
		{name: "another namespace",
			text: doc("name: a, namespace: n1", "hosts: [h.x], ports: ["+tls+"], resolution: DNS") +
				doc("name: a, namespace: n2", "hosts: [h.x], ports: ["+tls+"], resolution: DNS, endpoints: [{address: other.x}]"),
			clusters: "outbound|443||h.x=h.x:443", loser: "n2/a", reason: "another namespace"},
		{name: "round robin with two endpoints",
			text: doc("name: a", "hosts: [h.x], ports: ["+tls+"], resolution: DNS_ROUND_ROBIN") +
				doc("name: b", "hosts: [h.x], ports: ["+tls+"], resolution: DNS_ROUND_ROBIN, endpoints: [{address: other.x}]"),
			clusters: "outbound|443||h.x=h.x:443", loser: "default/b", reason: "DNS_ROUND_ROBIN takes one only"},
		{name: "two TCP hosts on one address",
			text: doc("name: a", "hosts: [a.x], addresses: [10.0.0.1], ports: ["+tcp+"], resolution: DNS") +
				doc("name: b", "hosts: [b.x], addresses: [10.0.0.1], ports: ["+tcp+"], resolution: DNS"),
			clusters: "outbound|443||a.x=a.x:443", loser: "default/b", reason: "nothing of this document is in force"},
		{name: "two TCP wildcards of resolution NONE are one and the same",
			text:     doc("name: a", "hosts: ['*.a.x', '*.b.x'], ports: ["+tcp+"], resolution: NONE"),
			clusters: "outbound|443||*.a.x= outbound|443||*.b.x="},
		{name: "a port of the agent's without an address",
			text:     doc("name: a", "hosts: ['*.a.x'], ports: [{number: 15001, name: p, protocol: TCP}], resolution: NONE"),
			clusters: "outbound|15001||*.a.x=", loser: "default/a", reason: "15001 belongs to the agent"},
		{name: "selector that selects a name",
			text: doc("name: a", "hosts: [a.x], ports: ["+tcp+"], resolution: STATIC, workloadSelector: {labels: {a: b}}") +
				"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w}\nspec: {address: vm.x, labels: {a: b}}\n",
			clusters: "outbound|443||a.x=", loser: "default/a", reason: "needs resolution DNS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, report := load(t, c.text, testOptions())
			out := build(t, r, testOptions())
			if got := clusterSummary(t, out); got != c.clusters {
				t.Errorf("clusters %q, want %q", got, c.clusters)
			}
			for _, d := range report.Documents {
				name := d.Namespace + "/" + d.Name
				if bad := d.Status != "ok"; bad != (name == c.loser) {
					t.Errorf("%s is %s: %s", name, d.Status, d.Reason)
				} else if bad && !strings.Contains(d.Field+": "+d.Reason, c.reason) {
					t.Errorf("%s: %s: %s, want %q", name, d.Field, d.Reason, c.reason)
				}
			}
			validate(t, out)
		})
	}
}

// clusterSummary lists the services' clusters with their endpoints.
func clusterSummary(t *testing.T, out *Output) string {
	var all []string
	for _, c := range parseClusters(t, out.Resources[ClusterType]) {
		if !strings.HasPrefix(c.Name, "outbound|") {
			continue
		}
		var eps []string
		for _, l := range c.LoadAssignment.GetEndpoints() {
			for _, e := range l.LbEndpoints {
				a := e.GetEndpoint().Address.GetSocketAddress()
				eps = append(eps, fmt.Sprintf("%s:%d", a.GetAddress(), a.GetPortValue()))
			}
		}
		all = append(all, c.Name+"="+strings.Join(eps, ","))
	}
	return strings.Join(all, " ")
}

func TestExportTo(t *testing.T) {
	for _, c := range []struct {
		namespace, exportTo string
		visible             bool
	}{
		{"default", "", true}, {"other", "", true}, {"other", "'*'", true}, {"other", ".", false}, {"default", ".", true},
		{"other", "default", true}, {"other", "other", false}, {"default", "'~'", false}, {"other", "third, default", true},
	} {
		r, _ := load(t, doc("name: a, namespace: "+c.namespace, "hosts: [a.x], resolution: NONE, exportTo: ["+c.exportTo+"]"), testOptions())
		if got := len(r.Services()) == 1; got != c.visible {
			t.Errorf("in %s, exportTo %q: visible %v", c.namespace, c.exportTo, got)
		}
	}
}

func TestHosts(t *testing.T) {
	const ports = "ports: [{number: 80, name: p, protocol: TCP}]"
	text := doc("name: dns", "hosts: [DNS.x], resolution: DNS, "+ports) +
		doc("name: static", "hosts: [static.x], resolution: STATIC, endpoints: [{address: 10.0.0.1}], "+ports) +
		doc("name: none", "hosts: [none.x], resolution: NONE, "+ports) +
		doc("name: wild", "hosts: ['*.wild.x'], resolution: STATIC, endpoints: [{address: 10.0.0.1}], "+ports) +
		doc("name: addressed", "hosts: [own.x, '*.own.x'], addresses: [10.1.0.1, 10.1.0.1/32, '2001:db8::1', 10.2.0.0/16], resolution: NONE, "+ports) +
		doc("name: cidr", "hosts: [cidr.x], addresses: [10.3.0.0/16], resolution: NONE, "+ports) +
		doc("name: portless", "hosts: [portless.x], resolution: DNS") +
		doc("name: udp", "hosts: [udp.x], resolution: DNS, ports: [{number: 53, name: p, protocol: UDP}]") +
		doc("name: pinned", "hosts: [pinned.x], addresses: [240.240.0.1], resolution: DNS, "+ports)
	o := testOptions()
	r, _ := load(t, text, o)
	if got, want := r.AutoHosts(), []string{"dns.x", "static.x"}; !slices.Equal(got, want) {
		t.Errorf("AutoHosts %v, want %v", got, want)
	}
	// 240.240.0.1 is dns.x's VIP and pinned.x's address: the document wins, and dns.x keeps its IPv6 VIP only.
	vips := giveVIPs(r.AutoHosts())
	checkHosts(t, r.Hosts(vips), "*.own.x=[10.1.0.1 2001:db8::1] dns.x=[2001:2::1]vip own.x=[10.1.0.1 2001:db8::1] pinned.x=[240.240.0.1] static.x=[240.240.0.2 2001:2::2]vip")
	out, err := New(o).Build(r, vips, nil)
	if err != nil {
		t.Fatal(err)
	}
	validate(t, out)

	// Without IPv6 there is no VIP of it; what is declared is answered as it is.
	o.IPv6 = false
	r, _ = load(t, text, o)
	checkHosts(t, r.Hosts(vips), "*.own.x=[10.1.0.1 2001:db8::1] own.x=[10.1.0.1 2001:db8::1] pinned.x=[240.240.0.1] static.x=[240.240.0.2]vip")
	o.AutoAllocate = false
	r, _ = load(t, text, o)
	if got := r.AutoHosts(); len(got) != 0 {
		t.Errorf("AutoHosts %v without AutoAllocate", got)
	}
	checkHosts(t, r.Hosts(nil), "*.own.x=[10.1.0.1 2001:db8::1] own.x=[10.1.0.1 2001:db8::1] pinned.x=[240.240.0.1]")
}

// TestHostsBelowAWildcard wants each host to have its own name, whatever a wildcard above it has: with its addresses of
// whichever family, or without any.
func TestHostsBelowAWildcard(t *testing.T) {
	const ports = "ports: [{number: 80, name: p, protocol: TCP}]"
	text := doc("name: wild", "hosts: ['*.example.com'], addresses: [10.1.0.1], resolution: NONE, "+ports) +
		doc("name: six", "hosts: [six.example.com], addresses: ['2001:db8::1'], resolution: STATIC, endpoints: [{address: 10.0.0.1}], "+ports) +
		doc("name: none", "hosts: [none.example.com, 'none.elsewhere.com'], resolution: NONE, "+ports) +
		doc("name: cidr", "hosts: [a.cidr.example.com], addresses: [10.3.0.0/16], resolution: NONE, "+ports) +
		doc("name: subdomain", "hosts: ['*.sub.example.com', '*.other.com', example.com], resolution: NONE, "+ports) +
		doc("name: dynamic", "hosts: ['*.dynamic.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 443, name: p, protocol: TLS}]") +
		doc("name: vip", "hosts: [vip.example.com], resolution: DNS, "+ports)
	o := testOptions()
	o.IPv6 = false
	r, _ := load(t, text, o)
	const rest = "*.dynamic.example.com=[] *.example.com=[10.1.0.1] *.sub.example.com=[] a.cidr.example.com=[] none.example.com=[] six.example.com=[2001:db8::1] "
	checkHosts(t, r.Hosts(giveVIPs(r.AutoHosts())), rest+"vip.example.com=[240.240.0.1]vip")
	checkHosts(t, r.Hosts(nil), rest+"vip.example.com=[]")
}

func checkHosts(t *testing.T, hosts []table.Host, want string) {
	t.Helper()
	var all []string
	for _, h := range hosts {
		s := fmt.Sprintf("%s=%v", h.Name, h.Addrs)
		if h.VIP {
			s += "vip"
		}
		all = append(all, s)
	}
	if got := strings.Join(all, " "); got != want {
		t.Errorf("hosts %s\nwant  %s", got, want)
	}
}

// TestNoVIPLeft wants a host whose VIP could not be had to take nothing of anybody else's: not the whole port.
func TestNoVIPLeft(t *testing.T) {
	r, _ := load(t, se("a", "a.x", 3306), testOptions())
	out, err := New(testOptions()).Build(r, map[string][]netip.Addr{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Hosts) != 0 || len(out.Resources[ListenerType]) != 2 {
		t.Errorf("hosts %v, %d listeners", out.Hosts, len(out.Resources[ListenerType]))
	}
}

// TestWeights wants the sum of weights within 32 bits, or Envoy refuses the cluster.
func TestWeights(t *testing.T) {
	text := doc("name: a", "hosts: [a.x], ports: [{number: 1, name: p, protocol: TCP}], resolution: STATIC, endpoints: "+
		"[{address: 10.0.0.1, weight: 4294967295}, {address: 10.0.0.2, weight: 4294967295}, {address: 10.0.0.3, weight: 1}]")
	r, _ := load(t, text, testOptions())
	validate(t, build(t, r, testOptions()))
}

// TestAccessLogFormat wants the user's format in Envoy's hands, and a wrong one refused.
func TestAccessLogFormat(t *testing.T) {
	r, _ := load(t, se("a", "a.x", 1), testOptions())
	for _, c := range []struct {
		log  mesh.AccessLog
		want string
	}{
		{mesh.AccessLog{Path: "/dev/null", Format: "%PROTOCOL%\n"}, "%PROTOCOL%\\n"},
		{mesh.AccessLog{Path: "/dev/stdout"}, "StdoutAccessLog"},
		{mesh.AccessLog{Path: "/dev/stderr", JSON: true}, "StderrAccessLog"},
		{mesh.AccessLog{Path: "/dev/null", Format: `{"p": "%PROTOCOL%"}`, JSON: true}, `"p": "%PROTOCOL%"`},
	} {
		o := testOptions()
		o.AccessLog = c.log
		out := build(t, r, o)
		for _, l := range parseListeners(t, out.Resources[ListenerType]) {
			if text := readable(t, l); !strings.Contains(text, c.want) {
				t.Errorf("%s: no %q", l.Name, c.want)
			}
		}
		validate(t, out)
	}
	o := testOptions()
	o.AccessLog = mesh.AccessLog{Path: "/dev/null", Format: "%PROTOCOL%", JSON: true}
	if _, err := New(o).Build(r, nil, nil); err == nil || !strings.Contains(err.Error(), "accessLogFormat") {
		t.Errorf("error %v", err)
	}
}

// TestDeclared wants the addresses that no VIP may be: all that documents give within the ranges, with or without a
// listener, but for CIDRs that would leave no VIP.
func TestDeclared(t *testing.T) {
	const ports = "ports: [{number: 80, name: p, protocol: TCP}], resolution: NONE"
	text := doc("name: a", "hosts: [a.x], addresses: [240.240.1.1, '2001:2::7', 10.0.0.1, 240.240.1.1/32], "+ports) +
		doc("name: b", "hosts: [b.x], addresses: [240.240.2.0/24, 240.240.0.0/16, 0.0.0.0/0, '::/0'], "+ports) +
		doc("name: c", "hosts: [c.x], addresses: [240.240.0.9], resolution: NONE") +
		doc("name: d", "hosts: [d.x], addresses: [0.0.0.0], "+ports) + doc("name: e", "hosts: [e.x], resolution: DNS, ports: [{number: 1, name: p}]")
	r, _ := load(t, text, testOptions())
	if got := fmt.Sprint(r.Declared()); got != "[240.240.0.9/32 240.240.1.1/32 240.240.2.0/24 2001:2::7/128]" {
		t.Error(got)
	}
	validate(t, build(t, r, testOptions()))
	if got := new(mesh.Registry).Declared(); len(got) != 0 {
		t.Error(got)
	}
}
