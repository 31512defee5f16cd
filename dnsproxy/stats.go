package dnsproxy

import (
	"sync/atomic"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
)

// Stats is a snapshot of the server's counters. All count from New on.
type Stats struct {
	Requests  uint64            // messages that got a reply
	Dropped   uint64            // messages that got none: too short, or replies
	Refused   uint64            // SERVFAIL because maxInflight queries were waiting
	BySource  map[string]uint64 // Source names
	ByType    map[string]uint64 // query types; the rare ones as "other"
	ByRcode   map[string]uint64 // RCODE names; those without one as "other"
	UDP, TCP  uint64            // messages that got a reply, by transport
	TCPOpen   int64             // connections now
	TCPCut    uint64            // connections refused or closed to make room
	Inflight  int               // queries that wait for an upstream now
	TableSize int               // names
	Cache     CacheStats
	Upstreams []upstream.Stats // see Server.Upstreams
}

// CacheStats is the cache's part of Stats.
type CacheStats struct {
	cache.Stats
	Hits   uint64 // queries answered with an entry within its TTL
	Misses uint64 // the others that the table did not answer: upstream, stale, failure
}

// countedTypes are the query types counted by name: a fixed set, so that no
// client can make more metrics.
var countedTypes = [...]uint16{
	dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeSRV, dns.TypeTXT, dns.TypeHTTPS, dns.TypeMX,
	dns.TypeCNAME, dns.TypeNS, dns.TypeSOA, dns.TypeSVCB, dns.TypeCAA, dns.TypeNAPTR, dns.TypeANY,
}

// counters are Stats' numbers as they are counted.
type counters struct {
	dropped, refused atomic.Uint64
	udp, tcp         atomic.Uint64
	tcpOpen          atomic.Int64
	tcpCut           atomic.Uint64
	bySource         [wire.Sources]atomic.Uint64
	byType           [len(countedTypes) + 1]atomic.Uint64
	byRcode          [wire.Rcodes + 2]atomic.Uint64 // the last one: BADVERS
}

func (c *counters) reply(source wire.Source, qtype uint16, rcode int) {
	c.bySource[source].Add(1)
	i := 0
	for i < len(countedTypes) && countedTypes[i] != qtype {
		i++
	}
	c.byType[i].Add(1)
	c.byRcode[min(rcode, len(c.byRcode)-1)].Add(1)
}

func (c *counters) snapshot() Stats {
	s := Stats{
		Dropped: c.dropped.Load(), Refused: c.refused.Load(),
		UDP: c.udp.Load(), TCP: c.tcp.Load(),
		TCPOpen: c.tcpOpen.Load(), TCPCut: c.tcpCut.Load(),
		BySource: map[string]uint64{}, ByType: map[string]uint64{}, ByRcode: map[string]uint64{},
	}
	for i := range c.bySource {
		n := c.bySource[i].Load()
		s.BySource[wire.Source(i).String()] = n
		s.Requests += n
	}
	load := func(source wire.Source) uint64 { return s.BySource[source.String()] }
	s.Cache.Hits = load(wire.SourceCache)
	s.Cache.Misses = load(wire.SourceUpstream) + load(wire.SourceStale) + load(wire.SourceFailure)
	for i := range c.byType {
		name := "other"
		if i < len(countedTypes) {
			name = dns.TypeToString[countedTypes[i]]
		}
		s.ByType[name] = c.byType[i].Load()
	}
	for i := range c.byRcode {
		name := "other"
		if _, ok := dns.RcodeToString[i]; ok {
			name = wire.RcodeName(i)
		}
		s.ByRcode[name] += c.byRcode[i].Load()
	}
	return s
}
