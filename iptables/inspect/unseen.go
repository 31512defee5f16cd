package inspect

import (
	"slices"

	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// Unseen returns the chains of nf_tables that packets meet and whose rules cannot be
// read here: made by nft, or by iptables-nft where its binaries are missing.
func (s *Snapshot) Unseen() ([]string, error) { return s.unseenBy(rule.Both) }

// unseenBy returns those that a packet of some IP version meets.
func (s *Snapshot) unseenBy(f rule.Family) (out []string, err error) {
	chains, err := s.net.nftChains()
	for _, c := range chains {
		if c.Family&f != 0 && !s.sees(c) {
			out = append(out, c.String())
		}
	}
	return out, err
}

func (s *Snapshot) sees(c nftables.Chain) bool {
	ours := slices.ContainsFunc(rule.Tables, func(t rule.Table) bool { return nftables.TableName(t) == c.Table })
	return slices.ContainsFunc(s.states, func(st saved.State) bool {
		switch st.Backend {
		case rule.Legacy:
			return false
		case rule.Native:
			return ours
		}
		return c.Iptables && st.Family == c.Family
	})
}
