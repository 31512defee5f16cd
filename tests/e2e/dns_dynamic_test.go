package e2e_test

import (
	"crypto/tls"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// dynamic is a wildcard whose names are looked up as they are asked for, above it one with an address, and
// a host of its own below it.
var dynamic = documents(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dynamic}
spec:
  hosts: ["*.wiki.example"]
  location: MESH_EXTERNAL
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
`, entry("own", "own.wiki.example", 80, "HTTP", "DNS"),
	entry("above", "*.example", 8080, "TCP", "NONE")+"  addresses: [198.51.100.50]\n")

// TestDynamicNames resolves the names of a wildcard without a VIP: each is its server's, no other wildcard and no VIP
// stands for it, and Envoy routes it by Host and SNI in a mesh that lets nothing else out.
func TestDynamicNames(t *testing.T) {
	t.Parallel()
	ca := lab.NewCA(t)
	p := newPod(t, podOptions{noAgent: true, files: map[string]string{"mesh.yaml": dynamic}})
	p.c.WriteMeshConfig(t, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")
	for name, addr := range map[string]string{"en.wiki.example": "198.51.100.60", "a.b.wiki.example": "198.51.100.61", "own.wiki.example": "198.51.100.62"} {
		p.dns.Set(name, addr)
		lab.ServeHTTP(t, p.Out.Listen(t, addr+":80"), name)
		lab.ServeHTTP(t, tls.NewListener(p.Out.Listen(t, addr+":443"), ca.Server(t, name)), name)
	}
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Args: []string{"--meshConfig", lab.ConfigMount + "/mesh.yaml"}})
	p.agent.WaitReady(t)
	for name, want := range map[string]string{
		"en.wiki.example": "198.51.100.60", "a.b.wiki.example": "198.51.100.61", "plain2.example": "198.51.100.50",
	} {
		if got, err := p.Pod.Lookup(name, dns.TypeA); err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v, want %s", name, got, err, want)
		}
	}
	for _, name := range []string{"nobody.wiki.example", "en.wiki.example.default.svc.cluster.local"} {
		if m, err := p.Pod.Exchange("udp", "127.0.0.1:"+lab.DNSPort, name, dns.TypeA); err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v, %v, want NXDOMAIN of the real server", name, m, err)
		}
	}
	if got := get(t, p.dialHost(t, "own.wiki.example", 80), "own.wiki.example"); got["server"] != "own.wiki.example" {
		t.Errorf("a host below the wildcard, with a VIP of its own: %v", got)
	}
	for _, name := range []string{"en.wiki.example", "a.b.wiki.example"} {
		if got := get(t, dial(t, p.Pod, "198.51.100.60:80"), name); got["server"] != name {
			t.Errorf("HTTP to %s: %v", name, got)
		}
		if got := get(t, handshake(t, ca, dial(t, p.Pod, "198.51.100.60:443"), name), name); got["server"] != name {
			t.Errorf("TLS to %s: %v", name, got)
		}
	}
}
