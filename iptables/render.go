package iptables

import (
	"bytes"
	"fmt"
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
		if !h.sameAs(w) {
			h.turnInto(w, &out)
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

// turnInto writes one transaction. ":CHAIN -" makes a chain or empties it, so chains
// that stay are never missing. Rules in chains of others are taken out one by one.
func (t *table) turnInto(w *table, out *bytes.Buffer) {
	fmt.Fprintf(out, "*%s\n", t.name)
	for _, c := range w.chains {
		fmt.Fprintf(out, ":%s - [0:0]\n", c)
	}
	for _, c := range t.chains {
		if !slices.Contains(w.chains, c) {
			fmt.Fprintf(out, ":%s - [0:0]\n", c)
		}
	}
	for _, r := range t.rules {
		if !isOurChain(r.chain) {
			fmt.Fprintf(out, "-D %s %s\n", r.chain, r.spec)
		}
	}
	for _, r := range w.rules {
		command := "-A"
		if r.top {
			command = "-I"
		}
		fmt.Fprintf(out, "%s %s %s\n", command, r.chain, r.spec)
	}
	for _, c := range t.chains {
		if !slices.Contains(w.chains, c) {
			fmt.Fprintf(out, "-X %s\n", c)
		}
	}
	out.WriteString("COMMIT\n")
}

// sameAs compares chains as sets and rules chain by chain, in order.
func (t *table) sameAs(w *table) bool {
	chains := func(t *table) []string { return slices.Sorted(slices.Values(t.chains)) }
	return slices.Equal(chains(t), chains(w)) && equalRules(t.inOrder(), w.inOrder())
}

// inOrder returns the keys of the rules of each chain in the order of evaluation,
// where a rule that goes to the top comes before all that were there.
func (t *table) inOrder() map[string][]string {
	out := map[string][]string{}
	for _, r := range t.rules {
		at := len(out[r.chain])
		if r.top {
			at = 0
		}
		out[r.chain] = slices.Insert(out[r.chain], at, r.comment+"\x00"+r.key)
	}
	return out
}

func equalRules(a, b map[string][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for chain, rules := range a {
		if !slices.Equal(rules, b[chain]) {
			return false
		}
	}
	return true
}
