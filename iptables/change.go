package iptables

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// change turns our part of one table into what is wanted. It says only what differs:
// with thousands of rules in a chain, one that is put in or taken out costs a walk
// through the chain, where writing all of them anew costs ten times that.
type change struct {
	from, to *table
	rewrite  map[string]bool // chains whose rules of ours are all written anew
	edits    []string        // commands for the other chains
	drop     []string        // chains of ours that are not wanted
}

func changeOf(t, w *table) change {
	c := change{from: t, to: w, rewrite: map[string]bool{}}
	have, want := inOrder(t), inOrder(w)
	for _, name := range w.chains {
		if !slices.Contains(t.chains, name) {
			c.rewrite[name] = true
		} else if edits, ok := editChain(name, have[name], want[name]); ok {
			c.edits = append(c.edits, edits...)
		} else {
			c.rewrite[name] = true
		}
	}
	for _, name := range t.chains {
		if !slices.Contains(w.chains, name) {
			c.drop = append(c.drop, name)
		}
	}
	for _, of := range []map[string][]savedRule{have, want} {
		for name := range maps.Keys(of) {
			if !isOurChain(name) && !slices.EqualFunc(have[name], want[name], same) {
				c.rewrite[name] = true
			}
		}
	}
	return c
}

func (c change) empty() bool { return len(c.rewrite)+len(c.edits)+len(c.drop) == 0 }

// write writes one transaction. ":CHAIN -" makes a chain or empties it, so chains
// that stay are never missing. Rules in chains of others are taken out one by one.
func (c change) write(out *bytes.Buffer) {
	fmt.Fprintf(out, "*%s\n", c.to.name)
	for _, name := range c.to.chains {
		if c.rewrite[name] {
			fmt.Fprintf(out, ":%s - [0:0]\n", name)
		}
	}
	for _, name := range c.drop {
		fmt.Fprintf(out, ":%s - [0:0]\n", name)
	}
	for _, r := range c.from.rules {
		if !isOurChain(r.chain) && c.rewrite[r.chain] {
			fmt.Fprintf(out, "-D %s %s\n", r.chain, r.spec)
		}
	}
	for _, r := range c.to.rules {
		if !c.rewrite[r.chain] {
			continue
		}
		command := "-A"
		if r.top {
			command = "-I"
		}
		fmt.Fprintf(out, "%s %s %s\n", command, r.chain, r.spec)
	}
	for _, line := range c.edits {
		fmt.Fprintln(out, line)
	}
	for _, name := range c.drop {
		fmt.Fprintf(out, "-X %s\n", name)
	}
	out.WriteString("COMMIT\n")
}

// maxEdits is how many rules of a chain are changed by their places: for each of them
// iptables walks through the chain.
const maxEdits = 32

// editChain returns the commands that turn the rules of a chain of ours into those
// wanted. It fails where writing all of them anew is less work.
func editChain(name string, have, want []savedRule) (commands []string, ok bool) {
	first := 0
	for first < len(have) && first < len(want) && same(have[first], want[first]) {
		first++
	}
	h, w := len(have), len(want)
	for h > first && w > first && same(have[h-1], want[w-1]) {
		h, w = h-1, w-1
	}
	edits := h - first + w - first
	if edits > 0 && (edits > maxEdits || edits >= len(want)) {
		return nil, false
	}
	for range h - first {
		commands = append(commands, fmt.Sprintf("-D %s %d", name, first+1))
	}
	for i := first; i < w; i++ {
		commands = append(commands, fmt.Sprintf("-I %s %d %s", name, i+1, want[i].spec))
	}
	return commands, true
}

// same reports whether two rules of one chain say the same, in whatever spelling.
func same(r, o savedRule) bool { return r.key == o.key && r.comment == o.comment }

// inOrder returns the rules of each chain in the order of evaluation, where a rule
// that goes to the top comes before all that were there.
func inOrder(t *table) map[string][]savedRule {
	out := map[string][]savedRule{}
	for _, r := range t.rules {
		at := len(out[r.chain])
		if r.top {
			at = 0
		}
		out[r.chain] = slices.Insert(out[r.chain], at, r)
	}
	return out
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
		if c := changeOf(h, w); !c.empty() {
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

// renderRestore returns the input for iptables-restore --noflush that makes the rules of one
// IP version where there are none of ours; it is empty when there are none.
func renderRestore(rules []Rule, family Family) []byte { return plan(nil, wanted(rules, family)) }
