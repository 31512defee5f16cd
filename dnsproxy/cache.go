package dnsproxy

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// Defaults of the contract.
	defaultCacheEntries = 10_000
	defaultCacheBytes   = 8 << 20

	// loopEvery is how often a loop is named in the log.
	loopEvery = time.Minute
)

// cache is the second handler: it keeps what the next one answered for as long
// as that may be kept, and asks once for all who ask the same at one time. What
// is asked for often it asks for again before its end; what has ended it gives
// all the same while no server answers (RFC 8767).
type cache struct {
	next   *forwarder
	outage *outage
	now    func() time.Time
	seed   maphash.Seed
	log    *slog.Logger

	prefetches, failed    atomic.Uint64 // entries asked for before their end; kept failures given
	renewals              chan struct{} // one slot for each question that no query waits for
	looped                atomic.Int64  // when a question last came back (see outage.clock)
	staleAfter, staleHold time.Duration // the constants, but in tests
	longest, clusterStale time.Duration // see Config.Stale
	cluster               string        // the cluster's domain in wire form, "" when there is none
	off, noPrefetch       bool

	mu       sync.Mutex
	lru      *simplelru.LRU[uint64, *entry] // by hash; the entry has the key
	bytes    int64
	maxBytes int64
	failures failureCache
}

// cacheConfig is what newCache needs.
type cacheConfig struct {
	Entries int   // 0: 10,000
	Bytes   int64 // 0: 8 MiB

	// Stale is how long beyond its end an answer may be given while no server
	// answers: 0: DefaultStale; below 0: not at all. For names under
	// ClusterDomain, if there is one, it is ClusterStale at most.
	Stale         time.Duration
	ClusterDomain string

	Off, NoPrefetch bool // keep nothing; ask for nothing before its end
	Log             *slog.Logger
	Now             func() time.Time
}

func newCache(c cacheConfig, next *forwarder) (*cache, error) {
	c.Entries, c.Bytes, c.Stale = cmp.Or(c.Entries, defaultCacheEntries), cmp.Or(c.Bytes, defaultCacheBytes), cmp.Or(c.Stale, DefaultStale)
	h := &cache{
		next: next, outage: next.outage, now: c.Now, seed: maphash.MakeSeed(), log: c.Log, maxBytes: c.Bytes,
		renewals: make(chan struct{}, maxRenewals), failures: newFailureCache(),
		staleAfter: staleAfter, staleHold: staleHold,
		longest: max(c.Stale, 0), clusterStale: min(max(c.Stale, 0), ClusterStale),
		off: c.Off, noPrefetch: c.NoPrefetch,
	}
	if wire, ok := appendName(nil, normalName(c.ClusterDomain)); ok {
		h.cluster = string(wire)
	}
	lru, err := simplelru.NewLRU(c.Entries, func(_ uint64, e *entry) { h.bytes -= e.size() })
	h.lru = lru
	return h, err
}

const (
	// maxKey is the longest key: a name, type, class and the flags.
	maxKey = maxWireName + keyFixed
	// keyFixed is what stands before the name.
	keyFixed = 5

	// The flags are those of the query.
	keyDO = 1 << 0
	keyCD = 1 << 1
	keyRD = 1 << 2
)

// appendKey appends what tells answers apart: name, type, class, and the bits
// of the query that change what a server says: DO brings signatures; CD those
// that are wrong; an answer to a query without RD may be a mere referral.
//
// The type is part of the key of an NXDOMAIN, too, though by RFC 2308 section 5
// it denies every type: servers that are told to hide IPv6 deny the name when
// its AAAA is asked for, and must not take the A record with it. The other way
// round it is believed, see denied.
func appendKey(dst []byte, q *query) []byte {
	var flags byte
	if q.do {
		flags |= keyDO
	}
	if q.has(flagCD) {
		flags |= keyCD
	}
	if q.has(flagRD) {
		flags |= keyRD
	}
	dst = binary.BigEndian.AppendUint16(dst, q.qtype)
	dst = binary.BigEndian.AppendUint16(dst, q.qclass)
	dst = append(dst, flags)
	return append(dst, q.wire()...)
}

func (h *cache) fast(q *query, dst []byte, via *flights) (answer, bool) {
	var buf [maxKey]byte
	e, f := h.find(appendKey(buf[:0], q))
	if a, ok := h.kept(q, dst, via, e); ok {
		return a, true
	}
	if a, ok := h.denied(q, dst); ok {
		return a, true
	}
	if e == nil && h.outage.holds(f.at, f.keep) && !h.outage.due() {
		return h.failure(q, dst, f), true
	}
	return answer{}, false
}

// kept answers with e, if that may be done without asking anybody first.
func (h *cache) kept(q *query, dst []byte, via *flights, e *entry) (answer, bool) {
	if e == nil {
		return answer{}, false
	}
	age := e.age(h.now())
	switch {
	case age < e.ttl:
		if !h.noPrefetch && e.hot(age) && !h.isDenied(q) {
			h.prefetch(q, via, e)
		}
	case !h.held(e, age):
		return answer{}, false
	case h.outage.recheck():
		h.renew(q, via)
	}
	return e.append(dst, age), true
}

// failure answers with the failure of just before.
func (h *cache) failure(q *query, dst []byte, f failureEntry) answer {
	h.failed.Add(1)
	return answer{msg: appendReply(dst, q, 0, f.rcode), source: SourceFailure, server: f.server}
}

