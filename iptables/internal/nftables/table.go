package nftables

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// TableName is the table of nf_tables, of family inet, that stands for one of iptables.
// All names and hooks are Istio's: what its agent left behind is taken over, and it finds
// what we made when a pod goes back to its image.
func TableName(t rule.Table) string { return "istio-proxy-" + string(t) }

// nfChainName makes istio-output-dns of ISTIO_OUTPUT_DNS.
func nfChainName(chain string) string {
	return strings.ToLower(strings.ReplaceAll(chain, "_", "-"))
}

// chainOf is the reverse of nfChainName.
func chainOf(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

// nfTable is one table of ours, as wanted or as found.
type nfTable struct {
	name   rule.Table
	flags  uint32 // dormant, for one; ours has none
	chains []*nfChain
	sets   []*nfSet
}

type nfChain struct {
	name  string
	hook  nfHook
	attrs []byte // what makes it, without table and name
	rules []nfRule
}

// nfHook is where packets enter a base chain; zero of any other chain.
type nfHook struct {
	kind     string // filter, route or nat
	number   uint32
	priority int32
	policy   uint32
	device   bool // never ours
}

// sameEntry leaves out the policy, which the kernel can change in a chain that is in use.
func (h nfHook) sameEntry(o nfHook) bool {
	h.policy = o.policy
	return h == o
}

// nfRule is one rule. What it means is read from its expressions, wanted or found.
type nfRule struct {
	exprs, userdata []byte
	text            string // of a wanted rule, in nft's syntax
	rule            rule.Rule
	err             error // it means nothing that Rule can say
}

// find returns a chain, or nil.
func (t *nfTable) find(name string) *nfChain {
	return first(t.chains, func(c *nfChain) bool { return c.name == name })
}

func (t *nfTable) findSet(name string) *nfSet {
	return first(t.sets, func(s *nfSet) bool { return s.name == name })
}

// first returns the first of a list that is wanted, or nil.
func first[T any](list []*T, wanted func(*T) bool) *T {
	if i := slices.IndexFunc(list, wanted); i >= 0 {
		return list[i]
	}
	return nil
}

// sameAs reports whether two tables do the same, under the same names.
func (t *nfTable) sameAs(w *nfTable) bool {
	if t == nil || w == nil {
		return t == w
	}
	if t.flags != w.flags || len(t.chains) != len(w.chains) || len(t.sets) != len(w.sets) {
		return false
	}
	for _, c := range w.chains {
		have := t.find(c.name)
		if have == nil || have.hook != c.hook || !slices.EqualFunc(have.rules, c.rules, nfRule.sameAs) {
			return false
		}
	}
	return !slices.ContainsFunc(w.sets, func(s *nfSet) bool { return t.findSet(s.name) == nil })
}

func (r nfRule) sameAs(o nfRule) bool {
	return r.err == nil && o.err == nil && equal(r.rule, o.rule)
}

// changes returns what turns some tables into others.
func changes(have, want []*nfTable) (out []nfChange) {
	for _, name := range rule.Tables {
		h, w := findTable(have, name), findTable(want, name)
		if !h.sameAs(w) {
			out = append(out, h.turnInto(w)...)
		}
	}
	return out
}

func findTable(list []*nfTable, name rule.Table) *nfTable {
	return first(list, func(t *nfTable) bool { return t.name == name })
}

// turnInto replaces what is in a table. Base chains that stay are not made anew: a packet
// could meet the new one too early and the old one too late, and escape both.
func (t *nfTable) turnInto(w *nfTable) []nfChange {
	c := &changer{name: TableName(cmp.Or(t, w).name)}
	c.table = appendName(nil, unix.NFTA_TABLE_NAME, c.name)
	if t != nil && (w == nil || t.flags != w.flags) {
		c.add(unix.NFT_MSG_DELTABLE, 0, c.table, "remove all")
		t = nil
	}
	if w == nil {
		return c.changes
	}
	if t == nil {
		t = &nfTable{name: w.name}
		c.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, appendUint32(slices.Clone(c.table), unix.NFTA_TABLE_FLAGS, w.flags), "make all")
	}
	stays := func(chain *nfChain) bool {
		there, wanted := t.find(chain.name), w.find(chain.name)
		return there != nil && wanted != nil && there.hook.sameEntry(wanted.hook)
	}
	c.remove(t, stays)
	c.fill(w, func(chain *nfChain) bool { return stays(chain) && t.find(chain.name).hook == chain.hook })
	return c.changes
}

// changer collects the changes of one table.
type changer struct {
	name    string
	table   []byte // its name as an attribute, which has type 1 in every message
	changes []nfChange
}

func (c *changer) add(kind, flags uint16, attrs []byte, what string) {
	c.changes = append(c.changes, nfChange{kind, flags, attrs, what + " of table inet " + c.name})
}

// named returns the attribute of the table, with a name added.
func (c *changer) named(kind uint16, name string) []byte {
	return appendName(slices.Clone(c.table), kind, name)
}

