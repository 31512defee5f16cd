package nftables

import (
	"testing"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// What the kernel prints of a chain is a message from outside.
func FuzzNFTChain(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0, 'n', 'a', 't', 0, 4, 0, 4, 128, 8, 0, 6, 0, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, answer []byte) {
		c, asked, err := parseChain(answer)
		if asked && (err != nil || c.Family == 0) {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

// iptablesNAT is an answer about a chain of the table nat that iptables-nft made.
func iptablesNAT() []byte {
	return []byte{unix.AF_INET, 0, 0, 0, 8, 0, 1, 0, 'n', 'a', 't', 0, 4, 0, 4, 128, 8, 0, 6, 0, 0, 0, 0, 2}
}

func TestNFTChain(t *testing.T) {
	nat := iptablesNAT()
	c, asked, err := parseChain(nat)
	if want := (Chain{Family: rule.IPv4, Table: "nat", Iptables: true}); c != want || !asked || err != nil {
		t.Errorf("%+v, %v, %v", c, asked, err)
	}
	nat[len(nat)-1] = 0 // no rules
	if _, asked, _ := parseChain(nat); asked {
		t.Error("a chain without rules counts")
	}
}
