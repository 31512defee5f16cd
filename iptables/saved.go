package iptables

import (
	"slices"
	"sync"
)

// wanted returns the rules of one family in the form in which iptables-save would
// give them back, each table with its chains in order of appearance.
func wanted(rules []Rule, family Family) ruleset {
	var s ruleset
	for _, name := range tableOrder {
		t := &table{name: name}
		for _, r := range rules {
			if r.Table != name {
				continue
			}
			for _, line := range linesOf(r, family) {
				saved, ok := parseRule(line)
				if !ok {
					panic("iptables: a rule of ours cannot be read back: " + line)
				}
				t.rules = append(t.rules, saved)
				t.addChain(r.Chain)
				t.addChain(r.Target.Verdict)
			}
		}
		if len(t.rules) > 0 {
			s = append(s, t)
		}
	}
	return s
}

func (t *table) addChain(name string) {
	if isOurChain(name) && !slices.Contains(t.chains, name) {
		t.chains = append(t.chains, name)
	}
}

// desired are rules that are wanted in one back end, nil those where none is. In the
// form of iptables they are made once.
type desired struct {
	rules  []Rule
	v4, v6 func() ruleset
}

func desireRules(rules []Rule) *desired {
	return &desired{
		rules: rules,
		v4:    sync.OnceValue(func() ruleset { return wanted(rules, IPv4) }),
		v6:    sync.OnceValue(func() ruleset { return wanted(rules, IPv6) }),
	}
}

// ruleset returns the rules of one IP version as iptables-save would print them.
func (d *desired) ruleset(f Family) ruleset {
	switch {
	case d == nil:
		return nil
	case f == IPv4:
		return d.v4()
	}
	return d.v6()
}

// savedState is what a back end holds for one IP version, in the form of iptables.
type savedState struct {
	Holding
	all  ruleset
	ours ruleset
}
