package dnsproxy

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// DefaultTTL is the TTL of table answers in seconds, Istio's (pkg/dns/client).
const DefaultTTL = 30

// Host is a name that the table answers.
type Host struct {
	Name  string       // lower case; "*.x" covers all names below x
	Addrs []netip.Addr // at least one, both families mixed
	VIP   bool         // Addrs are virtual: PTR queries for them are answered
}

// Table is the set of names answered here. It is immutable, made by NewTable,
// and put in force by Server.Swap.
type Table struct {
	exact     map[string]addrs
	wildcards map[string]addrs // key: the name behind "*."
	reverse   map[netip.Addr]string
	search    []string // with a leading dot
	ttl       uint32   // seconds; 0: the server's default
	pool      []byte   // the addresses of all hosts: one object for the GC
}

// addrs are the addresses of one host, as a place in Table.pool: n4 of 4 bytes,
// then n6 of 16.
type addrs struct {
	at     uint32
	n4, n6 uint16
	vip    bool
}

// maxAddrs bounds the addresses of a host and family: that many AAAA records
// fit the largest message (65,535 bytes, 28 a record).
const maxAddrs = 2000

// NewTable returns the table of hosts. A name given twice has the addresses of
// both. search are resolv.conf's search domains: `name.<search>` is answered as
// name, at query time, so that they cost no memory. ttl is in seconds; 0 is
// Config.TTL. Hosts without a usable name or address are left out.
func NewTable(hosts []Host, search []string, ttl uint32) *Table {
	t := &Table{
		exact:     make(map[string]addrs, len(hosts)),
		wildcards: map[string]addrs{},
		reverse:   map[netip.Addr]string{},
		ttl:       ttl,
	}
	for _, domain := range search {
		if domain = normalName(domain); domain != "" {
			t.search = append(t.search, "."+domain)
		}
	}
	for _, h := range hosts {
		t.add(h)
	}
	return t
}

func (t *Table) add(h Host) {
	name := normalName(h.Name)
	into := t.exact
	if suffix, ok := strings.CutPrefix(name, "*."); ok {
		name, into = suffix, t.wildcards
	}
	var wire [maxWireName]byte
	if _, ok := appendName(wire[:0], name); !ok || name == "*" {
		return
	}
	list := h.Addrs
	if old, ok := into[name]; ok {
		list = slices.Concat(t.addrs(old), list)
	}
	e := t.store(list)
	if e.n4 == 0 && e.n6 == 0 {
		return
	}
	e.vip = h.VIP
	into[name] = e
	if !h.VIP {
		return
	}
	for _, a := range h.Addrs {
		if _, taken := t.reverse[a.Unmap()]; !taken {
			t.reverse[a.Unmap()] = name
		}
	}
}

// store puts the addresses into the pool, each once, IPv4 first.
func (t *Table) store(list []netip.Addr) addrs {
	e := addrs{at: uint32(len(t.pool))}
	for i, a := range list {
		if a = a.Unmap(); a.Is4() && e.n4 < maxAddrs && !slices.Contains(list[:i], list[i]) {
			b := a.As4()
			t.pool = append(t.pool, b[:]...)
			e.n4++
		}
	}
	for i, a := range list {
		if a.IsValid() && !a.Unmap().Is4() && e.n6 < maxAddrs && !slices.Contains(list[:i], list[i]) {
			b := a.As16()
			t.pool = append(t.pool, b[:]...)
			e.n6++
		}
	}
	return e
}

func (t *Table) v4(e addrs) []byte { return t.pool[e.at:][:4*int(e.n4)] }
func (t *Table) v6(e addrs) []byte { return t.pool[e.at:][4*int(e.n4):][:16*int(e.n6)] }

func (t *Table) addrs(e addrs) []netip.Addr {
	list := make([]netip.Addr, 0, int(e.n4)+int(e.n6))
	for b := range slices.Chunk(t.v4(e), 4) {
		list = append(list, netip.AddrFrom4([4]byte(b)))
	}
	for b := range slices.Chunk(t.v6(e), 16) {
		list = append(list, netip.AddrFrom16([16]byte(b)))
	}
	return list
}

