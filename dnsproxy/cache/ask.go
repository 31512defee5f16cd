package cache

import (
	"bytes"
	"context"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// ask asks for what the cache did not have, or waits for the flight that does so already.
func (h *Cache) ask(ctx context.Context, q *wire.Query, m Miss, via *Flights) wire.Answer {
	key := string(appendKey(nil, q))
	f, first := via.join(key)
	if !first {
		return h.follow(ctx, q, f)
	}
	if h.changes.Load() != m.changes { // another flight may have landed since it was looked up
		if e := h.find([]byte(key)).entry; e != nil {
			if age := e.age(h.now()); age < e.ttl {
				a := e.append(nil, age)
				via.land(key, f, a)
				return a
			}
		}
	}
	return h.lead(ctx, q, m, via, f, key)
}

// lead asks f's question and lands f. If the answer is late, a task waits for it and lands f.
func (h *Cache) lead(ctx context.Context, q *wire.Query, m Miss, via *Flights, f *flight, key string) wire.Answer {
	began := h.health.Clock()
	a := h.fetch(ctx, q, m, via, key)
	late := a.Late
	if late == nil {
		via.land(key, f, a)
		return a
	}
	a.Late, a.Pending = nil, true
	via.Transport.Go(func() {
		a := <-late
		h.settle(ctx, key, a, began)
		via.land(key, f, a)
	})
	return a
}

// follow waits for another's question, as long as q may.
func (h *Cache) follow(ctx context.Context, q *wire.Query, f *flight) wire.Answer {
	select {
	case <-f.landed:
		a := f.answer
		a.Msg = bytes.Clone(a.Msg)
		return a
	case <-time.After(h.next.Patience(q)):
	case <-ctx.Done():
	}
	return wire.Answer{Msg: wire.AppendReply(nil, q, 0, wire.RcodeServFail), Source: wire.SourceFailure, Pending: true}
}

// fetch asks the next handler and keeps what it says.
func (h *Cache) fetch(ctx context.Context, q *wire.Query, m Miss, via *Flights, key string) wire.Answer {
	began := h.health.Clock()
	a, denied := h.deniedAgain(ctx, q, m, via)
	if !denied {
		a = h.next.Serve(ctx, q, &via.Transport)
	}
	if !denied || !wire.Good(a) { // a denial is kept as the answer about A already
		h.settle(ctx, key, a, began)
	}
	return a
}

// settle keeps what became of a question that was asked at a time of the clock of Health.
func (h *Cache) settle(ctx context.Context, key string, a wire.Answer, began int64) {
	switch {
	case a.Late != nil || a.Pending: // not yet known
	case wire.Good(a):
		h.put(key, a)
	case ctx.Err() != nil: // given up here: no failure
	case h.health.EndedAfter(began): // servers are back since it was asked
	default:
		h.fail(key, a)
	}
}

// deniedAgain asks for A before AAAA, in the flight of those that ask for A, if the last
// answer about A was that there is no such name. False: it was not, or is not any more.
func (h *Cache) deniedAgain(ctx context.Context, q *wire.Query, m Miss, via *Flights) (wire.Answer, bool) {
	if m.denial == nil {
		return wire.Answer{}, false
	}
	own := q.WithType(wire.TypeA)
	a := h.ask(ctx, &own, Miss{entry: m.denial, changes: m.changes}, via)
	return a, !wire.Good(a) || wire.Denies(a.Msg)
}

// renew asks q's question, of which denial is known, while nobody waits. It keeps nothing
// of q. False: too many such questions are under way.
func (h *Cache) renew(q *wire.Query, denial *entry, via *Flights) bool {
	select {
	case h.renewals <- struct{}{}:
	default:
		return false
	}
	own := *q
	via.Transport.Leave(func(ctx context.Context) {
		defer func() { <-h.renewals }()
		key := string(appendKey(nil, &own))
		if f, first := via.join(key); first {
			h.lead(ctx, &own, Miss{denial: denial}, via, f, key)
		} else {
			h.health.Returned()
		}
	})
	return true
}

// freshOr asks, and returns the old answer when that fails or takes long; then the
// question goes on, for the next query.
func (h *Cache) freshOr(ctx context.Context, q *wire.Query, m Miss, via *Flights) wire.Answer {
	own, e, began := *q, m.entry, h.health.Clock()
	got := make(chan wire.Answer, 1)
	via.Transport.Go(func() { got <- h.ask(ctx, &own, m, via) })
	select {
	case a := <-got:
		if wire.Good(a) {
			return a
		}
	case <-time.After(h.staleAfter):
		if !h.health.EndedAfter(began) {
			e.failed.Store(h.health.Clock())
		}
	}
	return e.append(nil, e.age(h.now()))
}
