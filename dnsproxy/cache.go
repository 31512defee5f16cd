package dnsproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// Defaults of the contract.
	defaultCacheEntries = 10_000
	defaultCacheBytes   = 8 << 20

	// maxPositive and maxNegative bound how long an answer is kept, not the
	// TTL that is served: a typing error in a zone must not outlive the
	// pod. A day is what most resolvers keep at most; three hours is RFC
	// 2308 section 5 on negative answers.
	maxPositive = 24 * time.Hour
	maxNegative = 3 * time.Hour

	// entryOverhead is about what an entry costs beside its bytes: the
	// struct, the LRU's element and its place in the map.
	entryOverhead = 256
)

// cache is the second handler: it keeps what the next one answered for as long
// as that may be kept, and asks once for all who ask the same at one time.
type cache struct {
	next handler
	now  func() time.Time
	seed maphash.Seed

	hits, misses atomic.Uint64

	mu       sync.Mutex
	lru      *simplelru.LRU[uint64, *entry] // by hash; the entry has the key
	bytes    int64
	maxBytes int64
}

// entry is one kept answer. It is immutable.
type entry struct {
	key    string
	msg    []byte
	ttls   []uint16 // where in msg the TTLs are
	stored time.Time
	ttl    time.Duration
	server netip.AddrPort
}

func (e *entry) size() int64 {
	return int64(len(e.key) + len(e.msg) + 2*len(e.ttls) + entryOverhead)
}

func newCache(c Config, next handler) (*cache, error) {
	h := &cache{next: next, now: c.Now, seed: maphash.MakeSeed(), maxBytes: c.CacheBytes}
	lru, err := simplelru.NewLRU(c.CacheEntries, func(_ uint64, e *entry) { h.bytes -= e.size() })
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
// of the query that change what a server says. RD is one of them: an answer to
// a query without it may be a mere referral.
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

func (h *cache) fast(q *query, dst []byte) (answer, bool) {
	var buf [maxKey]byte
	key := appendKey(buf[:0], q)
	a, ok := h.get(key, dst)
	if !ok {
		return h.next.fast(q, dst)
	}
	h.hits.Add(1)
	return a, true
}

func (h *cache) get(key, dst []byte) (answer, bool) {
	hash := maphash.Bytes(h.seed, key)
	h.mu.Lock()
	e, ok := h.lru.Get(hash)
	h.mu.Unlock()
	if !ok || e.key != string(key) {
		return answer{}, false
	}
	age := max(h.now().Sub(e.stored), 0)
	if age >= e.ttl {
		return answer{}, false
	}
	msg := append(dst, e.msg...)
	gone := uint32(age / time.Second)
	for _, at := range e.ttls {
		ttl := binary.BigEndian.Uint32(msg[at:])
		binary.BigEndian.PutUint32(msg[at:], ttl-min(ttl, gone))
	}
	return answer{msg: msg, source: SourceCache, server: e.server, age: age}, true
}

func (h *cache) serve(ctx context.Context, q *query) answer {
	key := string(appendKey(nil, q))
	// The leader asks within its own ctx, which has the budget of a query;
	// it began before those that wait here, and so ends before theirs.
	v, _, shared := q.scope.flights.Do(key, func() (any, error) {
		// Another flight may have landed since fast looked.
		if a, ok := h.get([]byte(key), nil); ok {
			h.hits.Add(1)
			return a, nil
		}
		h.misses.Add(1)
		a := h.next.serve(ctx, q)
		h.put(key, a)
		return a, nil
	})
	a := v.(answer)
	if shared {
		a.msg = bytes.Clone(a.msg)
	}
	return a
}

// put keeps a, if it may be kept.
func (h *cache) put(key string, a answer) {
	if a.source != SourceUpstream {
		return
	}
	if e := newEntry(key, a, h.now()); e != nil {
		h.keep(e)
	}
}

// keep adds e in place of an older answer to the same question. False: it does
// not fit, or what is there is as new.
func (h *cache) keep(e *entry) bool {
	if e.size() > h.maxBytes {
		return false
	}
	hash := maphash.String(h.seed, e.key)
	h.mu.Lock()
	defer h.mu.Unlock()
	if last, ok := h.lru.Peek(hash); ok && last.key == e.key && !last.stored.Before(e.stored) {
		return false
	}
	h.lru.Remove(hash) // Add would not tell onEvict about the one it replaces
	h.bytes += e.size()
	h.lru.Add(hash, e)
	for h.bytes > h.maxBytes {
		h.lru.RemoveOldest()
	}
	return true
}

func (h *cache) usage() (entries int, size int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lru.Len(), h.bytes
}

// newEntry returns the entry for an upstream's answer, nil for one that may
// not be kept: a failure, a TTL of zero, "no" without a SOA.
func newEntry(key string, a answer, now time.Time) *entry {
	e := &entry{key: key, stored: now, server: a.server}
	e.msg = append(make([]byte, 0, len(a.msg)), a.msg...)
	flags := flagsOf(e.msg)
	rcode := int(flags & rcodes)
	if flags&flagTC != 0 || (rcode != rcodeSuccess && rcode != rcodeNXDomain) {
		return nil
	}
	binary.BigEndian.PutUint16(e.msg[2:], flags&^flagAA) // the cache is no authority
	f := freshness{qtype: binary.BigEndian.Uint16([]byte(key)), nxdomain: rcode == rcodeNXDomain}
	walk := recordsOf(e.msg, headerLen+len(key)-keyFixed+4)
	for rec, ok := walk.next(); ok; rec, ok = walk.next() {
		e.ttls = append(e.ttls, uint16(rec.ttlAt))
		f.add(e.msg, rec)
	}
	e.ttl = f.lifetime()
	if walk.err != nil || e.ttl <= 0 {
		return nil
	}
	return e
}

// freshness gathers from a message's records how long it may be kept.
type freshness struct {
	qtype    uint16
	nxdomain bool

	answered bool // a record of the type that was asked for
	soa      bool
	any      bool
	ttl      uint32 // the least, seconds
}

// add counts rec in. In a negative answer the SOA's TTL becomes the lesser of
// itself and MINIMUM, in the message too, for that is what is counted down
// (RFC 2308 section 5). TTLs with the top bit set are zero (RFC 2181 section 8).
func (f *freshness) add(msg []byte, rec record) {
	ttl := rec.ttl
	if ttl > 1<<31-1 {
		ttl = 0
	}
	if rec.section == sectionAnswer && (rec.typ == f.qtype || f.qtype == typeANY) {
		f.answered = true
	}
	if rec.section == sectionAuthority && rec.typ == typeSOA && rec.end-rec.data >= 4 {
		f.soa = true
		if !f.answered || f.nxdomain {
			ttl = min(ttl, binary.BigEndian.Uint32(msg[rec.end-4:]))
		}
	}
	binary.BigEndian.PutUint32(msg[rec.ttlAt:], ttl)
	if !f.any || ttl < f.ttl {
		f.ttl = ttl
	}
	f.any = true
}

func (f *freshness) lifetime() time.Duration {
	ttl := time.Duration(f.ttl) * time.Second
	switch {
	case f.answered && !f.nxdomain:
		return min(ttl, maxPositive)
	case f.soa:
		return min(ttl, maxNegative)
	}
	return 0
}
