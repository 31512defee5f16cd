package iptables

import (
	"slices"
)

// Unseen returns the chains of nf_tables that packets meet and whose rules cannot be
// read here: made by nft, or by iptables-nft where its binaries are missing.
func (s *Snapshot) Unseen() ([]string, error) {
	chains, err := s.net.nftChains()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range chains {
		if !s.sees(c) {
			out = append(out, c.String())
		}
	}
	return out, nil
}

func (s *Snapshot) sees(c nftChain) bool {
	ours := slices.ContainsFunc(tableOrder, func(t Table) bool { return nativeTable(t) == c.table })
	return slices.ContainsFunc(s.states, func(st savedState) bool {
		switch st.Backend {
		case Legacy:
			return false
		case Native:
			return ours
		}
		return c.iptables && st.Family == c.family
	})
}

// unseenBy returns those that a packet of an IP version meets.
func (s *Snapshot) unseenBy(f Family) (out []string, err error) {
	chains, err := s.net.nftChains()
	for _, c := range chains {
		if c.family&f != 0 && !s.sees(c) {
			out = append(out, c.String())
		}
	}
	return out, err
}
