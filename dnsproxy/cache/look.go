package cache

import (
	"context"
	"encoding/binary"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// loopEvery is how often a loop is named in the log.
const loopEvery = time.Minute

// Fast answers from memory, appending to dst; false when that takes waiting. It never
// blocks and keeps neither q nor dst.
func (h *Cache) Fast(q *wire.Query, dst []byte, via *Flights) (wire.Answer, Miss, bool) {
	var buf [maxKey]byte
	m := h.find(appendKey(buf[:0], q))
	if a, ok := h.kept(q, dst, via, m.entry); ok {
		return a, Miss{}, true
	}
	m.denial = h.denial(q)
	if d := m.denial; d != nil {
		if age := d.age(h.now()); age < d.ttl {
			return d.append(dst, age), Miss{}, true
		}
	}
	if m.failure != nil && h.health.Holds(m.failure.at, m.failure.keep) && !h.health.Due() {
		return h.failure(q, dst, m.failure), Miss{}, true
	}
	return wire.Answer{}, m, false
}

// Serve answers q, of which Fast said m, in any case, within ctx. It keeps nothing of q.
func (h *Cache) Serve(ctx context.Context, q *wire.Query, m Miss, via *Flights) wire.Answer {
	if via.Transport.Sent(q) {
		return h.loop(q)
	}
	switch {
	case m.entry != nil && h.stale(m.entry):
		return h.freshOr(ctx, q, m, via)
	case m.failure != nil && h.health.Holds(m.failure.at, m.failure.keep) && !h.health.Recheck():
		return h.failure(q, nil, m.failure)
	}
	return h.ask(ctx, q, m, via)
}

// loop refuses a question of our own that came back, so that the next server
// is asked at once, and says so once in a while.
func (h *Cache) loop(q *wire.Query) wire.Answer {
	now, last := h.health.Clock(), h.looped.Load()
	if (last == 0 || now-last >= int64(loopEvery)) && h.looped.CompareAndSwap(last, now) {
		h.log.Warn("a dns query of this proxy came back to it: a nameserver of resolv.conf leads here")
	}
	return wire.Answer{Msg: wire.AppendReply(nil, q, 0, wire.RcodeServFail), Source: wire.SourceFailure}
}

// kept answers with e, if that may be done without asking anybody first.
func (h *Cache) kept(q *wire.Query, dst []byte, via *Flights, e *entry) (wire.Answer, bool) {
	if e == nil {
		return wire.Answer{}, false
	}
	age := e.age(h.now())
	switch {
	case age < e.ttl:
		if !h.noPrefetch && !via.ExplainOnly && e.hot(age) {
			h.prefetch(q, via, e)
		}
	case !h.held(e, age):
		return wire.Answer{}, false
	case !via.ExplainOnly && h.health.Recheck():
		h.renew(q, h.denial(q), via)
	}
	return e.append(dst, age), true
}

// prefetch has e asked for anew.
func (h *Cache) prefetch(q *wire.Query, via *Flights, e *entry) {
	d := h.denial(q)
	switch {
	case d != nil && d.age(h.now()) < d.ttl: // it answers for e when e has ended
	case h.renew(q, d, via):
		h.prefetches.Add(1)
	default:
		e.renewing.Store(false)
	}
}

// failure answers with the failure of just before.
func (h *Cache) failure(q *wire.Query, dst []byte, f *failureEntry) wire.Answer {
	h.failed.Add(1)
	return wire.Answer{Msg: wire.AppendReply(dst, q, 0, f.rcode), Source: wire.SourceFailure, Server: f.server}
}

// denial returns what is kept about the A of q, which asks for AAAA, if it is that there is no
// such name, of whatever age: there is no AAAA either then (RFC 2308 section 5). Resolvers ask for
// both, with each search domain, and nearly all of those names do not exist: this saves the
// upstream nearly half of an application's questions.
func (h *Cache) denial(q *wire.Query) *entry {
	if q.Type != wire.TypeAAAA {
		return nil
	}
	var buf [maxKey]byte
	key := appendKey(buf[:0], q)
	binary.BigEndian.PutUint16(key, wire.TypeA)
	if e := h.find(key).entry; e != nil && wire.Denies(e.msg) {
		return e
	}
	return nil
}
