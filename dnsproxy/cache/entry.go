package cache

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// maxPositive and maxNegative bound how long an answer is kept, not the
	// TTL that is served: a typing error in a zone must not outlive the
	// pod. A day is what most resolvers keep at most; three hours is RFC
	// 2308 section 5 on negative answers.
	maxPositive = 24 * time.Hour
	maxNegative = 3 * time.Hour

	// defaultStale is how long after its end an answer may still be given when no
	// server answers. RFC 8767 section 5 recommends one to three days; an outage of
	// a cluster's DNS is over or known long before, and addresses are used again.
	defaultStale = time.Hour

	// clusterStale is the same for names of the cluster, whose addresses are used
	// again within minutes: an old one may lead to a pod of another service.
	clusterStale = time.Minute

	// staleTTL is the TTL of such an answer in seconds, RFC 8767 section 4.
	staleTTL = 30

	// remainderTTL is how long an answer with a TTL of zero is kept where that is
	// the rest of a longer one: for less than a second, then, a cache has it yet,
	// and each query of that second would be asked of it.
	remainderTTL = time.Second

	// entryOverhead is about what an entry costs beside its bytes: the
	// struct, the LRU's element and its place in the map.
	entryOverhead = 256
)

// entry is one kept answer. All but its counters are immutable.
type entry struct {
	key    string
	msg    []byte
	ttls   []uint16 // where in msg the TTLs are
	stored time.Time
	ttl    time.Duration
	server netip.AddrPort

	// counted says that the upstream is a cache, whose answers count down to
	// the same end as ours: to ask before it gains nothing. See inherit.
	counted   bool
	remainder bool // kept for remainderTTL

	hits     atomic.Uint32
	renewing atomic.Bool  // somebody asks for it anew before its end
	failed   atomic.Int64 // when that failed after its end (see Health.Clock), or 0
}

func (e *entry) size() int64 {
	return int64(len(e.key) + len(e.msg) + 2*len(e.ttls) + entryOverhead)
}

// age is how old e is at a time, never negative.
func (e *entry) age(now time.Time) time.Duration { return max(now.Sub(e.stored), 0) }

// append appends e's message as it is to be sent at an age: its TTLs are what
// is left of them. Beyond its end each is staleTTL.
func (e *entry) append(dst []byte, age time.Duration) wire.Answer {
	at := len(dst)
	msg := append(dst, e.msg...)[at:]
	a := wire.Answer{Msg: msg, Source: wire.SourceCache, Server: e.server, Age: age}
	if age >= e.ttl {
		a.Source = wire.SourceStale
		for _, at := range e.ttls {
			binary.BigEndian.PutUint32(msg[at:], staleTTL)
		}
		return a
	}
	gone := uint32(age / time.Second)
	for _, at := range e.ttls {
		ttl := binary.BigEndian.Uint32(msg[at:])
		binary.BigEndian.PutUint32(msg[at:], ttl-min(ttl, gone))
	}
	return a
}

// inherit takes over what last, the answer before to the same question, says
// of e. False: e may not be kept, because its TTL is zero and not the rest of
// one that is longer.
func (e *entry) inherit(last *entry) bool {
	if last == nil {
		return e.ttl > 0
	}
	left := last.ttl - e.stored.Sub(last.stored)
	// A whole second more, for TTLs are rounded.
	e.counted = last.counted || left > 0 && e.ttl <= left+time.Second
	if e.ttl == 0 && !last.remainder && left > -remainderTTL {
		e.ttl, e.remainder = remainderTTL, true
	}
	return e.ttl > 0
}

// newEntry returns the entry for an upstream's answer, nil for one that may
// not be kept: a failure, "no" without a SOA. Its TTL may be zero, see inherit.
func newEntry(key string, a wire.Answer, now time.Time) *entry {
	e := &entry{key: key, stored: now, server: a.Server, msg: append(make([]byte, 0, len(a.Msg)), a.Msg...)}
	flags := wire.FlagsOf(e.msg)
	rcode := int(flags & wire.Rcodes)
	if flags&wire.FlagTC != 0 || (rcode != wire.RcodeSuccess && rcode != wire.RcodeNXDomain) {
		return nil
	}
	binary.BigEndian.PutUint16(e.msg[2:], flags&^wire.FlagAA) // the cache is no authority
	f := freshness{qtype: binary.BigEndian.Uint16([]byte(key)), nxdomain: rcode == wire.RcodeNXDomain}
	walk := wire.RecordsOf(e.msg, wire.HeaderLen+len(key)-keyFixed+4)
	e.ttls = make([]uint16, 0, walk.Most())
	for rec, ok := walk.Next(); ok; rec, ok = walk.Next() {
		e.ttls = append(e.ttls, uint16(rec.TTLAt))
		f.add(e.msg, rec)
	}
	var ok bool
	if e.ttl, ok = f.lifetime(); walk.Err != nil || !ok {
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
func (f *freshness) add(msg []byte, rec wire.Record) {
	ttl := rec.TTL
	if ttl > 1<<31-1 {
		ttl = 0
	}
	if rec.Section == wire.SectionAnswer && (rec.Type == f.qtype || f.qtype == wire.TypeANY) {
		f.answered = true
	}
	if rec.Section == wire.SectionAuthority && rec.Type == wire.TypeSOA && rec.End-rec.Data >= 4 {
		f.soa = true
		if !f.answered || f.nxdomain {
			ttl = min(ttl, binary.BigEndian.Uint32(msg[rec.End-4:]))
		}
	}
	binary.BigEndian.PutUint32(msg[rec.TTLAt:], ttl)
	if !f.any || ttl < f.ttl {
		f.ttl = ttl
	}
	f.any = true
}

// lifetime returns how long the message may be kept; false: not at all.
func (f *freshness) lifetime() (time.Duration, bool) {
	ttl := time.Duration(f.ttl) * time.Second
	switch {
	case f.answered && !f.nxdomain:
		return min(ttl, maxPositive), true
	case f.soa:
		return min(ttl, maxNegative), true
	}
	return 0, false
}
