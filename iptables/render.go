package iptables

import (
	"bytes"
	"slices"
)

// Render returns the rules of one family as input for iptables-restore --noflush in
// a namespace without any rules of ours. It is empty when there are none.
func Render(rules []Rule, family Family) []byte {
	return plan(nil, wanted(rules, family))
}

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
			for _, line := range r.lines(family) {
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

// plan returns the input for iptables-restore --noflush that turns have, our part of
// the present state, into want. Tables that are right already are left out.
func plan(have, want ruleset) []byte {
	var out bytes.Buffer
	for _, name := range tableNames(have, want) {
		h, w := have.find(name), want.find(name)
		if h == nil {
			h = &table{name: name}
		}
		if w == nil {
			w = &table{name: name}
		}
		if c := h.changeInto(w); !c.empty() {
			c.write(&out)
		}
	}
	return out.Bytes()
}

// tableNames returns the tables of both, ours in the order of tableOrder and then
// those where only an intruder can have made a chain with our prefix.
func tableNames(a, b ruleset) []Table {
	names := slices.Clone(tableOrder)
	for _, t := range slices.Concat(a, b) {
		if !slices.Contains(names, t.name) {
			names = append(names, t.name)
		}
	}
	return names
}
