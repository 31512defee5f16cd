package inspect

import (
	"maps"
	"slices"
	"strings"

	"understudy.mesh/iptables/rule"
)

// Kind is what is wrong with a rule.
type Kind string

// The kinds of differences.
const (
	kindMissing    Kind = "missing"
	kindSurplus    Kind = "surplus"
	kindChanged    Kind = "changed"
	kindDoubled    Kind = "doubled"
	kindOutOfOrder Kind = "out of order"
	kindTakenAway  Kind = "taken away" // a rule of somebody else gets the packets before ours
	kindTwice      Kind = "twice"      // two back ends capture the same
	kindAddress    Kind = "address"
	kindRouting    Kind = "routing"
	kindListener   Kind = "listener"
)

// Difference is one respect in which the state is not what is wanted.
type Difference struct {
	Kind    Kind         `json:"kind"`
	Backend rule.Backend `json:"backend,omitempty"`
	Family  string       `json:"family,omitempty"`
	Table   rule.Table   `json:"table,omitempty"`
	Chain   string       `json:"chain,omitempty"`
	Rule    string       `json:"rule,omitempty"`  // that is missing, surplus ...; of Changed: what it should be
	Rules   int          `json:"rules,omitempty"` // of a chain that is missing or surplus as a whole
	Is      string       `json:"is,omitempty"`    // of Changed: what it is
	Why     string       `json:"why,omitempty"`   // the purpose of the rule
	Text    string       `json:"text"`            // all of it, in words
}

// compare returns the differences in one back end and IP version.
func compare(have, want view) []Difference {
	var out []Difference
	for _, t := range rule.Tables {
		h, w := have.tables[t], want.tables[t]
		names := slices.Collect(maps.Keys(w))
		for name := range h {
			if w[name] == nil {
				names = append(names, name)
			}
		}
		slices.SortFunc(names, byPlace)
		for _, name := range names {
			for _, d := range compareChains(name, h[name], w[name]) {
				d.Backend, d.Family, d.Table, d.Chain = have.backend, have.family.String(), t, name
				out = append(out, d)
			}
		}
	}
	return out
}

func (c *heldChain) length() int {
	if c == nil {
		return 0
	}
	return len(c.rules)
}

// byPlace puts the kernel's chains before ours.
func byPlace(a, b string) int {
	ours := rule.IsOurChain(a)
	switch {
	case ours == rule.IsOurChain(b):
		return strings.Compare(a, b)
	case ours:
		return 1
	}
	return -1
}

// compareChains says in one line that a chain of ours is missing or surplus as a whole.
func compareChains(name string, have, want *heldChain) (out []Difference) {
	switch {
	case rule.IsOurChain(name) && have.length() == 0 && want.length() > 0:
		return []Difference{{Kind: kindMissing, Rules: want.length()}}
	case rule.IsOurChain(name) && have.length() > 0 && want.length() == 0:
		return []Difference{{Kind: kindSurplus, Rules: have.length()}}
	}
	h, w := have.atoms(), want.atoms()
	missing, surplus := without(w, h), without(h, w)
	moved := disorder(without(h, surplus), without(w, missing))
	surplus = slices.DeleteFunc(surplus, func(s atom) bool { // what changes nothing
		return s.nth == 0 && slices.ContainsFunc(w, func(a atom) bool { return a.covers(s) })
	})
	for _, m := range missing {
		d := Difference{Kind: kindMissing, Rule: m.text(), Why: m.rule.Why()}
		if i := slices.IndexFunc(surplus, m.replacedBy); i >= 0 {
			d.Kind, d.Is = kindChanged, surplus[i].text()
			surplus = slices.Delete(surplus, i, i+1)
		}
		out = append(out, d)
	}
	for _, s := range surplus {
		d := Difference{Kind: kindSurplus, Rule: s.text(), Why: s.rule.Why()}
		if s.nth > 0 {
			d.Kind = kindDoubled
		}
		out = append(out, d)
	}
	return append(out, moved...)
}

// replacedBy reports whether s has a's purpose, or is alike but for one match or target.
func (a atom) replacedBy(s atom) bool {
	if s.nth > 0 {
		return false
	}
	if why := a.rule.Why(); why != "" && s.rule.Why() != "" {
		return why == s.rule.Why()
	}
	differ := 0
	for _, c := range a.match {
		if !slices.Contains(s.match, c) {
			differ++
		}
	}
	if !a.sameEffect(s) {
		differ++
	}
	return len(a.match) == len(s.match) && len(a.match) > 0 && differ == 1
}

// without returns the atoms of a that are not in b.
func without(a, b []atom) []atom {
	in := ids(b)
	return slices.DeleteFunc(slices.Clone(a), func(x atom) bool { _, ok := in[x.id()]; return ok })
}

func ids(list []atom) map[atomID]int {
	out := make(map[atomID]int, len(list))
	for i, a := range list {
		out[a.id()] = i
	}
	return out
}

// disorder returns the atoms that are out of order where that matters. have and want hold
// the same ones.
func disorder(have, want []atom) []Difference {
	at := ids(want)
	place := make([]int, len(have))
	for i, a := range have {
		place[i] = at[a.id()]
	}
	var out []Difference
	for _, i := range unordered(place) {
		for j := range have {
			inverted := (i < j) != (place[i] < place[j])
			if i == j || !inverted || have[i].sameEffect(have[j]) || have[i].apart(have[j]) {
				continue
			}
			d := Difference{Kind: kindOutOfOrder, Rule: have[i].text(), Why: have[i].rule.Why(), Is: "before"}
			if i > j {
				d.Is = "after"
			}
			d.Is += " " + have[j].text()
			out = append(out, d)
			break
		}
	}
	return out
}

// unordered returns the indexes of as few numbers as must be moved to have the rest
// ascend: those outside of a longest ascending subsequence (patience sorting).
func unordered(numbers []int) (moved []int) {
	var piles []int // indexes of the least last number of the subsequences of each length
	before := make([]int, len(numbers))
	for i, n := range numbers {
		pile, _ := slices.BinarySearchFunc(piles, n, func(j, n int) int { return numbers[j] - n })
		before[i] = -1
		if pile > 0 {
			before[i] = piles[pile-1]
		}
		if pile == len(piles) {
			piles = append(piles, i)
		} else {
			piles[pile] = i
		}
	}
	kept := make([]bool, len(numbers))
	if len(piles) > 0 {
		for i := piles[len(piles)-1]; i >= 0; i = before[i] {
			kept[i] = true
		}
	}
	for i, k := range kept {
		if !k {
			moved = append(moved, i)
		}
	}
	return moved
}
