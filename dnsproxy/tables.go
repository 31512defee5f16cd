package dnsproxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// tables is the first handler: it answers what the table in force has and
// passes on the rest.
type tables struct {
	current atomic.Pointer[Table]
	first   chan struct{} // closed once there is a table
	once    sync.Once
	hold    time.Duration
	held    chan struct{} // one slot for each query that may be held
	ttl     uint32
	next    stage

	own    string     // the pod's own domain
	mu     sync.Mutex // of changes
	domain string     // the same, while it is resolv.conf's first search domain, else ""
}

// maxHeld bounds the queries held until the first table comes; further ones
// are forwarded at once.
const maxHeld = 512

func newTables(c Config, next stage) *tables {
	return &tables{
		first: make(chan struct{}),
		hold:  c.HoldBeforeTable,
		held:  make(chan struct{}, maxHeld),
		ttl:   c.TTL,
		own:   normalName(c.Domain),
		next:  next,
	}
}

func (h *tables) swap(t *Table) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current.Store(t.below(h.domain))
	h.once.Do(func() { close(h.first) })
}

// searched is told resolv.conf's search domains. A resolver makes a name of the mesh
// into one below the first of them before all others, so that it has its answer at
// once if that one is answered here. Names below any other domain, and below a first
// one that is not the pod's own, are other people's: db.corp.example is not the host
// db, and no resolver asks for it on the way to that.
func (h *tables) searched(domains []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.domain = ""
	if len(domains) > 0 && domains[0] == h.own {
		h.domain = h.own
	}
	if t := h.current.Load(); t != nil {
		h.current.Store(t.below(h.domain))
	}
}

func (h *tables) fast(q *query, dst []byte, via *flights) (answer, bool) {
	t := h.current.Load()
	if t == nil {
		return answer{}, false
	}
	m, ok := find(t, q)
	if !ok {
		return h.next.fast(q, dst, via)
	}
	if a, ok := fromTable(m, q, dst, h.ttlOf(t)); ok {
		return a, true
	}
	a, ok := h.next.fast(q, dst, via)
	return h.exists(t, q, a), ok
}

func (h *tables) serve(ctx context.Context, q *query, via *flights) answer {
	t := h.await(ctx, q)
	if t == nil {
		return h.next.serve(ctx, q, via)
	}
	m, ok := find(t, q)
	if !ok {
		return h.next.serve(ctx, q, via)
	}
	if a, ok := fromTable(m, q, nil, h.ttlOf(t)); ok {
		return a
	}
	return h.exists(t, q, h.next.serve(ctx, q, via))
}

// await returns the table in force. Before the first one it waits for it, as
// long as q may be held; nil when none came.
func (h *tables) await(ctx context.Context, q *query) *Table {
	if t := h.current.Load(); t != nil || h.hold <= 0 {
		return t
	}
	select {
	case h.held <- struct{}{}:
		defer func() { <-h.held }()
	default:
		return nil
	}
	timer, began := time.NewTimer(h.hold), time.Now()
	defer timer.Stop()
	defer func() { q.held = time.Since(began) }()
	select {
	case <-h.first:
	case <-timer.C:
	case <-ctx.Done():
	}
	return h.current.Load()
}

// fromTable answers the types that a table has of a name it knows. The others
// are for the upstream to answer. Who asks for ANY gets records of one type
// (RFC 8482 section 4.1): the upstream would deny those that there are.
func fromTable(m match, q *query, dst []byte, ttl uint32) (answer, bool) {
	var list []byte
	size := 4
	switch {
	case m.reverse != nil && (q.qtype == typePTR || q.qtype == typeANY):
		return answer{msg: appendPTR(dst, q, m.reverse, ttl)}, true
	case m.reverse != nil:
		return answer{}, false
	case m.base != nil && (q.qtype == typeCNAME || q.qtype == typeANY):
		msg, _ := appendAlias(dst, q, m.base, ttl)
		return answer{msg: msg}, true
	case q.qtype == typeA || q.qtype == typeANY && len(m.addrs.v4()) > 0:
		list = m.addrs.v4()
	case q.qtype == typeAAAA || q.qtype == typeANY:
		list, size = m.addrs.v6(), 16
	default:
		return answer{}, false
	}
	if len(list) == 0 {
		return answer{msg: appendNodata(dst, q, m.base, ttl)}, true
	}
	return answer{msg: appendRecords(dst, q, m.base, list, size, ttl)}, true
}

// exists sees that a name of the table is never denied: an upstream that does
// not know the name knows of no such record either. Its failures stay what
// they are: "try again" must not become "there is none", or a mail client
// would take a lost MX for a missing one.
func (h *tables) exists(t *Table, q *query, a answer) answer {
	if len(a.msg) < headerLen || rcodeOf(a.msg) != rcodeNXDomain {
		return a
	}
	a.msg = appendNodata(a.msg[:0], q, nil, h.ttlOf(t))
	return a
}

func (h *tables) ttlOf(t *Table) uint32 {
	if t.ttl != 0 {
		return t.ttl
	}
	return h.ttl
}

// find looks q's name up in t. A host that is forwarded is found by nobody.
func find(t *Table, q *query) (match, bool) {
	name := q.wire()
	if len(name) == 1 { // no table has the root
		return match{}, false
	}
	m, ok := t.lookup(name[:len(name)-1])
	return m, ok && (m.reverse != nil || !m.addrs.forwarded())
}

// dotted returns a name of a table, in wire form without the root, with dots.
func dotted(wire []byte) string {
	text := make([]byte, 0, len(wire))
	for len(wire) > 0 {
		n := 1 + int(wire[0])
		if len(text) > 0 {
			text = append(text, '.')
		}
		text = append(text, wire[1:n]...)
		wire = wire[n:]
	}
	return string(text)
}

// appendPTR answers with the first of a VIP's hosts.
func appendPTR(dst []byte, q *query, hosts []byte, ttl uint32) []byte {
	msg := len(dst)
	n, _ := skipName(hosts, 0)
	dst = appendReply(dst, q, flagAA, rcodeSuccess)
	dst = appendRR(dst, toQuestion, typePTR, ttl, n)
	dst = append(dst, hosts[:n]...)
	setCount(dst[msg:], sectionAnswer, 1)
	return dst
}
