package cache

import (
	"context"
	"strings"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// hotHits is how often an answer must have been given to be asked for
	// again before its end, and hotShare the last part of its life in which
	// that happens: one tenth, as in unbound (prefetch in unbound.conf(5)).
	hotHits  = 3
	hotShare = 10

	// maxRenewals bounds the questions that no query waits for.
	maxRenewals = 64

	// staleAfter is how long a query waits for a new answer where there is an
	// old one: the client response timer of RFC 8767 section 5.
	staleAfter = 1800 * time.Millisecond

	// staleHold is how long after a failure the old answer is given at once:
	// the failure recheck timer of RFC 8767 section 5.
	staleHold = 30 * time.Second
)

// hot says once whether e, asked for at an age before its end, is worth to be
// asked for again now.
func (e *entry) hot(age time.Duration) bool {
	hits := e.hits.Add(1)
	return hits >= hotHits && !e.counted && e.ttl-age <= e.ttl/hotShare && !e.renewing.Load() && e.renewing.CompareAndSwap(false, true)
}

// prefetch has e asked for anew.
func (h *Cache) prefetch(q *wire.Query, via *Flights, e *entry) {
	if h.renew(q, via) {
		h.prefetches.Add(1)
	} else {
		e.renewing.Store(false)
	}
}

// renew asks q's question while nobody waits. It keeps nothing of q. False:
// too many such questions are under way.
func (h *Cache) renew(q *wire.Query, via *Flights) bool {
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
			h.lead(ctx, &own, via, f, key)
		} else {
			h.outage.Returned()
		}
	})
	return true
}

// beyond is how long after its end e may be given while no server answers.
func (h *Cache) beyond(e *entry) time.Duration {
	if h.cluster != "" && strings.HasSuffix(e.key, h.cluster) {
		return h.clusterStale
	}
	return h.longest
}

// usable says whether e may be given at all when no server answers.
func (h *Cache) usable(e *entry) bool { return e.age(h.now()) < e.ttl+h.beyond(e) }

// stale says whether e has ended and may yet be given.
func (h *Cache) stale(e *entry) bool {
	age := e.age(h.now())
	return age >= e.ttl && age < e.ttl+h.beyond(e)
}

// held says whether e, past its end, is given without asking first: because to
// ask has failed a short time ago, or no server answers anything.
func (h *Cache) held(e *entry, age time.Duration) bool {
	return age < e.ttl+h.beyond(e) && (h.outage.AllFail() || h.outage.Holds(e.failed.Load(), h.staleHold))
}

// freshOr asks, and returns the old answer e when that fails or takes long;
// the question goes on then, for the next who asks.
func (h *Cache) freshOr(ctx context.Context, e *entry, q *wire.Query, via *Flights, key string) wire.Answer {
	own, began := *q, h.outage.Clock()
	got := make(chan wire.Answer, 1)
	via.Transport.Go(func() { got <- h.ask(ctx, &own, via, key) })
	timer := time.NewTimer(h.staleAfter)
	defer timer.Stop()
	select {
	case a := <-got:
		if wire.Good(a) {
			return a
		}
	case <-timer.C:
		if !h.outage.EndedAfter(began) {
			e.failed.Store(h.outage.Clock())
		}
	}
	return e.append(nil, e.age(h.now()))
}
