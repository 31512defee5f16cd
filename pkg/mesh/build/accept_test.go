package build

import (
	"fmt"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/pkg/mesh"
)

// TestAccepted wants what istiod takes taken, and a remark where it has no effect here or is hardly meant.
func TestAccepted(t *testing.T) {
	const port, tls = `ports: [{number: 80, name: http, protocol: HTTP}]`, `ports: [{number: 443, name: tls, protocol: TLS}]`
	for _, c := range []struct{ name, spec, clusters, hosts, field, remark string }{
		{"absolute host", `{hosts: [A.b.], ` + port + `, resolution: DNS}`,
			"outbound|80||a.b=a.b:80", "a.b=[240.240.0.1 2001:2::1]vip", "", ""},
		{"absolute wildcard", `{hosts: ["*.b."], ` + port + `, resolution: NONE}`, "outbound|80||*.b=", "", "", ""},
		{"a host twice", `{hosts: [a.b, A.b., a.b], ` + port + `, resolution: DNS}`,
			"outbound|80||a.b=a.b:80", "a.b=[240.240.0.1 2001:2::1]vip", "", ""},
		{"absolute endpoint", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{address: Db.example.}]}`,
			"outbound|80||a.b=db.example.:80", "a.b=[240.240.0.1 2001:2::1]vip", "", ""},
		{"partial wildcard by Host", `{hosts: ["*x"], ` + port + `, resolution: NONE}`, "outbound|80||*x=", "",
			"spec.hosts[0]", "partial wildcard"},
		{"partial wildcard by SNI", `{hosts: ["*.a.b", "*-eu.example.org"], ` + tls + `, resolution: NONE}`,
			"outbound|443||*-eu.example.org= outbound|443||*.a.b=", "", "spec.hosts[1]", "not by SNI"},
		{"partial wildcard with an address", `{hosts: ["*-eu.example.org"], addresses: [10.0.0.1], ` + tls + `, resolution: NONE}`,
			"outbound|443||*-eu.example.org=", "", "spec.hosts[0]", "not by DNS"},
		{"every address", `{hosts: [a.b], addresses: [0.0.0.0], ` + port + `, resolution: DNS}`, "outbound|80||a.b=a.b:80", "", "", ""},
		{"mapped CIDR", `{hosts: [a.b], addresses: ["::ffff:10.0.0.1/128"], ` + port + `, resolution: NONE}`,
			"outbound|80||a.b=", "a.b=[10.0.0.1]", "", ""},
		{"endpoint in another network", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{network: n1}, {address: 10.0.0.1, network: n2}]}`,
			"outbound|80||a.b=10.0.0.1:80", "a.b=[240.240.0.1 2001:2::1]vip", "spec.endpoints[0].address", `network "n1"`},
		{"only endpoints in other networks", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{network: n1}]}`,
			"outbound|80||a.b=", "a.b=[240.240.0.1 2001:2::1]vip", "spec.endpoints[0].address", "left out"},
		{"STATIC without endpoints", `{hosts: [a.b], ` + port + `, resolution: STATIC}`,
			"outbound|80||a.b=", "a.b=[240.240.0.1 2001:2::1]vip", "spec.endpoints", "refused"},
		{"selector with NONE", `{hosts: [a.b], ` + port + `, resolution: NONE, workloadSelector: {labels: {a: b}}}`,
			"outbound|80||a.b=", "", "spec.workloadSelector", "no effect"},
		{"selector of nobody", `{hosts: [a.b], ` + port + `, resolution: STATIC, workloadSelector: {labels: {a: b}}}`,
			"outbound|80||a.b=", "a.b=[240.240.0.1 2001:2::1]vip", "", ""},
		{"HTTP_PROXY", `{hosts: [a.b], ports: [{number: 80, name: a, protocol: http_proxy}], resolution: DNS}`,
			"outbound|80||a.b=a.b:80", "a.b=[240.240.0.1 2001:2::1]vip", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, report := load(t, entryWith(c.spec), testOptions())
			status := mesh.Status("ok")
			if c.remark != "" {
				status = "warning"
			}
			if d := report.Documents[0]; d.Status != status || d.Field != c.field || !strings.Contains(d.Reason, c.remark) {
				t.Errorf("status %s, field %q, reason %q; want %s, %q, ...%q...", d.Status, d.Field, d.Reason, status, c.field, c.remark)
			}
			out := build(t, r, testOptions())
			if got := clusterSummary(t, out); got != c.clusters {
				t.Errorf("clusters %q, want %q", got, c.clusters)
			}
			checkHosts(t, out.Hosts, c.hosts)
			validate(t, out)
		})
	}
}

// TestSelectors wants an empty selector to select all of its namespace, and DNS_ROUND_ROBIN to take one of them.
func TestSelectors(t *testing.T) {
	workloads := ""
	for _, w := range []string{"one", "two"} {
		workloads += fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s}\nspec: {address: %s.x, labels: {w: %s}}\n", w, w, w)
	}
	workloads += "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: other, namespace: other}\nspec: {address: other.x}\n"
	for _, c := range []struct{ spec, clusters, remark string }{
		{`{hosts: [a.b], ports: [{number: 1, name: a}], resolution: DNS, workloadSelector: {}}`, "outbound|1||a.b=one.x:1,two.x:1", ""},
		{`{hosts: [a.b], ports: [{number: 1, name: a}], resolution: DNS, workloadSelector: {labels: {}}}`, "outbound|1||a.b=one.x:1,two.x:1", ""},
		{`{hosts: [a.b], ports: [{number: 1, name: a}], resolution: DNS_ROUND_ROBIN, workloadSelector: {}}`, "outbound|1||a.b=one.x:1", "default/two too"},
	} {
		r, report := load(t, entryWith(c.spec)+workloads, testOptions())
		out := build(t, r, testOptions())
		if got := clusterSummary(t, out); got != c.clusters {
			t.Errorf("%s: clusters %q, want %q", c.spec, got, c.clusters)
		}
		if d := report.Documents[0]; (d.Status == "ok") != (c.remark == "") || !strings.Contains(d.Reason, c.remark) {
			t.Errorf("%s: %+v, want %q", c.spec, d, c.remark)
		}
		validate(t, out)
	}
}

// TestNetworkOfWorkload wants a WorkloadEntry that has a network and no address taken, and named by who selects it.
func TestNetworkOfWorkload(t *testing.T) {
	text := entryWith(`{hosts: [a.b], ports: [{number: 1, name: a}], resolution: STATIC, workloadSelector: {labels: {w: w}}}`) +
		"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w}\nspec: {network: n1, labels: {w: w}}\n"
	r, report := load(t, text, testOptions())
	if d := report.Documents; d[1].Status != "ok" || d[0].Status == "ok" || !strings.Contains(d[0].Reason, "default/w") {
		t.Errorf("%+v", d)
	}
	validate(t, build(t, r, testOptions()))
}

// TestTemplates wants text of a template that nobody filled in named, with its line.
func TestTemplates(t *testing.T) {
	for _, c := range []struct{ text, field, reason string }{
		{entryWith(`{hosts: [a.b], ports: [{number: {{ .Values.port }}, name: a}], resolution: DNS}`), "", "line 4 still has the template text {{ .Values.port }}; render"},
		{"{{- if .Values.on }}\n" + entryWith(`{hosts: [a.b]}`) + "{{- end }}\n", "", "line 1 still has the template text {{- if .Values.on }}"},
		{entryWith(`{hosts: ["{{ host }}"], resolution: DNS}`), "spec.hosts[0]", "line 4 still has the template text {{ host }}"},
		{entryWith(`{hosts: ["${HOST}.x"], resolution: DNS}`), "spec.hosts[0]", "${HOST}"},
		{"{% for h in hosts %}\n" + entryWith(`{hosts: [a.b]}`), "", "{% for h in hosts %}"},
		{"# {{ comment }}\n" + entryWith(`{hosts: [], resolution: DNS}`), "spec.hosts", "at least one host"},
	} {
		checkRefused(t, c.text, c.field, c.reason)
	}
}

// TestEnumerations wants every value of the API's enumerations, and what a later one may bring, named without a panic.
func TestEnumerations(t *testing.T) {
	for r := range 256 {
		name, known := networking.ServiceEntry_Resolution_name[int32(r)]
		if got := fmt.Sprint(mesh.Resolution(r)); strings.Contains(got, "PANIC") || known && got != name {
			t.Errorf("resolution %d: %q, want %q", r, got, name)
		}
		if got := fmt.Sprint(mesh.Protocol(r)); strings.Contains(got, "PANIC") || got == "" {
			t.Errorf("protocol %d: %q", r, got)
		}
		if !known {
			continue
		}
		// Each is taken or refused with a reason, and what is taken makes resources that Envoy takes.
		for _, host := range []string{"a.b", "*.b"} {
			text := entryWith(fmt.Sprintf(`{hosts: ["%s"], ports: [{number: 80, name: h, protocol: HTTP}], resolution: %s}`, host, name))
			reg, report := load(t, text+"---\n"+strings.Replace(text, "HTTP", "TLS", 1), testOptions())
			for _, d := range report.Documents {
				if strings.Contains(d.Reason, "PANIC") {
					t.Errorf("%+v", d)
				}
			}
			validate(t, build(t, reg, testOptions()))
		}
	}
}

// TestDynamicAccepted wants of resolution DYNAMIC_DNS what istiod makes of it: wildcards, by Host or SNI only.
func TestDynamicAccepted(t *testing.T) {
	const tls = `{number: 443, name: tls, protocol: TLS}`
	for _, c := range []struct{ spec, clusters, field, remark string }{
		{`{hosts: ["*.b", "*.c"], ports: [` + tls + `], resolution: DYNAMIC_DNS}`, "outbound|443||*.b= outbound|443||*.c=", "", ""},
		{`{hosts: ["*.b"], ports: [` + tls + `], resolution: DYNAMIC_DNS, endpoints: [{address: a.x}]}`, "outbound|443||*.b=", "spec.endpoints", "no effect"},
		{`{hosts: ["*.b"], ports: [` + tls + `], resolution: DYNAMIC_DNS, workloadSelector: {}}`, "outbound|443||*.b=", "spec.workloadSelector", "no effect"},
		{`{hosts: ["*.b"], ports: [` + tls + `, {number: 1, name: t}], resolution: DYNAMIC_DNS}`, "outbound|443||*.b=", "spec.ports[t]", "is TCP"},
		{`{hosts: ["*.b"], ports: [{number: 443, name: t, protocol: TLS, targetPort: 8443}], resolution: DYNAMIC_DNS}`, "outbound|443||*.b=", "spec.ports[t].targetPort", "port 443"},
	} {
		r, report := load(t, entryWith(c.spec), testOptions())
		if d := report.Documents[0]; (d.Status == "ok") != (c.remark == "") || d.Status == "error" || d.Field != c.field || !strings.Contains(d.Reason, c.remark) {
			t.Errorf("%s: %+v, want %s: %s", c.spec, d, c.field, c.remark)
		}
		out := build(t, r, testOptions())
		if got := clusterSummary(t, out); got != c.clusters || len(out.Hosts) != 0 {
			t.Errorf("%s: clusters %q, want %q; hosts %v", c.spec, got, c.clusters, out.Hosts)
		}
		validate(t, out)
	}
	for _, c := range []struct{ spec, field, reason string }{
		{`{hosts: [a.b], ports: [` + tls + `], resolution: DYNAMIC_DNS}`, "spec.hosts[0]", "say resolution DNS"},
		{`{hosts: ["*.b"], addresses: [10.0.0.0/8], ports: [` + tls + `], resolution: DYNAMIC_DNS}`, "spec.addresses[0]", "not DYNAMIC_DNS"},
	} {
		checkRefused(t, entryWith(c.spec), c.field, c.reason)
	}
}
