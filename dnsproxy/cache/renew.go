package cache

import (
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
	return age < e.ttl+h.beyond(e) && (h.health.AllFail() || h.health.Holds(e.failed.Load(), h.staleHold))
}
