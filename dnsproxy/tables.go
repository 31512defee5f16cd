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
	m, ok := t.find(q)
	if !ok {
		return h.next.fast(q, dst, via)
	}
	if a, ok := m.answer(q, dst, h.ttl); ok {
		return a, true
	}
	a, ok := h.next.fast(q, dst, via)
	return h.exists(q, a), ok
}

func (h *tables) serve(ctx context.Context, q *query, via *flights) answer {
	t := h.await(ctx, q)
	if t == nil {
		return h.next.serve(ctx, q, via)
	}
	m, ok := t.find(q)
	if !ok {
		return h.next.serve(ctx, q, via)
	}
	if a, ok := m.answer(q, nil, h.ttl); ok {
		return a
	}
	return h.exists(q, h.next.serve(ctx, q, via))
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

// exists sees that a name of the table is never denied: an upstream that does
// not know the name knows of no such record either. Its failures stay what
// they are: "try again" must not become "there is none", or a mail client
// would take a lost MX for a missing one.
func (h *tables) exists(q *query, a answer) answer {
	if len(a.msg) < headerLen || rcodeOf(a.msg) != rcodeNXDomain {
		return a
	}
	a.msg = appendNodata(a.msg[:0], q, nil, h.ttl)
	return a
}
