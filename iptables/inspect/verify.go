package inspect

import (
	"fmt"
	"slices"
	"strings"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// Verify returns what is not as c wants it: rules of every back end, ::6, routes, and rules
// of others that stand in the way. What has the same effect is no difference, so Istio's
// own rules can be right, too. An error is that c cannot be had here at all.
func (s *Snapshot) Verify(c iptables.Config) ([]Difference, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	backend, err := s.backendFor(c)
	if err != nil {
		return nil, fmt.Errorf("verify capture rules: %w", err)
	}
	rules := iptables.Rules(c)
	var out []Difference
	for i, st := range s.states {
		want := viewOf(st.Backend, st.Family, nil)
		if st.Backend == backend {
			want = viewOf(st.Backend, st.Family, saved.Print(rules, st.Family))
		}
		have := viewOf(st.Backend, st.Family, st.Ours)
		switch {
		case st.Backend != backend && !have.empty() && s.captures(backend, st.Family):
			out = append(out, Difference{Kind: kindTwice, Backend: st.Backend, Family: st.Family.String()})
		case have.empty() && !want.empty():
			out = append(out, Difference{Kind: kindMissing, Backend: st.Backend, Family: st.Family.String()})
		default:
			out = append(out, compare(have, want)...)
		}
		if s.captures(backend, st.Family) {
			out = append(out, takenAway(s.views[i], st.Backend == backend)...)
		}
	}
	routing, err := s.verifyRouting(c)
	if err != nil {
		return nil, fmt.Errorf("verify capture rules: %w", err)
	}
	out = append(out, routing...)
	for i := range out {
		out[i].Text = out[i].words()
	}
	return out, nil
}

// backendFor is the back end where c's rules are or would go.
func (s *Snapshot) backendFor(c iptables.Config) (rule.Backend, error) {
	held := make([]rule.Holding, len(s.states))
	for i, st := range s.states {
		held[i] = st.Holding
	}
	candidates, err := iptables.Choose(c, held)
	if err != nil {
		return "", err
	}
	return candidates[0], nil
}

// captures reports whether a back end has rules of ours for an IP version.
func (s *Snapshot) captures(b rule.Backend, f rule.Family) bool {
	return slices.ContainsFunc(s.states, func(st saved.State) bool {
		return st.Backend == b && st.Family == f && len(st.Ours) > 0
	})
}

// takenAway returns the rules of others that may end a packet's way before ours capture
// it. A back end without ours may come first; what it lets pass, ours get.
func takenAway(v view, own bool) (out []Difference) {
	for _, at := range []struct {
		Table rule.Table
		chain string
	}{{rule.Mangle, rule.PreRouting}, {rule.NAT, rule.PreRouting}, {rule.NAT, rule.Output}} {
		chain := v.chain(at.Table, at.chain)
		if chain == nil {
			continue
		}
		last := -1 // of our rules
		for i, r := range chain.rules {
			if rule.IsOurChain(r.Jump) {
				last = i
			}
		}
		if !own {
			last = len(chain.rules)
		}
		for _, r := range chain.rules[:max(last, 0)] {
			if r.IsOurs() || !r.mayBeCaptured() {
				continue
			}
			if end := v.endOf(r, map[string]bool{}); end != nil && (own || end.Jump != "ACCEPT" && end.Jump != "RETURN") {
				d := Difference{Kind: kindTakenAway, Backend: v.backend, Family: v.family.String(), Table: at.Table, Chain: at.chain, Rule: r.plain()}
				if end != r {
					d.Is = end.Chain + " " + end.plain()
				}
				out = append(out, d)
			}
		}
	}
	return out
}

// mayBeCaptured reports whether a rule is about packets that capture is about.
func (h *heldRule) mayBeCaptured() bool {
	c, ok := h.find("-p")
	return !ok || c.not || protocolIs(rule.TCP, c.value) == yes || protocolIs(rule.UDP, c.value) == yes
}

// endOf returns the rule, r or one in a chain that it leads to, which ends a packet's way
// through the table, or nil. seen are the chains that have been looked at.
func (v view) endOf(r *heldRule, seen map[string]bool) *heldRule {
	switch r.Jump {
	case "ACCEPT", "DROP", "REJECT", "REDIRECT", "DNAT", "NETMAP", "QUEUE", "NFQUEUE", "TPROXY":
		return r
	case "RETURN":
		if len(seen) == 0 { // of a built-in chain
			return r
		}
		return nil
	}
	chain := v.chain(r.table, r.Jump)
	if chain == nil || seen[r.Jump] {
		return nil
	}
	seen[r.Jump] = true
	for _, next := range chain.rules {
		if end := v.endOf(next, seen); end != nil {
			return end
		}
	}
	return nil
}

// verifyRouting looks at what is not in any table of netfilter.
func (s *Snapshot) verifyRouting(c iptables.Config) ([]Difference, error) {
	var out []Difference
	address, err := s.net.passthrough()
	if err != nil {
		return nil, err
	}
	if address != c.IPv6 {
		out = append(out, routingDifference(kindAddress, rule.IPv6, address, rule.PassthroughV6.Addr().String()))
	}
	for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
		tables, err := s.net.tables(f, c.Mark)
		if err != nil {
			return nil, err
		}
		wanted := c.Routed()&f != 0
		rule := fmt.Sprintf("ip rule fwmark %#x lookup %d", c.Mark, c.RouteTable)
		if there := slices.Contains(tables, c.RouteTable); there != wanted {
			out = append(out, routingDifference(kindRouting, f, there, rule))
		}
		if !wanted {
			continue
		}
		all, err := s.net.allLocal(f, c.RouteTable)
		if err != nil {
			return nil, err
		}
		if !all {
			out = append(out, routingDifference(kindRouting, f, false, fmt.Sprintf("ip route local default dev lo table %d", c.RouteTable)))
		}
	}
	return out, nil
}

