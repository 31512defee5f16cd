package table

import (
	"bytes"
	"net/netip"
	"slices"
	"sync/atomic"

	"understudy.mesh/dnsproxy/internal/wire"
)

// Localhost answers the names that always are this host's: localhost, all below it, and
// what resolvers make of these with a search domain. They need no server and no table
// (RFC 6761 section 6.3), and have no type but addresses.
type Localhost struct {
	name   []byte // in wire form without the root
	addrs  addrs  // 127.0.0.1 and ::1
	ttl    uint32
	search atomic.Pointer[[][]byte] // resolv.conf's search domains, in wire form without the root
}

// NewLocalhost returns the names of this host, with their answers' TTL in seconds.
func NewLocalhost(ttl uint32) *Localhost {
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	h := &Localhost{name: []byte("\x09localhost"), addrs: appendAddrs(nil, loopback, false), ttl: ttl}
	h.Searched(nil)
	return h
}

// Searched takes resolv.conf's search domains.
func (h *Localhost) Searched(domains []string) {
	var list [][]byte
	for _, domain := range domains {
		if wire, ok := wire.AppendName(nil, domain); ok {
			list = append(list, wire[:len(wire)-1])
		}
	}
	h.search.Store(&list)
}

// Answer is what q, in which find found m, is answered.
func (h *Localhost) Answer(q *wire.Query, m Match, dst []byte) wire.Answer {
	a, ok := m.Answer(q, dst, h.ttl)
	if !ok {
		a.Msg = wire.AppendNodata(dst, q, m.base, h.ttl)
	}
	return a
}

// Find looks q's name up: whether it is this host's, by itself or below a search domain.
func (h *Localhost) Find(q *wire.Query) (Match, bool) {
	base, ok := h.has(q.Name())
	return Match{owner: h.name, addrs: h.addrs, base: base}, ok
}

// has says whether a lower-case name in wire form is this host's; base is the name
// without a search domain, nil if it has none.
func (h *Localhost) has(name []byte) (base []byte, ok bool) {
	name = name[:len(name)-1] // the root
	for off := 0; off < len(name); off += 1 + int(name[off]) {
		if !bytes.HasPrefix(name[off:], h.name) {
			continue
		}
		end := off + len(h.name)
		if end == len(name) {
			return nil, true
		}
		if slices.ContainsFunc(*h.search.Load(), func(domain []byte) bool { return bytes.Equal(name[end:], domain) }) {
			return name[:end], true
		}
	}
	return nil, false
}
