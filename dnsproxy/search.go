package dnsproxy

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/internal/wire"
)

// searching is the first handler for a client that does not walk resolv.conf's search
// list itself: it walks the list, and answers once. What it looks up on the way is
// cached like any other question.
//
// A name is tried as it is, and below a search domain only when it does not exist: SERVFAIL
// does not say so, and going on would lead to another server while the one that is meant
// fails for a moment. A name of a single label is tried as it is last, as resolv.conf(5)
// says of names with fewer dots than ndots, which is 1: no host has such a name (RFC 7085),
// and the root servers need not hear it. A larger ndots is ignored: asking for
// api.example.com below each domain first is what this avoids.
type searching struct {
	domains atomic.Pointer[[][]byte] // in wire form without the root
	next    *cache.Cache
}

// searched takes resolv.conf's search domains.
func (h *searching) searched(domains []string) {
	list := make([][]byte, 0, len(domains))
	for _, domain := range domains {
		if wire, ok := wire.AppendName(nil, domain); ok {
			list = append(list, wire[:len(wire)-1])
		}
	}
	h.domains.Store(&list)
}

func (h *searching) Fast(q *wire.Query, dst []byte, via *cache.Flights) (wire.Answer, found, bool) {
	var f found
	if h.leads(q) {
		return wire.Answer{}, f, false
	}
	a, miss, ok := h.next.Fast(q, dst, via)
	if ok && wire.Denies(a.Msg) && len(h.candidates(q)) > 0 {
		a.Msg = bytes.Clone(a.Msg) // dst is for the next one
		return wire.Answer{}, found{denied: &a}, false
	}
	f.miss = miss
	return a, f, ok
}

// Serve answers with the first of the names that exists, or about which nothing can be said
// now; where none exists, with what is said of the name itself.
func (h *searching) Serve(ctx context.Context, q *wire.Query, f found, via *cache.Flights) wire.Answer {
	ask := func(q *wire.Query) wire.Answer {
		a, miss, ok := h.next.Fast(q, nil, via)
		if !ok {
			a = h.next.Serve(ctx, q, miss, via)
		}
		return a
	}
	leads := h.leads(q)
	var itself wire.Answer
	if !leads {
		if f.denied != nil {
			itself = *f.denied
		} else {
			itself = h.next.Serve(ctx, q, f.miss, via)
		}
		if exists(q, itself, ask) {
			return itself
		}
	}
	for _, candidate := range h.candidates(q) {
		if a := ask(&candidate); exists(&candidate, a, ask) {
			return foundFor(a, q, &candidate)
		}
	}
	if leads {
		return ask(q)
	}
	return itself
}

// exists says whether the name of q, which is answered a, may exist. One that is denied to
// those who ask for AAAA may yet have an A record, where servers hide IPv6 (see the cache's
// keys): it is not looked for elsewhere.
func exists(q *wire.Query, a wire.Answer, ask func(*wire.Query) wire.Answer) bool {
	if !wire.Denies(a.Msg) {
		return true
	}
	if q.Type != wire.TypeAAAA {
		return false
	}
	own := q.WithType(wire.TypeA)
	return !wire.Denies(ask(&own).Msg)
}

// leads says whether q's name is tried below the search domains first.
func (h *searching) leads(q *wire.Query) bool {
	name := q.Name()
	return len(name) > 1 && int(name[0])+2 == len(name) && len(*h.domains.Load()) > 0
}

// candidates are q's question below each search domain. A name that ends with one of
// these is whole, and has none.
func (h *searching) candidates(q *wire.Query) []wire.Query {
	name := q.Name()
	name = name[:len(name)-1]
	domains := *h.domains.Load()
	for _, domain := range domains {
		if len(name) == 0 || bytes.Equal(name, domain) || wire.CutDomain(name, domain) != nil {
			return nil
		}
	}
	list := make([]wire.Query, 0, len(domains))
	for _, domain := range domains {
		if len(name)+len(domain)+1 <= wire.MaxWireName {
			list = append(list, q.Below(domain))
		}
	}
	return list
}

// foundFor makes a, the answer to found, that to q, of which found's name was made: the
// name that was asked for is an alias of the one that was found.
func foundFor(a wire.Answer, q, found *wire.Query) wire.Answer {
	failed := wire.AppendReply(nil, q, 0, wire.RcodeServFail)
	if !wire.Good(a) {
		a.Msg = failed
		return a
	}
	var m dns.Msg
	alias, _, errAlias := dns.UnpackDomainName(q.Name(), 0)
	name, _, errName := dns.UnpackDomainName(found.Name(), 0)
	if errors.Join(errAlias, errName, m.Unpack(a.Msg)) != nil {
		a.Msg, a.Source = failed, wire.SourceFailure
		return a
	}
	m.Question = []dns.Question{{Name: alias, Qtype: q.Type, Qclass: q.Class}}
	header := dns.RR_Header{Name: alias, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: leastTTL(&m)}
	m.Answer = append([]dns.RR{&dns.CNAME{Hdr: header, Target: name}}, m.Answer...)
	m.Compress = true
	msg, err := m.Pack()
	if err != nil || !bytes.Equal(msg[wire.HeaderLen:wire.HeaderLen+int(q.LowerN)], q.Name()) {
		a.Msg, a.Source = failed, wire.SourceFailure
		return a
	}
	a.Msg = msg
	return a
}

// leastTTL is how long what m says holds, in seconds.
func leastTTL(m *dns.Msg) uint32 {
	least := uint32(0)
	for i, rr := range slices.Concat(m.Answer, m.Ns) {
		if ttl := rr.Header().Ttl; i == 0 || ttl < least {
			least = ttl
		}
	}
	return least
}
