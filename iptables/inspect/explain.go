package inspect

import (
	"fmt"
	"slices"
	"strings"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// explain puts into words why a packet lands where it does.
func (s *Snapshot) explain(f Flow, o *Outcome) {
	if o.Rule != nil {
		o.Purpose = s.purpose(rule.FamilyOf(f.Dst.Addr()), o.leads())
		switch {
		case o.Purpose != "":
			o.Reason = o.Purpose
		case o.Rule.rule != nil && !o.Rule.rule.IsOurs():
			o.Reason = "a rule that is neither ours nor Istio's"
		}
		return
	}
	switch {
	case o.Place == placeUnreachable:
		o.Reason = "the kernel finds no route before it asks any rule"
	case o.Place == placeUndecided:
	case !f.Local && f.Proto == rule.TCP:
		o.Reason, o.Purpose = s.whyNotInbound(f)
	default:
		o.Reason, o.Purpose = s.whyNotOutbound(f, o)
	}
}

// leads returns the rule that decided, or the one that led to a chain which only says
// where to, such as ISTIO_REDIRECT.
func (o *Outcome) leads() *heldRule {
	var before *heldRule
	for _, step := range o.Steps {
		if !step.Matched {
			continue
		}
		if step.rule == o.Rule.rule && before != nil && before.Jump == step.Chain && rule.IsOurChain(step.Chain) && o.captured() {
			return before
		}
		before = step.rule
	}
	return o.Rule.rule
}

// captured reports whether the packet ends at Envoy or at the agent's DNS.
func (l Landing) captured() bool {
	return l.Place == placeEnvoyOutbound || l.Place == placeEnvoyInbound || l.Place == placeAgentDNS
}

// purpose is what the comment of a rule says or, of Istio's, which have none, what
// that of ours for the same would say.
func (s *Snapshot) purpose(f rule.Family, r *heldRule) string {
	if r == nil || !r.IsOurs() {
		return ""
	}
	if why := r.Why(); why != "" {
		return why
	}
	chain := viewOf(r.backend, f, saved.Print(iptables.Rules(s.inferred), f)).chain(r.table, r.Chain)
	ours := chain.atoms()
	for _, a := range r.atoms() {
		if i := slices.IndexFunc(ours, func(b atom) bool { return a.key == b.key }); i >= 0 {
			return ours[i].rule.Why()
		}
	}
	return ""
}

// whyNotOutbound is why no rule takes what the pod sends.
func (s *Snapshot) whyNotOutbound(f Flow, o *Outcome) (reason, purpose string) {
	c := s.inferred
	if reason := s.notEven(f, o, rule.Output, rule.Outbound); reason != "" {
		return reason, ""
	}
	switch {
	case f.Dst.Port() == iptables.DNSPort && !c.DNS.Capture:
		reason, purpose = "DNS is not captured", "DNS"
		if f.Proto == rule.TCP {
			more, _ := s.destinationNotIncluded(c)
			reason += ", and " + more
		}
		return reason, purpose
	case f.Dst.Port() == iptables.DNSPort && f.Proto == rule.UDP:
		return "queries are captured only to " + join(c.DNS.Servers), "queries of applications"
	case f.Proto == rule.UDP:
		return "of UDP, only DNS is captured", ""
	}
	return s.destinationNotIncluded(c)
}

func (s *Snapshot) destinationNotIncluded(c iptables.Config) (reason, purpose string) {
	list := c.IncludeCIDRs.List
	if len(list) == 0 && len(c.IncludeOutboundPorts) == 0 {
		return "no outbound destination is captured at all", "destination"
	}
	var captured []string
	if len(list) > 0 {
		captured = append(captured, "destinations "+join(list))
	}
	if len(c.IncludeOutboundPorts) > 0 {
		captured = append(captured, "ports "+join(c.IncludeOutboundPorts))
	}
	return "captured are only " + strings.Join(captured, " and "), "destination"
}

func (s *Snapshot) whyNotInbound(f Flow) (reason, purpose string) {
	c := s.inferred
	if reason := s.nothingAt(f); reason != "" {
		return reason, ""
	}
	if !c.InboundPorts.All && len(c.InboundPorts.List) == 0 {
		return "no inbound port is captured at all", "inbound port"
	}
	if !c.InboundPorts.All {
		return "the inbound ports that are captured are " + join(c.InboundPorts.List), "inbound port"
	}
	return fmt.Sprintf("no rule of %s leads to %s", rule.PreRouting, rule.Inbound), ""
}

// notEven is why a packet does not so much as meet the rules.
func (s *Snapshot) notEven(f Flow, o *Outcome, hook, chain string) string {
	if reason := s.nothingAt(f); reason != "" {
		return reason
	}
	met := slices.ContainsFunc(o.Steps, func(st Step) bool {
		return st.Matched && st.rule != nil && st.rule.Jump == chain && st.Table == rule.NAT
	})
	untracked := slices.ContainsFunc(o.Steps, func(st Step) bool {
		return st.Matched && st.rule != nil && (st.rule.Jump == "NOTRACK" || slices.Contains(st.rule.options, "--notrack"))
	})
	switch {
	case untracked:
		return "a rule keeps it from conntrack (NOTRACK), without which there is no REDIRECT"
	case !met && f.Local:
		return fmt.Sprintf("no rule of table nat, chain %s leads it to %s", hook, chain)
	}
	return ""
}

// nothingAt is the reason when an IP version has no rules of ours.
func (s *Snapshot) nothingAt(f Flow) string {
	family := rule.FamilyOf(f.Dst.Addr())
	for _, st := range s.states {
		if st.Family == family && len(st.Ours) > 0 {
			return ""
		}
	}
	return fmt.Sprintf("there are no capture rules for %v", family)
}

// maxListed is how many items of a list a sentence has.
const maxListed = 8

func join[T any](list []T) string {
	var out []string
	for i, item := range list {
		if i == maxListed {
			out = append(out, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		out = append(out, fmt.Sprint(item))
	}
	return strings.Join(out, ", ")
}