func routingDifference(k Kind, f rule.Family, there bool, rule string) Difference {
	d := Difference{Kind: k, Family: f.String(), Is: string(kindMissing), Rule: rule}
	if there {
		d.Is = string(kindSurplus)
	}
	return d
}

// words says what is wrong, and what it means.
func (d Difference) words() string {
	where := strings.Join([]string{d.Family, string(d.Table), d.Chain}, " ")
	why := ""
	if d.Why != "" {
		why = " (" + d.Why + ")"
	}
	if d.Rules > 0 {
		d.Rule = fmt.Sprintf("the chain with its rules, of which there are %d", d.Rules)
	}
	switch d.Kind {
	case kindMissing:
		if d.Rule == "" {
			return fmt.Sprintf("%s: nothing is captured: %s has no rules of ours", d.Family, d.Backend.Title())
		}
		return fmt.Sprintf("%s: missing: %s%s", where, d.Rule, why)
	case kindSurplus:
		return fmt.Sprintf("%s: not wanted: %s%s", where, d.Rule, why)
	case kindChanged:
		return fmt.Sprintf("%s: should be %s, but is %s%s", where, d.Rule, d.Is, why)
	case kindDoubled:
		return fmt.Sprintf("%s: there more than once: %s%s", where, d.Rule, why)
	case kindOutOfOrder:
		return fmt.Sprintf("%s: out of order: %s comes %s%s", where, d.Rule, d.Is, why)
	case kindTakenAway:
		if d.Is != "" {
			d.Rule += " (" + d.Is + ")"
		}
		return fmt.Sprintf("%s: a rule that is not ours takes packets before ours can: %s", where, d.Rule)
	case kindTwice:
		return fmt.Sprintf("%s: captured twice: %s has capture rules, too", d.Family, d.Backend.Title())
	case kindAddress:
		return fmt.Sprintf("%s: address %s of lo is %s: Envoy reaches the application from it", d.Family, d.Rule, notWanted(d.Is))
	case kindRouting:
		return fmt.Sprintf("%s: %s is %s: TPROXY's answers find back to Envoy by it", d.Family, d.Rule, notWanted(d.Is))
	}
	return d.Rule
}

func notWanted(is string) string {
	if is == string(kindSurplus) {
		return "there and not wanted"
	}
	return is
}
