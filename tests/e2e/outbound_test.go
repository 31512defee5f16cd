package e2e_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

func testOutboundHTTP(t *testing.T, p *pod, _ *lab.CA) {
	for _, tc := range []struct {
		host  string
		port  int
		names []string // of the servers that may answer: the host has addresses of both families
	}{
		{"aliyun.com", 80, []string{"aliyun", "aliyun6"}},
		{"http.example", 80, []string{"http", "http6"}},
		{"http.example", 8888, []string{"odd", "odd6"}},
		{"static.example", 81, []string{"static"}},
	} {
		got := get(t, p.dialHost(t, tc.host, tc.port), tc.host)
		if got["host"] != tc.host || got["uri"] != "/path?q=1" || !oneOf(got["server"], tc.names) {
			t.Errorf("%s:%d: the server saw %v, want one of %v", tc.host, tc.port, got, tc.names)
		}
	}
	addr := netip.AddrPortFrom(p.vip(t, "http.example", dns.TypeA), 80).String()
	keepAlive(t, dial(t, p.Pod, addr))
	http2(t, p.Pod, addr, "HTTP/1.1") // a port declared as HTTP is HTTP/1.1 to its servers, as with Istio
	h2 := p.vip(t, "h2.example", dns.TypeA)
	http2(t, p.Pod, netip.AddrPortFrom(h2, 82).String(), "HTTP/2.0")
	http2(t, p.Pod, netip.AddrPortFrom(h2, 83).String(), "HTTP/2.0")
	http10(t, p.dialHost(t, "http.example", 80))
	upgrade(t, p.dialHost(t, "raw.example", 80))
	headerCase(t, p.dialHost(t, "raw.example", 80))
	over6 := netip.AddrPortFrom(p.vip(t, "http.example", dns.TypeAAAA), 80).String()
	if got := get(t, dial(t, p.Pod, over6), "http.example"); !oneOf(got["server"], []string{"http", "http6"}) {
		t.Errorf("by the IPv6 VIP: %v", got)
	}
}

func oneOf(s string, list []string) bool {
	for _, l := range list {
		if s == l {
			return true
		}
	}
	return false
}

func testOutboundTLS(t *testing.T, p *pod, ca *lab.CA) {
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		addr := netip.AddrPortFrom(p.vip(t, "aliyun.com", qtype), 443).String()
		got := get(t, handshake(t, ca, dial(t, p.Pod, addr), "aliyun.com"), "aliyun.com")
		if got["server"] != "aliyun-tls" {
			t.Errorf("TLS to %s: %v", addr, got)
		}
	}
	// A wildcard host of resolution NONE goes where the application wanted to.
	got := get(t, handshake(t, ca, dial(t, p.Pod, "198.51.100.41:443"), "a.b.wild.example"), "a.b.wild.example")
	if got["server"] != "wild" {
		t.Errorf("TLS to a wildcard host: %v", got)
	}
}

// testOutboundByName: a wildcard of resolution DYNAMIC_DNS has no VIP, and Envoy looks up what Host and SNI say, whatever
// address the application had dialled.
func testOutboundByName(t *testing.T, p *pod, ca *lab.CA) {
	const host, elsewhere = "a.dyn.example", "198.51.100.40"
	if addrs, err := p.Pod.Lookup(host, dns.TypeA); err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("198.51.100.12") {
		t.Errorf("%s is %v, %v", host, addrs, err)
	}
	if got := get(t, dial(t, p.Pod, elsewhere+":8787"), host+":8787"); got["server"] != "dynamic" || got["host"] != host+":8787" {
		t.Errorf("by Host: %v", got)
	}
	if got := get(t, handshake(t, ca, dial(t, p.Pod, elsewhere+":8786"), host), host); got["server"] != "dynamic-tls" {
		t.Errorf("by SNI: %v", got)
	}
}

func testOutboundTCP(t *testing.T, p *pod, _ *lab.CA) {
	// Two hosts on one port reach two servers: what VIPs are for.
	for host, banner := range map[string]string{"one.example": "I am one\r\n", "two.example": "I am two\r\n", "six.example": "I am six\r\n"} {
		c := p.dialHost(t, host, 3306)
		expect(t, c, banner)
		send(t, c, "SELECT 1\n")
		expect(t, c, "SELECT 1\n")
	}
	over6 := netip.AddrPortFrom(p.vip(t, "two.example", dns.TypeAAAA), 3306).String()
	expect(t, dial(t, p.Pod, over6), "I am two\r\n")

	c := p.dialHost(t, "echo.example", 7)
	send(t, c, "to the target port")
	expect(t, c, "to the target port")

	halfClose(t, p.dialHost(t, "count.example", 5000))

	// Ports that a VIP's ServiceEntry does not declare are refused, even those of other hosts.
	for _, port := range []uint16{80, 443, 3307, 9999} {
		mustRefuse(t, p.Pod, netip.AddrPortFrom(p.vip(t, "one.example", dns.TypeA), port).String())
		mustRefuse(t, p.Pod, netip.AddrPortFrom(p.vip(t, "one.example", dns.TypeAAAA), port).String())
	}
	mustRefuse(t, p.Pod, "240.240.255.250:80") // nobody's VIP
}

