package iptables

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel prints of a chain is a message from outside.
func FuzzNFTChain(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0, 'n', 'a', 't', 0, 4, 0, 4, 128, 8, 0, 6, 0, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, answer []byte) {
		c, asked, err := parseNFTChain(answer)
		if asked && (err != nil || c.family == 0) {
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
	c, asked, err := parseNFTChain(nat)
	if want := (nftChain{family: IPv4, table: "nat", iptables: true}); c != want || !asked || err != nil {
		t.Errorf("%+v, %v, %v", c, asked, err)
	}
	nat[len(nat)-1] = 0 // no rules
	if _, asked, _ := parseNFTChain(nat); asked {
		t.Error("a chain without rules counts")
	}
}