// find returns the entry for key, of whatever age, or else the last failure.
func (h *cache) find(key []byte) (*entry, failureEntry) {
	hash := maphash.Bytes(h.seed, key)
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.lru.Get(hash); ok && e.key == string(key) {
		return e, failureEntry{}
	}
	f, _ := h.failures.get(hash, key)
	return nil, f
}

func (h *cache) serve(ctx context.Context, q *query, via *flights) answer {
	if via.transport.sentIt(q) {
		return h.loop(q)
	}
	key := appendKey(nil, q)
	e, f := h.find(key)
	if a, ok := h.kept(q, nil, via, e); ok {
		return a
	}
	switch {
	case e != nil && h.stale(e):
		return h.freshOr(ctx, e, q, via, string(key))
	case e == nil && h.outage.holds(f.at, f.keep) && !h.outage.recheck():
		return h.failure(q, nil, f)
	}
	return h.ask(ctx, q, via, string(key))
}

// loop refuses a question of our own that came back, so that the next server
// is asked at once, and says so once in a while.
func (h *cache) loop(q *query) answer {
	now, last := h.outage.clock(), h.looped.Load()
	if (last == 0 || now-last >= int64(loopEvery)) && h.looped.CompareAndSwap(last, now) {
		h.log.Warn("a dns query of this proxy came back to it: a nameserver of resolv.conf leads here")
	}
	return answer{msg: appendReply(nil, q, 0, rcodeServFail), source: SourceFailure}
}

// ask returns what the cache has by now, or asks.
func (h *cache) ask(ctx context.Context, q *query, via *flights, key string) answer {
	f, first := via.join(key)
	if !first {
		return h.follow(ctx, q, f)
	}
	// Another flight may have landed since fast looked.
	if e, _ := h.find([]byte(key)); e != nil {
		if age := e.age(h.now()); age < e.ttl {
			a := e.append(nil, age)
			via.land(key, f, a)
			return a
		}
	}
	return h.lead(ctx, q, via, f, key)
}

// fetch asks the next handler and keeps what it says.
func (h *cache) fetch(ctx context.Context, q *query, via *flights, key string) answer {
	began := h.outage.clock()
	a, denied := h.deniedAgain(ctx, q, via)
	if !denied {
		a = h.next.serve(ctx, q, &via.transport)
	}
	if !denied || !good(a) { // that is kept as what it is, the answer about A
		h.settle(ctx, key, a, began)
	}
	return a
}

// settle keeps what became of a question that was asked at a time of the outage's clock.
func (h *cache) settle(ctx context.Context, key string, a answer, began int64) {
	switch {
	case a.late != nil || a.pending: // not yet known
	case good(a):
		h.put(key, a)
	case ctx.Err() != nil: // it was we who gave up
	case h.outage.endedAfter(began): // what failed then says nothing about now
	default:
		h.fail(key, a)
	}
}

// put keeps a, if it may be kept. In any case it takes the place of what was
// kept before: nothing old is given once there is something new.
func (h *cache) put(key string, a answer) {
	if a.source != SourceUpstream {
		return
	}
	if e := newEntry(key, a, h.now()); e != nil && h.keep(e) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	hash := maphash.String(h.seed, key)
	if last, ok := h.lru.Peek(hash); ok && last.key == key && h.stale(last) {
		h.lru.Remove(hash)
	}
	h.failures.remove(hash)
}

// fail notes that nobody could answer: at the entry that there is, so that it
// is given beyond its end, or else for a short time.
func (h *cache) fail(key string, a answer) {
	if h.off {
		return
	}
	hash := maphash.String(h.seed, key)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.outage.clock()
	if e, ok := h.lru.Peek(hash); ok && e.key == key && h.usable(e) {
		e.failed.Store(now)
		return
	}
	h.failures.add(hash, failureEntry{key: key, rcode: rcodeOf(a.msg), server: a.server, at: now})
}

// keep adds e in place of an older answer to the same question. False: it does
// not fit or may not be kept, or what is there is as new.
func (h *cache) keep(e *entry) bool {
	if h.off || e.size() > h.maxBytes {
		return false
	}
	hash := maphash.String(h.seed, e.key)
	h.mu.Lock()
	defer h.mu.Unlock()
	last, ok := h.lru.Peek(hash)
	if !ok || last.key != e.key {
		last = nil
	}
	if last != nil && !last.stored.Before(e.stored) || !e.inherit(last) {
		return false
	}
	h.lru.Remove(hash) // Add would not tell onEvict about the one it replaces
	h.failures.remove(hash)
	h.bytes += e.size()
	h.lru.Add(hash, e)
	for h.bytes > h.maxBytes {
		h.lru.RemoveOldest()
	}
	return true
}

// cacheUse is what a cache holds and has done.
type cacheUse struct {
	Entries    int
	Bytes      int64  // the entries' estimated size
	Prefetches uint64 // entries asked for again before their end, because they are hot
	Failures   uint64 // queries answered from a failure of just before
}

// use returns the numbers as they are now.
func (h *cache) use() cacheUse {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cacheUse{Entries: h.lru.Len(), Bytes: h.bytes, Prefetches: h.prefetches.Load(), Failures: h.failed.Load()}
}
