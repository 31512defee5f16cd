package saved

import (
	"slices"
	"sync"

	"understudy.mesh/iptables/rule"
)

// Print returns the rules of one family in the form in which iptables-save would
// give them back, each table with its chains in order of appearance.
func Print(rules []rule.Rule, family rule.Family) Ruleset {
	var s Ruleset
	for _, name := range rule.Tables {
		t := &Table{Name: name}
		for _, r := range rules {
			if r.Table != name {
				continue
			}
			for _, line := range lines(r, family) {
				saved, ok := parseRule(line)
				if !ok {
					panic("iptables: a rule of ours cannot be read back: " + line)
				}
				t.Rules = append(t.Rules, saved)
				t.addChain(r.Chain)
				t.addChain(r.Target.Verdict)
			}
		}
		if len(t.Rules) > 0 {
			s = append(s, t)
		}
	}
	return s
}

func (t *Table) addChain(name string) {
	if rule.IsOurChain(name) && !slices.Contains(t.Chains, name) {
		t.Chains = append(t.Chains, name)
	}
}

// Wanted are rules that are wanted in one back end, nil those where none is. In the
// form of iptables they are made once.
type Wanted struct {
	Rules  []rule.Rule
	v4, v6 func() Ruleset
}

// Want returns rules to be wanted.
func Want(rules []rule.Rule) *Wanted {
	return &Wanted{
		Rules: rules,
		v4:    sync.OnceValue(func() Ruleset { return Print(rules, rule.IPv4) }),
		v6:    sync.OnceValue(func() Ruleset { return Print(rules, rule.IPv6) }),
	}
}

// Ruleset returns the rules of one IP version as iptables-save would print them.
func (d *Wanted) Ruleset(f rule.Family) Ruleset {
	switch {
	case d == nil:
		return nil
	case f == rule.IPv4:
		return d.v4()
	}
	return d.v6()
}

// State is what a back end holds for one IP version, in the form of iptables.
type State struct {
	rule.Holding
	All  Ruleset
	Ours Ruleset
}
