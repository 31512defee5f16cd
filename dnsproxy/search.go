package dnsproxy

import (
	"bytes"
	"context"
	"sync/atomic"

	"github.com/miekg/dns"
)

// searching is the first handler for a client that does not walk resolv.conf's search
// list itself: it does that for it, and answers once. What it looks up on the way is in
// the cache, as anybody's questions are.
//
// A name is tried as it is, and below a search domain only when it does not exist: an
// answer of "try again" is none, or another server than the one that is meant would
// answer while its own has a bad moment. A name of a single label is tried as it is
// last, as resolv.conf(5) says of names with fewer dots than ndots, which is 1: no host
// has such a name (RFC 7085), and the root servers need not hear it. More of ndots is
// not followed: to ask for api.example.com below each domain first is what this spares.
type searching struct {
	domains atomic.Pointer[[][]byte] // in wire form without the root
	next    stage
}

// searched is told resolv.conf's search domains.
func (h *searching) searched(domains []string) {
	list := make([][]byte, 0, len(domains))
	for _, domain := range domains {
		if wire, ok := appendName(nil, domain); ok {
			list = append(list, wire[:len(wire)-1])
		}
	}
	h.domains.Store(&list)
}

// lookUp asks the next handler; false when it has to be asked again in another way.
type lookUp func(q *query) (answer, bool)

func (h *searching) fast(q *query, dst []byte, via *flights) (answer, bool) {
	if !h.leads(q) {
		a, ok := h.next.fast(q, dst, via)
		if !ok || !denies(a.msg) || len(h.candidates(q)) == 0 {
			return a, ok
		}
	}
	return h.walk(q, func(q *query) (answer, bool) { return h.next.fast(q, nil, via) })
}

func (h *searching) serve(ctx context.Context, q *query, via *flights) answer {
	a, _ := h.walk(q, func(q *query) (answer, bool) { return h.next.serve(ctx, q, via), true })
	return a
}

// leads says whether q's name is tried below the search domains first.
func (h *searching) leads(q *query) bool {
	name := q.wire()
	return len(name) > 1 && int(name[0])+2 == len(name) && len(*h.domains.Load()) > 0
}

// candidates are q's question below each search domain. A name that ends with one of
// these is whole, and has none.
func (h *searching) candidates(q *query) []query {
	name := q.wire()
	name = name[:len(name)-1]
	domains := *h.domains.Load()
	for _, domain := range domains {
		if len(name) == 0 || bytes.Equal(name, domain) || cutDomain(name, domain) != nil {
			return nil
		}
	}
	list := make([]query, 0, len(domains))
	for _, domain := range domains {
		if len(name)+len(domain)+1 <= maxWireName {
			list = append(list, q.below(domain))
		}
	}
	return list
}

// walk answers with the first of the names that exists, or about which nothing can be
// said now; where none exists, with what is said of the name itself.
func (h *searching) walk(q *query, ask lookUp) (answer, bool) {
	var itself answer
	leads := h.leads(q)
	if !leads {
		a, exists, ok := h.try(q, ask)
		if !ok || exists {
			return a, ok
		}
		itself = a
	}
	for _, candidate := range h.candidates(q) {
		a, exists, ok := h.try(&candidate, ask)
		if !ok {
			return answer{}, false
		}
		if exists {
			return a.foundFor(q, &candidate), true
		}
	}
	if leads {
		return ask(q)
	}
	return itself, true
}

// try asks about one name, and says whether it may exist. A name that is denied to
// those who ask for AAAA may yet have an A record, where servers hide IPv6 (see
// appendKey): it is not looked for elsewhere.
func (h *searching) try(q *query, ask lookUp) (a answer, exists, ok bool) {
	a, ok = ask(q)
	if !ok || !denies(a.msg) {
		return a, true, ok
	}
	if q.qtype != typeAAAA {
		return a, false, true
	}
	own := q.withType(typeA)
	other, ok := ask(&own)
	return a, !denies(other.msg), ok
}

// foundFor makes the answer to found that to q, of which found's name was made: the
// name that was asked for is an alias of the one that was found.
func (a answer) foundFor(q, found *query) answer {
	failed := appendReply(nil, q, 0, rcodeServFail)
	if !good(a) {
		a.msg = failed
		return a
	}
	var m dns.Msg
	alias, _, err := dns.UnpackDomainName(q.wire(), 0)
	if err == nil {
		err = m.Unpack(a.msg)
	}
	name, _, errName := dns.UnpackDomainName(found.wire(), 0)
	if err != nil || errName != nil {
		a.msg, a.source = failed, SourceFailure
		return a
	}
	m.Question = []dns.Question{{Name: alias, Qtype: q.qtype, Qclass: q.qclass}}
	header := dns.RR_Header{Name: alias, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: leastTTL(&m)}
	m.Answer = append([]dns.RR{&dns.CNAME{Hdr: header, Target: name}}, m.Answer...)
	m.Compress = true
	msg, err := m.Pack()
	if err != nil || !bytes.Equal(msg[headerLen:headerLen+int(q.lowerN)], q.wire()) {
		a.msg, a.source = failed, SourceFailure
		return a
	}
	a.msg = msg
	return a
}

// leastTTL is how long what m says holds, in seconds.
func leastTTL(m *dns.Msg) uint32 {
	least, any := uint32(0), false
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			if ttl := rr.Header().Ttl; !any || ttl < least {
				least, any = ttl, true
			}
		}
	}
	return least
}
