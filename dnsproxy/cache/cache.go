// Package cache owns the answers that upstreams have given, for as long as they may be
// kept, and the failures of just before. It asks the upstreams for what it does not have:
// once for all who ask the same at one time.
package cache

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
)

const (
	// Defaults of the contract.
	defaultEntries = 10_000
	defaultBytes   = 8 << 20
)

// Cache is the second handler: it keeps what the next one answered for as long
// as that may be kept, and asks once for all who ask the same at one time. What
// is asked for often it asks for again before its end; what has ended it gives
// all the same while no server answers (RFC 8767).
type Cache struct {
	next   *upstream.Forwarder
	health *upstream.Health
	now    func() time.Time
	seed   maphash.Seed
	log    *slog.Logger

	prefetches, failed    atomic.Uint64 // entries asked for before their end; kept failures given
	renewals              chan struct{} // one slot for each question that no query waits for
	looped                atomic.Int64  // when a question last came back (see Health.Clock)
	staleAfter, staleHold time.Duration // the constants, but in tests
	longest, clusterStale time.Duration // see Config.Stale
	cluster               string        // the cluster's domain in wire form, "" when there is none
	off, noPrefetch       bool

	changes  atomic.Uint64 // how often something else was kept
	mu       sync.Mutex
	lru      *simplelru.LRU[uint64, *entry] // by hash; the entry has the key
	bytes    int64
	maxBytes int64
	failures failureCache
}

// Config is what New needs.
type Config struct {
	Entries int   // 0: 10,000
	Bytes   int64 // 0: 8 MiB

	// Stale is how long beyond its end an answer may be given while no server
	// answers: 0: an hour; below 0: not at all. For names under
	// ClusterDomain, if there is one, it is a minute at most.
	Stale         time.Duration
	ClusterDomain string

	Off, NoPrefetch bool // keep nothing; ask for nothing before its end
	Log             *slog.Logger
	Now             func() time.Time
}

// New returns an empty cache before next.
func New(c Config, next *upstream.Forwarder) (*Cache, error) {
	c.Entries, c.Bytes, c.Stale = cmp.Or(c.Entries, defaultEntries), cmp.Or(c.Bytes, defaultBytes), cmp.Or(c.Stale, defaultStale)
	h := &Cache{
		next: next, health: next.Health, now: c.Now, seed: maphash.MakeSeed(), log: c.Log, maxBytes: c.Bytes,
		renewals: make(chan struct{}, maxRenewals), failures: newFailureCache(),
		staleAfter: staleAfter, staleHold: staleHold,
		longest: max(c.Stale, 0), clusterStale: min(max(c.Stale, 0), clusterStale),
		off: c.Off, noPrefetch: c.NoPrefetch,
	}
	if wire, ok := wire.AppendName(nil, wire.Normal(c.ClusterDomain)); ok {
		h.cluster = string(wire)
	}
	lru, err := simplelru.NewLRU(c.Entries, func(_ uint64, e *entry) { h.bytes -= e.size() })
	h.lru = lru
	return h, err
}

const (
	// maxKey is the longest key: a name, type, class and the flags.
	maxKey = wire.MaxWireName + keyFixed
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
func appendKey(dst []byte, q *wire.Query) []byte {
	var flags byte
	if q.DO {
		flags |= keyDO
	}
	if q.Has(wire.FlagCD) {
		flags |= keyCD
	}
	if q.Has(wire.FlagRD) {
		flags |= keyRD
	}
	dst = binary.BigEndian.AppendUint16(dst, q.Type)
	dst = binary.BigEndian.AppendUint16(dst, q.Class)
	dst = append(dst, flags)
	return append(dst, q.Name()...)
}

// Miss is what the cache had of a question that it could not answer at once. Serve goes on
// from there, so that the cache is not asked again.
type Miss struct {
	entry   *entry        // of the question, past its end; nil: none
	failure *failureEntry // where there is no entry; nil: none
	denial  *entry        // see Cache.denial
	changes uint64        // of the cache, until then
}

// find returns the entry for key, of whatever age, or else the last failure.
func (h *Cache) find(key []byte) Miss {
	hash := maphash.Bytes(h.seed, key)
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.lru.Get(hash); ok && e.key == string(key) {
		return Miss{entry: e, changes: h.changes.Load()}
	}
	return Miss{failure: h.failures.get(hash, key), changes: h.changes.Load()}
}

// put keeps a, if it may be kept. In any case it takes the place of what was
// kept before: nothing old is given once there is something new.
func (h *Cache) put(key string, a wire.Answer) {
	if a.Source != wire.SourceUpstream {
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

// fail notes that nobody could answer: in the entry, if there is one, which is then
// given beyond its end, or else as a failure kept for a short time.
func (h *Cache) fail(key string, a wire.Answer) {
	if h.off {
		return
	}
	hash := maphash.String(h.seed, key)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.health.Clock()
	if e, ok := h.lru.Peek(hash); ok && e.key == key && h.usable(e) {
		e.failed.Store(now)
		return
	}
	h.failures.add(hash, &failureEntry{key: key, rcode: wire.RcodeOf(a.Msg), server: a.Server, at: now})
}

// keep adds e in place of an older answer to the same question. False: it does
// not fit or may not be kept, or what is there is as new.
func (h *Cache) keep(e *entry) bool {
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
	h.changes.Add(1)
	for h.bytes > h.maxBytes {
		h.lru.RemoveOldest()
	}
	return true
}

// Stats is what a cache holds and has done.
type Stats struct {
	Entries    int
	Bytes      int64  // the entries' estimated size
	Prefetches uint64 // entries asked for again before their end, because they are hot
	Failures   uint64 // queries answered from a failure of just before
}

// Stats returns the numbers as they are now.
func (h *Cache) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Stats{Entries: h.lru.Len(), Bytes: h.bytes, Prefetches: h.prefetches.Load(), Failures: h.failed.Load()}
}