func testPassthrough(t *testing.T, p *pod, _ *lab.CA) {
	for addr, name := range map[string]string{"198.51.100.40:80": "plain", "[2001:db8::40]:80": "plain6"} {
		c := dial(t, p.Pod, addr)
		if got := get(t, c, "plain.example"); got["server"] != name || got["host"] != "plain.example" {
			t.Errorf("unknown destination %s: %v", addr, got)
		}
	}
	expect(t, dial(t, p.Pod, "198.51.100.40:25"), "220 plain ESMTP\r\n")
	echo := dial(t, p.Pod, "198.51.100.40:9000")
	send(t, echo, "\xff\x00")
	expect(t, echo, "\xff\x00")
	halfClose(t, dial(t, p.Pod, "198.51.100.40:9002"))
	upgrade(t, dial(t, p.Pod, "198.51.100.40:8081"))
	headerCase(t, dial(t, p.Pod, "198.51.100.40:8081"))
	http10(t, dial(t, p.Pod, "198.51.100.40:80"))
	http2(t, p.Pod, "198.51.100.40:80", "HTTP/2.0")

	// An address that a ServiceEntry lists is answered by itself, and connected to as it is.
	addrs, err := p.Pod.Lookup("listed.example", dns.TypeA)
	if err != nil || len(addrs) != 1 || addrs[0].String() != "198.51.100.50" {
		t.Errorf("a host with an address resolves to %v (%v)", addrs, err)
	}
	seen, err := io.ReadAll(dial(t, p.Pod, "198.51.100.50:9100"))
	if host, _, _ := net.SplitHostPort(strings.TrimSpace(string(seen))); err != nil || host != lab.PodIP {
		t.Errorf("the server outside sees %q (%v), want the pod's address", seen, err)
	}
	if err := refused(t.Context(), p.Pod, "198.51.100.40:81", ""); err != nil {
		t.Errorf("a closed port outside: %v", err)
	}
}

// testNames is about the answers of the agent's DNS.
func testNames(t *testing.T, p *pod, _ *lab.CA) {
	server := net.JoinHostPort(lab.NameServer, "53") // captured
	for _, network := range []string{"udp", "tcp"} {
		m, err := p.Pod.Exchange(network, server, "AliYun.Com", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if !m.Authoritative || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 || m.Answer[0].Header().Name != "AliYun.Com." || m.Answer[0].Header().Ttl != 30 {
			t.Errorf("answer for a mesh name over %s: %v", network, m)
		}
		m, err = p.Pod.Exchange(network, server, "plain.example", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "198.51.100.40" {
			t.Errorf("answer for a forwarded name over %s: %v", network, m)
		}
		m, err = p.Pod.Exchange(network, server, "nobody.example", dns.TypeA)
		if err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("answer for a name that no one knows over %s: %v, %v", network, m, err)
		}
	}
	vip := p.vip(t, "aliyun.com", dns.TypeA)
	addrs, err := p.Pod.Lookup("aliyun.com.default.svc.cluster.local", dns.TypeA)
	if err != nil || len(addrs) != 1 || addrs[0] != vip {
		t.Errorf("with the search domain of the pod's namespace: %v, %v, want %v", addrs, err, vip)
	}
	for _, domain := range []string{"svc.cluster.local", "cluster.local", "corp.example"} {
		m, err := p.Pod.Exchange("udp", server, "aliyun.com."+domain, dns.TypeA)
		if err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("with domain %s, of others: %v, %v, want the real server's NXDOMAIN", domain, m, err)
		}
	}
	m, err := p.Pod.Exchange("udp", server, "listed.example", dns.TypeAAAA)
	if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
		t.Errorf("the family that a host has no address of: %v, %v, want NODATA", m, err)
	}
	// Neither the application's lookups nor Envoy's own, nor the agent's, may go round in circles:
	// a name of the mesh is asked for by Envoy alone, some times a minute.
	if n := p.dns.Queries("http.example", "A"); n < 1 || n > 100 {
		t.Errorf("the real server was asked %d times for a host of the mesh", n)
	}
	if n := p.dns.Queries("nobody.example", "A"); n < 1 || n > 2 {
		t.Errorf("the real server was asked %d times for a name that was looked up twice", n)
	}
}
