package dnsproxy

import (
	"bytes"
	"net/netip"
	"sync/atomic"
)

// localhost answers the names that are this host's whoever asks and whatever anybody
// says of them: localhost, all below it, and what resolvers make of these with a search
// domain. They need no server and no table (RFC 6761 section 6.3), and have no type but
// addresses.
type localhost struct {
	name  []byte // in wire form without the root
	addrs addrs  // 127.0.0.1 and ::1
	ttl   uint32
	below atomic.Pointer[[][]byte] // name in each search domain
}

func newLocalhost(ttl uint32) *localhost {
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	h := &localhost{name: []byte("\x09localhost"), addrs: appendAddrs(nil, loopback, false), ttl: ttl}
	h.searched(nil)
	return h
}

// searched is told resolv.conf's search domains.
func (h *localhost) searched(domains []string) {
	list := make([][]byte, 0, len(domains))
	for _, domain := range domains {
		if wire, ok := appendName(bytes.Clone(h.name), domain); ok {
			list = append(list, wire[:len(wire)-1])
		}
	}
	h.below.Store(&list)
}

// fast answers q if its name is this host's.
func (h *localhost) fast(q *query, dst []byte) (answer, bool) {
	m, ok := h.find(q.wire())
	if !ok {
		return answer{}, false
	}
	a, ok := fromTable(m, q, dst, h.ttl)
	if !ok {
		a.msg = appendNodata(dst, q, m.base, h.ttl)
	}
	return a, true
}

// find says whether a lower-case name in wire form is this host's.
func (h *localhost) find(name []byte) (match, bool) {
	name = name[:len(name)-1] // the root
	if within(name, h.name) {
		return match{owner: h.name, addrs: h.addrs}, true
	}
	for _, full := range *h.below.Load() {
		if within(name, full) {
			base := name[:len(name)-len(full)+len(h.name)]
			return match{owner: h.name, addrs: h.addrs, base: base}, true
		}
	}
	return match{}, false
}

// within says whether name is domain or below it.
func within(name, domain []byte) bool {
	return bytes.Equal(name, domain) || cutDomain(name, domain) != nil
}
