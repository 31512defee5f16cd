package e2e_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/tests/lab"
)

// addressed is a ServiceEntry of one TCP port with an address of its own and one endpoint.
func addressed(name, host, address string, port int, endpoint string, targetPort int) string {
	return static(name, host, port, "TCP", endpoint, targetPort) + fmt.Sprintf("  addresses: [%q]\n", address)
}

// TestAddressesOverlap declares addresses that others have: the VIP of a host, which gets another, and one that an older
// document has, which keeps it. Every name leads to its own server all the time.
func TestAddressesOverlap(t *testing.T) {
	t.Parallel()
	const port = 3306
	first := static("first", "first.example", port, "TCP", "198.51.100.21", port)
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": first}})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am first"))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.22:3306"), lab.Banner("I am second"))
	vip := p.vip(t, "first.example", dns.TypeA)
	expect(t, p.dialHost(t, "first.example", port), "I am first\r\n")

	second := addressed("second", "second.example", vip.String(), port, "198.51.100.22", port)
	third := addressed("third", "third.example", vip.String(), port, "198.51.100.21", port)
	p.c.Write(t, "mesh.yaml", documents(first, second, third))
	eventually(t, "the declared address is answered", func() error { return answered(p, "second.example", vip) })
	moved := p.vip(t, "first.example", dns.TypeA)
	if moved == vip {
		t.Errorf("first.example has %s still", vip)
	}
	expect(t, p.dialHost(t, "first.example", port), "I am first\r\n")
	expect(t, p.dialHost(t, "second.example", port), "I am second\r\n")
	if err := answered(p, "third.example", vip); err == nil {
		t.Error("the host of a refused document has a name")
	}
	if err := configz(p, "third", "goes to second.example already", "nothing of this document is in force"); err != nil {
		t.Error(err)
	}

	p.c.Write(t, "mesh.yaml", documents(first, third))
	eventually(t, "the next document has the address", func() error { return answered(p, "third.example", vip) })
	expect(t, p.dialHost(t, "third.example", port), "I am first\r\n")
	p.c.Write(t, "mesh.yaml", first)
	eventually(t, "the address is nobody's", func() error {
		if answered(p, "third.example", vip) == nil {
			return fmt.Errorf("third.example is %s still", vip)
		}
		return nil
	})
	if now := p.vip(t, "first.example", dns.TypeA); now != moved {
		t.Errorf("first.example moved again, from %s to %s", moved, now)
	}
	expect(t, p.dialHost(t, "first.example", port), "I am first\r\n")
	if log := p.agent.Log.String(); strings.Contains(log, "refused a part") || !strings.Contains(log, "is declared by a document now") {
		t.Errorf("the log:\n%s", log)
	}
}

// answered returns nil when host is addr and nothing else.
func answered(p *pod, host string, addr netip.Addr) error {
	addrs, err := p.Pod.Lookup(host, dns.TypeA)
	if err == nil && len(addrs) == 1 && addrs[0] == addr {
		return nil
	}
	return fmt.Errorf("%s is %v (%v), not %s", host, addrs, err, addr)
}