// remove takes away all rules and sets, and the chains that do not stay.
func (c *changer) remove(t *nfTable, stays func(*nfChain) bool) {
	if len(t.chains) > 0 {
		c.add(unix.NFT_MSG_DELRULE, 0, c.table, "remove the rules")
	}
	for _, chain := range t.chains {
		if !stays(chain) {
			c.add(unix.NFT_MSG_DELCHAIN, 0, c.named(unix.NFTA_CHAIN_NAME, chain.name), "remove chain "+chain.name)
		}
	}
	for _, s := range t.sets {
		if !s.anonymous {
			c.add(unix.NFT_MSG_DELSET, 0, c.named(unix.NFTA_SET_NAME, s.name), "remove set "+s.name)
		}
	}
}

// fill adds chains that are not there yet, or not with their policy, sets and rules.
func (c *changer) fill(w *nfTable, there func(*nfChain) bool) {
	for _, chain := range w.chains {
		if !there(chain) {
			c.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, append(c.named(unix.NFTA_CHAIN_NAME, chain.name), chain.attrs...), "make chain "+chain.name)
		}
	}
	for i, s := range w.sets {
		attrs := append(c.named(unix.NFTA_SET_NAME, s.name), s.attrs...)
		// Rules name their sets; the number is only for those without a name yet.
		c.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, appendUint32(attrs, unix.NFTA_SET_ID, uint32(i+1)), "make set "+s.name)
		for _, list := range s.elements {
			elements := appendNested(c.named(unix.NFTA_SET_ELEM_LIST_SET, s.name), unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
			c.add(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, elements, "fill set "+s.name)
		}
	}
	for _, chain := range w.chains {
		for _, r := range chain.rules {
			c.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, r.attrs(c.named(unix.NFTA_RULE_CHAIN, chain.name)),
				fmt.Sprintf("make rule %q in chain %s", r.rule.Why, chain.name))
		}
	}
}

// attrs adds to table and chain what makes the rule.
func (r nfRule) attrs(b []byte) []byte {
	b = appendNested(b, unix.NFTA_RULE_EXPRESSIONS, r.exprs)
	if len(r.userdata) > 0 {
		b = appendAttr(b, unix.NFTA_RULE_USERDATA, r.userdata)
	}
	return b
}

// text returns the table in nft's syntax.
func (t *nfTable) text() string {
	var out strings.Builder
	fmt.Fprintf(&out, "table inet %s {\n", TableName(t.name))
	for _, s := range t.sets {
		out.WriteString(s.text())
	}
	for _, c := range t.chains {
		fmt.Fprintf(&out, "\tchain %s {\n", c.name)
		if c.hook != (nfHook{}) {
			fmt.Fprintf(&out, "\t\ttype %s hook %s priority %d; policy accept;\n", c.hook.kind, c.name, c.hook.priority)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&out, "\t\t%s\n", r.text)
		}
		out.WriteString("\t}\n")
	}
	out.WriteString("}\n")
	return out.String()
}

// nfAccept is NF_ACCEPT of linux/netfilter.h, the policy of base chains.
const nfAccept = 1

// ourHook returns where a chain of ours is hooked: where iptables has the same table.
func ourHook(t rule.Table, chain string) nfHook {
	h := nfHook{kind: "filter", policy: nfAccept}
	switch chain {
	case rule.PreRouting:
		h.number = unix.NF_INET_PRE_ROUTING
	case rule.Output:
		h.number = unix.NF_INET_LOCAL_OUT
	default:
		return nfHook{}
	}
	switch t { // NF_IP_PRI_* of linux/netfilter_ipv4.h
	case rule.Raw:
		h.priority = -300
	case rule.Mangle:
		h.priority = -150
		if chain == rule.Output {
			h.kind = "route" // a changed mark is routed again
		}
	case rule.NAT:
		h.priority, h.kind = -100, "nat"
	}
	return h
}

// attrs returns what makes a base chain; nothing for any other chain.
func (h nfHook) attrs() []byte {
	if h == (nfHook{}) {
		return nil
	}
	hook := appendUint32(nil, unix.NFTA_HOOK_HOOKNUM, h.number)
	hook = appendUint32(hook, unix.NFTA_HOOK_PRIORITY, uint32(h.priority))
	b := appendNested(nil, unix.NFTA_CHAIN_HOOK, hook)
	b = appendUint32(b, unix.NFTA_CHAIN_POLICY, h.policy)
	return appendName(b, unix.NFTA_CHAIN_TYPE, h.kind)
}

// readHook reads what the kernel says of a chain.
func readHook(chain []byte) nfHook {
	hook := attribute(chain, unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return nfHook{}
	}
	const device, devices = 3, 4 // NFTA_HOOK_DEV, NFTA_HOOK_DEVS
	return nfHook{
		kind:     attrName(chain, unix.NFTA_CHAIN_TYPE),
		number:   attrUint32(hook, unix.NFTA_HOOK_HOOKNUM),
		priority: int32(attrUint32(hook, unix.NFTA_HOOK_PRIORITY)),
		policy:   attrUint32(chain, unix.NFTA_CHAIN_POLICY),
		device:   attribute(hook, device) != nil || attribute(hook, devices) != nil,
	}
}

// Render returns rules in nft's syntax; it is empty when there are none.
func Render(rules []rule.Rule) []byte {
	var out []byte
	for _, t := range tables(rules) {
		out = append(out, t.text()...)
	}
	return out
}
