package inspect

import (
	"net/netip"
	"slices"
	"strings"

	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// view is what one back end has for one IP version.
type view struct {
	backend rule.Backend
	family  rule.Family
	tables  map[rule.Table]map[string]*heldChain
}

// heldChain is a chain with its rules in the order of evaluation.
type heldChain struct {
	policy string // of a built-in chain; "-" of others
	rules  []*heldRule
}

// heldRule is one rule as the kernel has it. It can say more than rule.Rule: the rules of
// others count as much here.
type heldRule struct {
	saved.Rule
	backend rule.Backend
	table   rule.Table
	match   []condition
	isGoto  bool
	options []string // of the target
}

// condition is one of the matches of a rule, all of which a packet must satisfy.
type condition struct {
	flag  string // with its module before it, if it has one: "-s", "tcp --dport", "mark --mark"
	not   bool
	value string

	prefix netip.Prefix // of value, where an atom has an address
}

func (c condition) String() string {
	s := c.flag
	if c.not {
		s = "! " + s
	}
	if c.value != "" {
		s += " " + c.value
	}
	return s
}

// viewOf reads a ruleset, or what wanted makes of rules.
func viewOf(b rule.Backend, f rule.Family, s saved.Ruleset) view {
	v := view{backend: b, family: f, tables: map[rule.Table]map[string]*heldChain{}}
	for _, t := range s {
		chains := map[string]*heldChain{}
		v.tables[t.Name] = chains
		for _, head := range t.Heads {
			chain := &heldChain{policy: "ACCEPT"}
			if f := strings.Fields(head); len(f) > 1 {
				chain.policy = f[1]
			}
			chains[saved.HeadChain(head)] = chain
		}
		for _, name := range t.Chains { // of a table that was never text
			if chains[name] == nil {
				chains[name] = &heldChain{policy: "-"}
			}
		}
		for _, r := range t.Rules {
			chain := chains[r.Chain]
			if chain == nil {
				chain = &heldChain{policy: "ACCEPT"}
				chains[r.Chain] = chain
			}
			at := len(chain.rules)
			if r.Top {
				at = 0
			}
			chain.rules = slices.Insert(chain.rules, at, readRule(b, t.Name, r))
		}
	}
	return v
}

// chain returns a chain, or nil.
func (v view) chain(t rule.Table, name string) *heldChain { return v.tables[t][name] }

// empty reports whether there is nothing that a packet could meet.
func (v view) empty() bool {
	for _, chains := range v.tables {
		for _, c := range chains {
			if len(c.rules) > 0 || c.policy == "DROP" {
				return false
			}
		}
	}
	return true
}

// bareModules are the matches that say nothing without an option.
var bareModules = []string{"tcp", "udp", "comment", "multiport"}

// readRule takes a rule apart. What is not understood shows when it is evaluated.
func readRule(b rule.Backend, t rule.Table, r saved.Rule) *heldRule {
	h := &heldRule{Rule: r, backend: b, table: t}
	words, _ := saved.SplitWords(r.Spec) // parseRule has split them before
	var module string
	var not, used bool
	closeModule := func() {
		if module != "" && !used && !slices.Contains(bareModules, module) {
			h.match = append(h.match, condition{flag: module, not: not})
		}
	}
	for i := 0; i < len(words); {
		word := words[i]
		i++
		switch word {
		case "!":
			not = true
			continue
		case "-m":
			closeModule()
			module, used = next(words, &i), false
			continue
		case "-j", "-g":
			closeModule()
			h.Jump, h.isGoto, h.options = next(words, &i), word == "-g", words[i:]
			return h
		case "--comment":
			used = true
			next(words, &i)
		default:
			c := condition{flag: word, not: not, value: values(words, &i)}
			if strings.HasPrefix(word, "--") && module != "" {
				c.flag, used = module+" "+word, true
			}
			h.match = append(h.match, c)
		}
		not = false
	}
	closeModule()
	return h
}

func next(words []string, i *int) string {
	if *i >= len(words) {
		return ""
	}
	*i++
	return words[*i-1]
}

// values takes the words up to the next option.
func values(words []string, i *int) string {
	from := *i
	for *i < len(words) && words[*i] != "!" && !strings.HasPrefix(words[*i], "-") {
		*i++
	}
	return strings.Join(words[from:*i], " ")
}

// find returns the value of a flag, whatever its module, or "".
func (h *heldRule) find(flag string) (c condition, ok bool) {
	for _, c := range h.match {
		if c.flag == flag || strings.HasSuffix(c.flag, " "+flag) {
			return c, true
		}
	}
	return condition{}, false
}

// option returns the word after name among those of the target, or "".
func (h *heldRule) option(name string) string {
	if i := slices.Index(h.options, name); i >= 0 && i+1 < len(h.options) {
		return h.options[i+1]
	}
	return ""
}
