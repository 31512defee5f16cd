// Package table owns the names that are answered here: the mesh's, as an immutable table
// that is replaced as a whole, and this host's own.
package table

import (
	"net/netip"
	"slices"
	"strings"

	"understudy.mesh/dnsproxy/internal/wire"
)

// DefaultTTL is the TTL of table answers in seconds, as in Istio (pkg/dns/client).
const DefaultTTL = 30

// Host is a name that the table answers. Of several that cover a question's name
// the most specific one decides, also where it has nothing to answer.
type Host struct {
	Name  string       // lower case; "*.x" covers all names below x
	Addrs []netip.Addr // at least one, both families mixed
	VIP   bool         // Addrs are virtual: PTR queries for them are answered

	// Forwarded is a host without addresses: its name is asked upstream as if the
	// table did not have it, whatever a wildcard would answer.
	Forwarded bool `json:",omitempty"`
}

// Table is the set of names answered here, made by New and With. It is immutable.
//
// Names are kept in wire form without the root, and addresses behind them.
type Table struct {
	exact     *shards // values: addrs
	wildcards *shards // the same, by the name behind "*."
	reverse   *shards // by address: the VIP's hosts in wire form, sorted, one behind the other
	domain    []byte  // in wire form without the root: `name.<domain>` is name; nil: no domain
}

// Below returns the table that has its names below domain, too; "": below none.
// It is cut off when somebody asks, so that it costs no memory.
func (t *Table) Below(domain string) *Table {
	out := *t
	out.domain = nil
	if wire, ok := wire.AppendName(nil, domain); ok {
		out.domain = wire[:len(wire)-1]
	}
	return &out
}

// Hosts returns what the table has, sorted by name, wildcards as "*.x".
func (t *Table) Hosts() []Host {
	hosts := make([]Host, 0, t.Len())
	collect := func(prefix string) func(key, value []byte) {
		return func(key, value []byte) {
			e := addrs(value)
			hosts = append(hosts, Host{Name: prefix + wire.Dotted(key), Addrs: e.list(), VIP: e.vip(), Forwarded: e.forwarded()})
		}
	}
	t.exact.all(collect(""))
	t.wildcards.all(collect("*."))
	slices.SortFunc(hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts
}

// Len returns how many names the table has; search domains do not count.
func (t *Table) Len() int { return t.exact.n + t.wildcards.n }

// Match is how a question's name was found in the table. Its slices are the
// table's and the question's.
type Match struct {
	owner    []byte // the table's name in wire form, behind "*." for a wildcard
	addrs    addrs
	Wildcard bool
	reverse  []byte // the hosts of the VIP that the name stands for
	base     []byte // the name without the pod's domain, where that was cut off
}

// lookup finds a lower-case name in wire form, without the root: exact, exact
// without the pod's domain, the most specific wildcard; and the reverse name of
// a VIP.
func (t *Table) lookup(name []byte) (Match, bool) {
	if e := t.exact.get(name); e != nil {
		return Match{owner: name, addrs: e}, true
	}
	base := wire.CutDomain(name, t.domain)
	if base != nil {
		if e := t.exact.get(base); e != nil {
			return Match{owner: base, addrs: e, base: base}, true
		}
	}
	if t.wildcards.n > 0 {
		if m, ok := t.wildcard(name, base); ok {
			return m, true
		}
	}
	return t.lookupReverse(name)
}

// wildcard finds the closest ancestor of name that is a wildcard, or one below
// the pod's domain: base is name without that, nil if it is elsewhere. The name
// itself is not its own ancestor: "*.x" does not cover x.
func (t *Table) wildcard(name, base []byte) (Match, bool) {
	for up := name; len(up) > 0; {
		up = up[1+int(up[0]):]
		if e := t.wildcards.get(up); e != nil {
			return Match{owner: up, addrs: e, Wildcard: true}, true
		}
		if len(up) <= len(t.domain) || base == nil {
			continue
		}
		owner := base[len(name)-len(up):]
		if e := t.wildcards.get(owner); e != nil {
			return Match{owner: owner, addrs: e, Wildcard: true, base: base}, true
		}
	}
	return Match{}, false
}

func (t *Table) lookupReverse(name []byte) (Match, bool) {
	if t.reverse.n == 0 {
		return Match{}, false
	}
	addr, ok := parseReverse(name)
	if !ok {
		return Match{}, false
	}
	var key [16]byte
	hosts := t.reverse.get(appendAddr(key[:0], addr))
	return Match{reverse: hosts}, hosts != nil
}
