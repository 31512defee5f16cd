package xtables

import (
	"bytes"
	"fmt"
	"slices"

	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// change turns our part of one table into what is wanted, by what differs: in a chain of
// thousands, writing all rules anew costs ten times what an edit does.
type change struct {
	from, to *saved.Table
	rewrite  map[string]bool // chains whose rules of ours are all written anew
	edits    []string        // commands for the other chains
	drop     []string        // chains of ours that are not wanted
}

func changeOf(t, w *saved.Table) change {
	c := change{from: t, to: w, rewrite: map[string]bool{}}
	have, want := inOrder(t), inOrder(w)
	for _, name := range w.Chains {
		if !slices.Contains(t.Chains, name) {
			c.rewrite[name] = true
		} else if edits, ok := editChain(name, have[name], want[name]); ok {
			c.edits = append(c.edits, edits...)
		} else {
			c.rewrite[name] = true
		}
	}
	for _, name := range t.Chains {
		if !slices.Contains(w.Chains, name) {
			c.drop = append(c.drop, name)
		}
	}
	for _, of := range []map[string][]saved.Rule{have, want} {
		for name := range of {
			if !rule.IsOurChain(name) && !slices.EqualFunc(have[name], want[name], same) {
				c.rewrite[name] = true
			}
		}
	}
	return c
}

func (c change) empty() bool { return len(c.rewrite)+len(c.edits)+len(c.drop) == 0 }

// write writes one transaction. ":CHAIN -" makes or empties a chain, so one that stays is
// never missing. Rules in chains of others are removed one by one.
func (c change) write(out *bytes.Buffer) {
	fmt.Fprintf(out, "*%s\n", c.to.Name)
	rewritten := slices.DeleteFunc(slices.Clone(c.to.Chains), func(name string) bool { return !c.rewrite[name] })
	for _, name := range append(rewritten, c.drop...) {
		fmt.Fprintf(out, ":%s - [0:0]\n", name)
	}
	for _, r := range c.from.Rules {
		if !rule.IsOurChain(r.Chain) && c.rewrite[r.Chain] {
			fmt.Fprintf(out, "-D %s %s\n", r.Chain, r.Spec)
		}
	}
	for _, r := range c.to.Rules {
		if !c.rewrite[r.Chain] {
			continue
		}
		command := "-A"
		if r.Top {
			command = "-I"
		}
		fmt.Fprintf(out, "%s %s %s\n", command, r.Chain, r.Spec)
	}
	for _, line := range c.edits {
		fmt.Fprintln(out, line)
	}
	for _, name := range c.drop {
		fmt.Fprintf(out, "-X %s\n", name)
	}
	out.WriteString("COMMIT\n")
}

// maxEdits bounds changes by place: for each of them iptables walks through the chain.
const maxEdits = 32

// editChain returns the commands that turn the rules of a chain of ours into those
// wanted. It fails where writing all of them anew is less work.
func editChain(name string, have, want []saved.Rule) (commands []string, ok bool) {
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
		commands = append(commands, fmt.Sprintf("-I %s %d %s", name, i+1, want[i].Spec))
	}
	return commands, true
}

// same reports whether two rules of one chain say the same, in whatever spelling.
func same(r, o saved.Rule) bool { return r.Key == o.Key && r.Comment == o.Comment }

// inOrder returns the rules of each chain in the order of evaluation.
func inOrder(t *saved.Table) map[string][]saved.Rule {
	out := map[string][]saved.Rule{}
	for _, r := range t.Rules {
		at := len(out[r.Chain])
		if r.Top {
			at = 0
		}
		out[r.Chain] = slices.Insert(out[r.Chain], at, r)
	}
	return out
}

// plan returns the input for iptables-restore --noflush that turns have into want.
func plan(have, want saved.Ruleset) []byte {
	var out bytes.Buffer
	for _, name := range tableNames(have, want) {
		h, w := have.Find(name), want.Find(name)
		if h == nil {
			h = &saved.Table{Name: name}
		}
		if w == nil {
			w = &saved.Table{Name: name}
		}
		if c := changeOf(h, w); !c.empty() {
			c.write(&out)
		}
	}
	return out.Bytes()
}

// tableNames returns ours, then those where only an intruder has a chain with our prefix.
func tableNames(a, b saved.Ruleset) []rule.Table {
	names := slices.Clone(rule.Tables)
	for _, t := range slices.Concat(a, b) {
		if !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}

// Render returns the input for iptables-restore --noflush where there are no rules of ours.
func Render(rules []rule.Rule, family rule.Family) []byte {
	return plan(nil, saved.Print(rules, family))
}
