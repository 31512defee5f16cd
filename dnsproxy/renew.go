package dnsproxy

import (
	"context"
	"strings"
	"time"
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
func (h *cache) prefetch(q *query, via *flights, e *entry) {
	if h.renew(q, via) {
		h.prefetches.Add(1)
	} else {
		e.renewing.Store(false)
	}
}

// renew asks q's question while nobody waits. It keeps nothing of q. False:
// too many such questions are under way.
func (h *cache) renew(q *query, via *flights) bool {
	select {
	case h.renewals <- struct{}{}:
	default:
		return false
	}
	own := *q
	via.transport.leave(func(ctx context.Context) {
		defer func() { <-h.renewals }()
		key := string(appendKey(nil, &own))
		if f, first := via.join(key); first {
			h.lead(ctx, &own, via, f, key)
		} else {
			h.outage.returned()
		}
	})
	return true
}

// beyond is how long after its end e may be given while no server answers.
func (h *cache) beyond(e *entry) time.Duration {
	if h.cluster != "" && strings.HasSuffix(e.key, h.cluster) {
		return h.clusterStale
	}
	return h.longest
}

// usable says whether e may be given at all when no server answers.
func (h *cache) usable(e *entry) bool { return e.age(h.now()) < e.ttl+h.beyond(e) }

// stale says whether e has ended and may yet be given.
func (h *cache) stale(e *entry) bool {
	age := e.age(h.now())
	return age >= e.ttl && age < e.ttl+h.beyond(e)
}

// held says whether e, past its end, is given without asking first: because to
// ask has failed a short time ago, or no server answers anything.
func (h *cache) held(e *entry, age time.Duration) bool {
	return age < e.ttl+h.beyond(e) && (h.outage.allFail() || h.outage.holds(e.failed.Load(), h.staleHold))
}

// freshOr asks, and returns the old answer e when that fails or takes long;
// the question goes on then, for the next who asks.
func (h *cache) freshOr(ctx context.Context, e *entry, q *query, via *flights, key string) answer {
	own, began := *q, h.outage.clock()
	got := make(chan answer, 1)
	via.transport.run(func() { got <- h.ask(ctx, &own, via, key) })
	timer := time.NewTimer(h.staleAfter)
	defer timer.Stop()
	select {
	case a := <-got:
		if good(a) {
			return a
		}
	case <-timer.C:
		if !h.outage.endedAfter(began) {
			e.failed.Store(h.outage.clock())
		}
	}
	return e.append(nil, e.age(h.now()))
}
