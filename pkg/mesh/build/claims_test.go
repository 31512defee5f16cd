package build

import (
	"strings"
	"testing"
)

// TestClaims wants a document that cannot have an address for its hosts to have no effect at all, be it by one port of
// many, and one of which only a part has no effect to be in force but for what the report names.
func TestClaims(t *testing.T) {
	const tcp, other, tls = "{number: 3306, name: db, protocol: TCP}", "{number: 80, name: web, protocol: HTTP}", "{number: 3306, name: db, protocol: TLS}"
	static := func(address string) string { return "resolution: STATIC, endpoints: [{address: " + address + "}]" }
	at := func(name, address, ports, resolution string) string {
		return doc("name: "+name, "hosts: ["+name+".x], addresses: ["+address+"], ports: ["+ports+"], "+resolution)
	}
	for _, c := range []struct{ name, text, hosts, statuses, reason string }{
		{"the same address and port", at("a", "10.0.0.1", tcp, static("10.1.0.1")) + at("b", "10.0.0.1", tcp, static("10.1.0.2")),
			"a.x=[10.0.0.1]", "ok error", "spec.ports[0]: TCP port 3306 of b.x on 10.0.0.1 goes to a.x already"},
		{"one address and one port of several", at("a", "10.0.0.1", tcp, static("10.1.0.1")) + at("b", "10.0.0.2, 10.0.0.1", other+", "+tcp, static("10.1.0.2")),
			"a.x=[10.0.0.1]", "ok error", "spec.ports[1]: TCP port 3306 of b.x on 10.0.0.1"},
		{"the same servers", at("a", "10.0.0.1", tcp, static("10.1.0.1")) + at("b", "10.0.0.1", tcp, static("10.1.0.1")),
			"a.x=[10.0.0.1] b.x=[10.0.0.1]", "ok ok", ""},
		{"other ports of one address", at("a", "10.0.0.1", tcp, static("10.1.0.1")) + at("b", "10.0.0.1", other, static("10.1.0.2")),
			"a.x=[10.0.0.1] b.x=[10.0.0.1]", "ok ok", ""},
		{"told apart by SNI", at("a", "10.0.0.1", tls, static("10.1.0.1")) + at("b", "10.0.0.1", tls, static("10.1.0.2")),
			"a.x=[10.0.0.1] b.x=[10.0.0.1]", "ok ok", ""},
		{"the same CIDR", at("a", "10.0.0.0/24", tcp, "resolution: NONE") + at("b", "10.0.0.9/24, 10.9.0.1", tcp, static("10.1.0.2")),
			"", "ok error", "on the CIDR 10.0.0.0/24 goes to a.x already"},
		{"a more specific CIDR and an address", at("a", "10.0.0.0/8", tcp, "resolution: NONE") + at("b", "10.0.0.0/24", tcp, static("10.1.0.2")) +
			at("c", "10.0.0.1", tcp, static("10.1.0.3")), "c.x=[10.0.0.1]", "ok ok ok", ""},
		{"IPv6", at("a", "'2001:db8::1'", tcp, static("10.1.0.1")) + at("b", "'2001:0db8::1/128'", tcp, static("10.1.0.2")),
			"a.x=[2001:db8::1]", "ok error", "on 2001:db8::1 goes to a.x"},
		{"who lost takes nothing from the third", at("a", "10.0.0.1", tcp, static("10.1.0.1")) + at("b", "10.0.0.1, 10.0.0.2", tcp, static("10.1.0.2")) +
			at("c", "10.0.0.2", tcp, static("10.1.0.3")), "a.x=[10.0.0.1] c.x=[10.0.0.2]", "ok error ok", ""},
		{"within one document", doc("name: a", "hosts: [a.x, b.x], addresses: [10.0.0.1], ports: ["+tcp+"], resolution: DNS"),
			"", "error", "nothing in a connection tells the two apart"},
		{"within one document, the same servers", doc("name: a", "hosts: [a.x, b.x], addresses: [10.0.0.1], ports: ["+tcp+"], "+static("10.1.0.1")),
			"a.x=[10.0.0.1] b.x=[10.0.0.1]", "ok", ""},
		{"an address that comes later", doc("name: a", "hosts: [a.x], ports: ["+tcp+"], "+static("10.1.0.1")) + at("b", "10.0.0.1", tcp, static("10.1.0.2")) +
			doc("name: c", "hosts: [a.x], addresses: [10.0.0.1], ports: ["+other+"], "+static("10.1.0.1")),
			"a.x=[240.240.0.1 2001:2::1]vip b.x=[10.0.0.1]", "ok ok error", "spec.addresses: TCP port 3306 of a.x on 10.0.0.1 goes to b.x"},
		{"no address", doc("name: a", "hosts: ['*.a.x'], ports: ["+tcp+"], resolution: NONE") + doc("name: b", "hosts: ['*.b.x'], ports: ["+other+", "+tcp+"], "+static("10.1.0.2")),
			"", "ok warning", "spec.ports[1]: TCP port 3306 of *.b.x has no address to tell it apart, so that connections to it reach *.a.x"},
		{"a port that a second document gave", doc("name: a", "hosts: ['*.a.x'], ports: ["+tcp+"], resolution: NONE") +
			doc("name: b", "hosts: ['*.b.x'], ports: ["+other+"], "+static("10.1.0.2")) + doc("name: c", "hosts: ['*.b.x'], ports: ["+tcp+"], "+static("10.1.0.2")),
			"", "ok ok warning", "spec.ports[0]: TCP port 3306 of *.b.x"},
		{"two parts", doc("name: a", "hosts: [h.x], ports: ["+tcp+", "+other+"], resolution: DNS") +
			doc("name: b", "hosts: [h.x], ports: [{number: 3306, name: a, protocol: TLS}, {number: 80, name: b, protocol: TCP}], resolution: DNS"),
			"h.x=[240.240.0.1 2001:2::1]vip", "ok warning", "; spec.ports[1]: port 80 of h.x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, report := load(t, c.text, testOptions())
			var statuses, reasons []string
			for _, d := range report.Documents {
				statuses = append(statuses, string(d.Status))
				reasons = append(reasons, d.Field+": "+d.Reason)
			}
			if got := strings.Join(statuses, " "); got != c.statuses || !strings.Contains(strings.Join(reasons, "\n"), c.reason) {
				t.Errorf("statuses %s, want %s, with %q:\n%s", got, c.statuses, c.reason, strings.Join(reasons, "\n"))
			}
			out := build(t, r, testOptions())
			checkHosts(t, out.Hosts, c.hosts)
			for _, d := range report.Documents { // documents are named after their host
				if name := d.Name + ".x"; d.Status == "error" && strings.Contains(clusterSummary(t, out), "||"+name) && !strings.Contains(c.hosts, name) {
					t.Errorf("%s was refused, and has clusters: %s", name, clusterSummary(t, out))
				}
			}
			validate(t, out)
		})
	}
}

