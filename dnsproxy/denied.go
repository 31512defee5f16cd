package dnsproxy

import (
	"context"
	"encoding/binary"
)

// Resolvers ask for A and AAAA together, and with each search domain; nearly all of
// those names do not exist. That A does not says so of AAAA, too (RFC 2308 section 5),
// which saves the upstream nearly half of what an application's lookups cost it.

// denied answers a question for AAAA with what is kept about A, where that is that
// there is no such name.
func (h *cache) denied(q *query, dst []byte) (answer, bool) {
	e := h.denial(q)
	if e == nil {
		return answer{}, false
	}
	age := e.age(h.now())
	if age >= e.ttl {
		return answer{}, false
	}
	return e.append(dst, age), true
}

func (h *cache) isDenied(q *query) bool {
	e := h.denial(q)
	return e != nil && e.age(h.now()) < e.ttl
}

// deniedAgain asks for A before AAAA, together with whoever asks for A, where there
// was no such name when somebody last did. False: it is there now, or was then.
func (h *cache) deniedAgain(ctx context.Context, q *query, via *flights) (answer, bool) {
	if h.denial(q) == nil {
		return answer{}, false
	}
	own := q.withType(typeA)
	a := h.ask(ctx, &own, via, string(appendKey(nil, &own)))
	return a, !good(a) || denies(a.msg)
}

// denial returns what is kept about the A of q, which asks for AAAA, if it is that
// there is no such name, of whatever age.
func (h *cache) denial(q *query) *entry {
	if q.qtype != typeAAAA {
		return nil
	}
	var buf [maxKey]byte
	key := appendKey(buf[:0], q)
	binary.BigEndian.PutUint16(key, typeA)
	if e, _ := h.find(key); e != nil && denies(e.msg) {
		return e
	}
	return nil
}
