package cache

import (
	"context"
	"encoding/binary"

	"understudy.mesh/dnsproxy/internal/wire"
)

// Resolvers ask for A and AAAA together, and with each search domain; nearly all of
// those names do not exist. That A does not says so of AAAA, too (RFC 2308 section 5),
// which saves the upstream nearly half of what an application's lookups cost it.

// denied answers a question for AAAA with what is kept about A, where that is that
// there is no such name.
func (h *Cache) denied(q *wire.Query, dst []byte) (wire.Answer, bool) {
	e := h.denial(q)
	if e == nil {
		return wire.Answer{}, false
	}
	age := e.age(h.now())
	if age >= e.ttl {
		return wire.Answer{}, false
	}
	return e.append(dst, age), true
}

func (h *Cache) isDenied(q *wire.Query) bool {
	e := h.denial(q)
	return e != nil && e.age(h.now()) < e.ttl
}

// deniedAgain asks for A before AAAA, together with whoever asks for A, where there
// was no such name when somebody last did. False: it is there now, or was then.
func (h *Cache) deniedAgain(ctx context.Context, q *wire.Query, via *Flights) (wire.Answer, bool) {
	if h.denial(q) == nil {
		return wire.Answer{}, false
	}
	own := q.WithType(wire.TypeA)
	a := h.ask(ctx, &own, via, string(appendKey(nil, &own)))
	return a, !wire.Good(a) || wire.Denies(a.Msg)
}

// denial returns what is kept about the A of q, which asks for AAAA, if it is that
// there is no such name, of whatever age.
func (h *Cache) denial(q *wire.Query) *entry {
	if q.Type != wire.TypeAAAA {
		return nil
	}
	var buf [maxKey]byte
	key := appendKey(buf[:0], q)
	binary.BigEndian.PutUint16(key, wire.TypeA)
	if e, _ := h.find(key); e != nil && wire.Denies(e.msg) {
		return e
	}
	return nil
}