// TestOlderKeepsItsVIP wants no younger document to take the VIP of an older one's host and leave the host without a name.
func TestOlderKeepsItsVIP(t *testing.T) {
	const web = "ports: [{number: 80, name: web, protocol: HTTP}]"
	const vip, own = "h.x=[240.240.0.1 2001:2::1]vip", "h.x=[10.0.0.1]"
	older := doc("name: a", "hosts: [h.x], "+web+", resolution: DNS")
	for _, c := range []struct{ younger, hosts, clusters, remark string }{
		{"ports: [{number: 1, name: none}], resolution: NONE", vip, "outbound|80||h.x=h.x:80", "spec.ports[0]: port 1 of h.x has resolution NONE"},
		{"addresses: [10.0.0.0/24], ports: [{number: 1, name: cidr}], resolution: STATIC", vip, "outbound|80||h.x=h.x:80 outbound|1||h.x=", "spec.addresses: has no single address"},
		{"addresses: [0.0.0.0], ports: [{number: 1, name: any}], resolution: DNS", vip, "outbound|80||h.x=h.x:80 outbound|1||h.x=h.x:1", "spec.addresses"},
		{"addresses: [10.0.0.1], ports: [{number: 1, name: none}], resolution: NONE", own, "outbound|80||h.x=h.x:80 outbound|1||h.x=", ""},
		{"ports: [{number: 1, name: udp, protocol: UDP}], resolution: DNS", vip, "outbound|80||h.x=h.x:80", ""},
	} {
		r, report := load(t, older+doc("name: b", "hosts: [h.x], "+c.younger), testOptions())
		out := build(t, r, testOptions())
		checkHosts(t, out.Hosts, c.hosts)
		if got := clusterSummary(t, out); got != c.clusters {
			t.Errorf("%s: clusters %q, want %q", c.younger, got, c.clusters)
		}
		d := report.Documents[1]
		if said := d.Field + ": " + d.Reason; (d.Status == "warning") != (c.remark != "") || !strings.Contains(said, c.remark) {
			t.Errorf("%s: %s: %s, want %q", c.younger, d.Status, said, c.remark)
		}
		validate(t, out)
	}
}
