package table

import (
	"math/rand/v2"

	"understudy.mesh/dnsproxy/internal/wire"
)

// Find looks q's name up. It does not find a host that is forwarded.
func (t *Table) Find(q *wire.Query) (Match, bool) {
	name := q.Name()
	if len(name) == 1 { // no table has the root
		return Match{}, false
	}
	m, ok := t.lookup(name[:len(name)-1])
	return m, ok && (m.reverse != nil || !m.addrs.forwarded())
}

// Answer answers the types that a table has of a name it knows. The others
// are for the upstream to answer. ANY is answered with records of one type
// (RFC 8482 section 4.1): the upstream would deny those that there are.
func (m Match) Answer(q *wire.Query, dst []byte, ttl uint32) (wire.Answer, bool) {
	var list []byte
	size := 4
	switch {
	case m.reverse != nil && (q.Type == wire.TypePTR || q.Type == wire.TypeANY):
		return wire.Answer{Msg: appendPTR(dst, q, m.reverse, ttl)}, true
	case m.reverse != nil:
		return wire.Answer{}, false
	case m.base != nil && (q.Type == wire.TypeCNAME || q.Type == wire.TypeANY):
		msg, _ := wire.AppendAlias(dst, q, m.base, ttl)
		return wire.Answer{Msg: msg}, true
	case q.Type == wire.TypeA || q.Type == wire.TypeANY && len(m.addrs.v4()) > 0:
		list = m.addrs.v4()
	case q.Type == wire.TypeAAAA || q.Type == wire.TypeANY:
		list, size = m.addrs.v6(), 16
	default:
		return wire.Answer{}, false
	}
	if len(list) == 0 {
		return wire.Answer{Msg: wire.AppendNodata(dst, q, m.base, ttl)}, true
	}
	return wire.Answer{Msg: appendRecords(dst, q, m.base, list, size, ttl)}, true
}

// appendPTR answers with the first of a VIP's hosts.
func appendPTR(dst []byte, q *wire.Query, hosts []byte, ttl uint32) []byte {
	msg := len(dst)
	n, _ := wire.SkipName(hosts, 0)
	dst = wire.AppendReply(dst, q, wire.FlagAA, wire.RcodeSuccess)
	dst = wire.AppendRR(dst, wire.ToQuestion, wire.TypePTR, ttl, n)
	dst = append(dst, hosts[:n]...)
	wire.SetCount(dst[msg:], wire.SectionAnswer, 1)
	return dst
}

// appendRecords appends the answer with list's addresses, size bytes each, in
// random order, behind the CNAME to base (nil: none); what the client cannot take
// is left off, and TC says so.
func appendRecords(dst []byte, q *wire.Query, base, list []byte, size int, ttl uint32) []byte {
	msg := len(dst)
	dst, owner := wire.AppendAlias(dst, q, base, ttl)
	room := q.Limit - (len(dst) - msg)
	if q.EDNS {
		room -= wire.OptLen
	}
	rr := wire.PointerLen + wire.FixedRRLen + size
	typ := uint16(wire.TypeA)
	if size > 4 {
		typ = wire.TypeAAAA
	}
	n := len(list) / size
	fit := min(n, max(room, 0)/rr)
	if fit < n {
		dst[msg+2] |= wire.FlagTC >> 8
	}
	// Which addresses a short answer has is random as well: begin anywhere.
	at := 0
	if n > 1 {
		at = rand.IntN(n)
	}
	first := len(dst)
	for range fit {
		dst = wire.AppendRR(dst, owner, typ, ttl, size)
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
	wire.SetCount(dst[msg:], wire.SectionAnswer, fit)
	return dst
}

// Host is the table's name that matched, of a wildcard with its star.
func (m Match) Host() string {
	if m.reverse != nil {
		n, _ := wire.SkipName(m.reverse, 0)
		return wire.Dotted(m.reverse[:n-1])
	}
	if m.Wildcard {
		return "*." + wire.Dotted(m.owner)
	}
	return wire.Dotted(m.owner)
}

// Domain is the domain that was cut off q's name, "" when none was.
func (m Match) Domain(q *wire.Query) string {
	if m.base == nil {
		return ""
	}
	name := q.Name()
	return wire.Dotted(name[len(m.base) : len(name)-1])
}

// Vip says whether the host's addresses are virtual.
func (m Match) Vip() bool { return m.reverse != nil || m.addrs.vip() }