// Hosts returns what the table has, sorted by name, wildcards as "*.x".
func (t *Table) Hosts() []Host {
	hosts := make([]Host, 0, t.Len())
	for _, name := range slices.Sorted(maps.Keys(t.exact)) {
		e := t.exact[name]
		hosts = append(hosts, Host{Name: name, Addrs: t.addrs(e), VIP: e.vip})
	}
	for _, name := range slices.Sorted(maps.Keys(t.wildcards)) {
		e := t.wildcards[name]
		hosts = append(hosts, Host{Name: "*." + name, Addrs: t.addrs(e), VIP: e.vip})
	}
	slices.SortStableFunc(hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts
}

// Len returns how many names the table has; search domains do not count.
func (t *Table) Len() int { return len(t.exact) + len(t.wildcards) }

// normalName returns name as the table compares it: lower case, no final dot.
func normalName(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// match is how a question's name was found in the table.
type match struct {
	host     string // the table's name, behind "*." for a wildcard
	addrs    addrs
	wildcard bool
	reverse  bool   // host is what the VIP in the name belongs to
	search   string // the search domain that was stripped, with a leading dot
}

// lookup finds a dotted lower-case name: exact, exact without one search
// domain, the most specific wildcard, a wildcard without one search domain; and
// the reverse name of a VIP.
func (t *Table) lookup(name []byte) (match, bool) {
	if e, ok := t.exact[string(name)]; ok {
		return match{addrs: e}, true
	}
	for _, s := range t.search {
		if base, ok := cutSuffix(name, s); ok {
			if e, ok := t.exact[string(base)]; ok {
				return match{addrs: e, search: s}, true
			}
		}
	}
	if e, ok := t.wildcard(name); ok {
		return match{addrs: e, wildcard: true}, true
	}
	for _, s := range t.search {
		if base, ok := cutSuffix(name, s); ok {
			if e, ok := t.wildcard(base); ok {
				return match{addrs: e, wildcard: true, search: s}, true
			}
		}
	}
	return t.lookupReverse(name)
}

func (t *Table) lookupReverse(name []byte) (match, bool) {
	if len(t.reverse) == 0 {
		return match{}, false
	}
	addr, ok := parseReverse(name)
	if !ok {
		return match{}, false
	}
	host, ok := t.reverse[addr]
	return match{host: host, reverse: true}, ok
}

// wildcard finds the closest ancestor of name that is a wildcard. The name
// itself is not its own ancestor: "*.x" does not cover x.
func (t *Table) wildcard(name []byte) (addrs, bool) {
	if len(t.wildcards) == 0 {
		return addrs{}, false
	}
	for i, c := range name {
		if c != '.' {
			continue
		}
		if e, ok := t.wildcards[string(name[i+1:])]; ok {
			return e, true
		}
	}
	return addrs{}, false
}

func cutSuffix(name []byte, suffix string) ([]byte, bool) {
	n := len(name) - len(suffix)
	if n <= 0 || string(name[n:]) != suffix {
		return nil, false
	}
	return name[:n], true
}

// appendAddrs appends the answer with list's addresses, size bytes each, in
// random order; what the client cannot take is left off, and TC says so.
func appendAddrs(dst []byte, q *query, list []byte, size int, ttl uint32) []byte {
	msg := len(dst)
	dst = appendReply(dst, q, flagAA, rcodeSuccess)
	room := q.limit - (len(dst) - msg)
	if q.edns {
		room -= optLen
	}
	rr := len(toQuestion) + fixedRRLen + size
	n := len(list) / size
	fit := min(n, room/rr)
	if fit < n {
		dst[msg+2] |= flagTC >> 8
	}
	// Which addresses a short answer has is random as well: begin anywhere.
	at := 0
	if n > 1 {
		at = rand.IntN(n)
	}
	first := len(dst)
	for range fit {
		dst = appendRR(dst, q.qtype, ttl, size)
		dst = append(dst, list[at*size:][:size]...)
		if at++; at == n {
			at = 0
		}
	}
	// The records differ in their addresses only: shuffle those in place.
	var tmp [16]byte
	for i := fit - 1; i > 0; i-- {
		a := dst[first+(i+1)*rr-size:][:size]
		b := dst[first+(rand.IntN(i+1)+1)*rr-size:][:size]
		copy(tmp[:], a)
		copy(a, b)
		copy(b, tmp[:size])
	}
	setCount(dst[msg:], sectionAnswer, fit)
	return dst
}
