package inspect

import (
	"net/netip"
	"slices"
	"strings"
)

// atom is a rule for one port: Istio has a rule for each, where ours lists several.
type atom struct {
	rule  *heldRule // from which it is
	match []condition
	key   string
	nth   int // of the atoms with this key before it: one that is there twice is two
}

func (a atom) id() atomID { return atomID{a.key, a.nth} }

type atomID struct {
	key string
	nth int
}

// atoms returns those of a chain in the order of evaluation.
func (c *heldChain) atoms() []atom {
	if c == nil {
		return nil
	}
	var out []atom
	seen := map[string]int{}
	for _, r := range c.rules {
		for _, a := range r.atoms() {
			a.nth = seen[a.key]
			seen[a.key]++
			out = append(out, a)
		}
	}
	return out
}

func (h *heldRule) atoms() []atom {
	var match []condition
	var ports []string
	for _, c := range h.match {
		if c = c.canonical(); c.flag == "--dport" && !c.not {
			ports = strings.Split(c.value, ",")
			continue
		}
		match = append(match, c)
	}
	if ports == nil {
		return []atom{h.atom(match)}
	}
	var out []atom
	for _, p := range ports {
		out = append(out, h.atom(append(slices.Clone(match), condition{flag: "--dport", value: p})))
	}
	return out
}

func (h *heldRule) atom(match []condition) atom {
	words := make([]string, len(match))
	for i, c := range match {
		words[i] = c.String()
	}
	slices.Sort(words)
	words = append(words, h.target())
	return atom{rule: h, match: match, key: strings.Join(words, " ")}
}

func (h *heldRule) target() string {
	verb := "-j "
	switch {
	case h.Jump == "":
		return ""
	case h.isGoto:
		verb = "-g "
	}
	return strings.Join(append([]string{verb + h.Jump}, h.options...), " ")
}

// canonical spells alike what means the same in several modules.
func (c condition) canonical() condition {
	switch c.flag {
	case "tcp --dport", "udp --dport", "multiport --dports":
		c.flag = "--dport"
	case "tcp --sport", "udp --sport", "multiport --sports":
		c.flag = "--sport"
	case "state --state":
		c.flag = "conntrack --ctstate"
	case "-s", "-d":
		if p, err := netip.ParsePrefix(c.value); err == nil {
			c.prefix, c.value = p, p.String()
		}
	}
	if c.flag == "conntrack --ctstate" || c.flag == "--dport" && c.not {
		items := strings.Split(c.value, ",")
		slices.Sort(items)
		c.value = strings.Join(items, ",")
	}
	return c
}

// text is the rule that an atom would be, as a person reads it.
func (a atom) text() string {
	if len(a.rule.match) == 0 || len(a.rule.atoms()) == 1 {
		return a.rule.plain()
	}
	var words []string
	for _, c := range a.match {
		words = append(words, c.String())
	}
	return strings.Join(append(words, a.rule.target()), " ")
}

// plain is the rule without its comment and what goes without saying.
func (h *heldRule) plain() string {
	var words []string
	var last string
	for _, c := range h.match {
		module, flag, ofModule := strings.Cut(c.flag, " ")
		if !ofModule {
			module, flag = "", c.flag
		} else if module != last && module != "tcp" && module != "udp" {
			words = append(words, "-m", module)
		}
		last = module
		if c.not {
			words = append(words, "!")
		}
		if words = append(words, flag); c.value != "" {
			words = append(words, c.value)
		}
	}
	if target := h.target(); target != "" {
		words = append(words, target)
	}
	return strings.Join(words, " ")
}

// sameEffect reports whether the order of two rules does not matter.
func (a atom) sameEffect(b atom) bool { return a.rule.target() == b.rule.target() }

// apart reports whether surely no packet matches both.
func (a atom) apart(b atom) bool {
	for _, x := range a.match {
		for _, y := range b.match {
			if x.flag == y.flag && x.excludes(y) {
				return true
			}
		}
	}
	return false
}

// excludes reports whether two conditions of one flag cannot both hold.
func (c condition) excludes(o condition) bool {
	if c.not || o.not {
		return c.not != o.not && c.value == o.value
	}
	switch c.flag {
	case "-s", "-d":
		return c.prefix.IsValid() && o.prefix.IsValid() && !c.prefix.Overlaps(o.prefix)
	case "-p", "owner --uid-owner", "owner --gid-owner", "--dport", "--sport":
		return c.value != o.value && !strings.ContainsAny(c.value+o.value, ",:-")
	}
	return false
}

// covers reports whether a, alike but for a wider destination, makes b superfluous.
func (a atom) covers(b atom) bool {
	if !a.sameEffect(b) || len(a.match) > len(b.match) {
		return false
	}
	for _, x := range a.match {
		if !slices.ContainsFunc(b.match, func(y condition) bool { return x == y || x.contains(y) }) {
			return false
		}
	}
	return true
}

func (c condition) contains(o condition) bool {
	p, q := c.prefix, o.prefix
	return c.flag == "-d" && o.flag == "-d" && !c.not && !o.not && p.IsValid() && q.IsValid() &&
		p.Bits() <= q.Bits() && p.Contains(q.Addr())
}
