package dnsproxy

import (
	"math/rand/v2"
)

// find looks q's name up. A host that is forwarded is found by nobody.
func (t *Table) find(q *query) (match, bool) {
	name := q.wire()
	if len(name) == 1 { // no table has the root
		return match{}, false
	}
	m, ok := t.lookup(name[:len(name)-1])
	return m, ok && (m.reverse != nil || !m.addrs.forwarded())
}

// answer answers the types that a table has of a name it knows. The others
// are for the upstream to answer. Who asks for ANY gets records of one type
// (RFC 8482 section 4.1): the upstream would deny those that there are.
func (m match) answer(q *query, dst []byte, ttl uint32) (answer, bool) {
	var list []byte
	size := 4
	switch {
	case m.reverse != nil && (q.qtype == typePTR || q.qtype == typeANY):
		return answer{msg: appendPTR(dst, q, m.reverse, ttl)}, true
	case m.reverse != nil:
		return answer{}, false
	case m.base != nil && (q.qtype == typeCNAME || q.qtype == typeANY):
		msg, _ := appendAlias(dst, q, m.base, ttl)
		return answer{msg: msg}, true
	case q.qtype == typeA || q.qtype == typeANY && len(m.addrs.v4()) > 0:
		list = m.addrs.v4()
	case q.qtype == typeAAAA || q.qtype == typeANY:
		list, size = m.addrs.v6(), 16
	default:
		return answer{}, false
	}
	if len(list) == 0 {
		return answer{msg: appendNodata(dst, q, m.base, ttl)}, true
	}
	return answer{msg: appendRecords(dst, q, m.base, list, size, ttl)}, true
}

// appendPTR answers with the first of a VIP's hosts.
func appendPTR(dst []byte, q *query, hosts []byte, ttl uint32) []byte {
	msg := len(dst)
	n, _ := skipName(hosts, 0)
	dst = appendReply(dst, q, flagAA, rcodeSuccess)
	dst = appendRR(dst, toQuestion, typePTR, ttl, n)
	dst = append(dst, hosts[:n]...)
	setCount(dst[msg:], sectionAnswer, 1)
	return dst
}

// appendRecords appends the answer with list's addresses, size bytes each, in
// random order, behind the CNAME to base (nil: none); what the client cannot take
// is left off, and TC says so.
func appendRecords(dst []byte, q *query, base, list []byte, size int, ttl uint32) []byte {
	msg := len(dst)
	dst, owner := appendAlias(dst, q, base, ttl)
	room := q.limit - (len(dst) - msg)
	if q.edns {
		room -= optLen
	}
	rr := pointerLen + fixedRRLen + size
	typ := uint16(typeA)
	if size > 4 {
		typ = typeAAAA
	}
	n := len(list) / size
	fit := min(n, max(room, 0)/rr)
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
		dst = appendRR(dst, owner, typ, ttl, size)
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
	if base != nil {
		fit++ // the CNAME
	}
	setCount(dst[msg:], sectionAnswer, fit)
	return dst
}

// host is the table's name that matched, of a wildcard with its star.
func (m match) host() string {
	if m.reverse != nil {
		n, _ := skipName(m.reverse, 0)
		return dotted(m.reverse[:n-1])
	}
	if m.wildcard {
		return "*." + dotted(m.owner)
	}
	return dotted(m.owner)
}

// domain is the domain that was cut off q's name, "" when none was.
func (m match) domain(q *query) string {
	if m.base == nil {
		return ""
	}
	name := q.wire()
	return dotted(name[len(m.base) : len(name)-1])
}

// vip says whether the host's addresses are virtual.
func (m match) vip() bool { return m.reverse != nil || m.addrs.vip() }
