package dnsproxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
)

// tables is the first handler: it answers what the table in force has and
// passes on the rest.
type tables struct {
	current atomic.Pointer[table.Table]
	first   chan struct{} // closed once there is a table
	once    sync.Once
	hold    time.Duration
	held    chan struct{} // one slot for each query that may be held
	ttl     uint32
	next    *cache.Cache

	own    string     // the pod's own domain
	mu     sync.Mutex // of changes
	domain string     // the same, while it is resolv.conf's first search domain, else ""
}

// maxHeld bounds the queries held until the first table comes; further ones
// are forwarded at once.
const maxHeld = 512

func newTables(c Config, next *cache.Cache) *tables {
	return &tables{
		first: make(chan struct{}),
		hold:  c.HoldBeforeTable,
		held:  make(chan struct{}, maxHeld),
		ttl:   c.TTL,
		own:   wire.Normal(c.Domain),
		next:  next,
	}
}

func (h *tables) swap(t *table.Table) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current.Store(t.Below(h.domain))
	h.once.Do(func() { close(h.first) })
}

// searched takes resolv.conf's search domains. A resolver tries a name of the mesh
// below the first of them before all others, and has its answer at once if that name
// is answered here. Names below any other domain, and below a first one that is not
// the pod's own, are other people's: db.corp.example is not the host db.
func (h *tables) searched(domains []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.domain = ""
	if len(domains) > 0 && domains[0] == h.own {
		h.domain = h.own
	}
	if t := h.current.Load(); t != nil {
		h.current.Store(t.Below(h.domain))
	}
}

func (h *tables) Fast(q *wire.Query, dst []byte, via *cache.Flights) (wire.Answer, found, bool) {
	t := h.current.Load()
	if t == nil {
		return wire.Answer{}, found{}, false
	}
	return h.look(t, q, dst, via)
}

// look asks the table, which may be nil, and the cache.
func (h *tables) look(t *table.Table, q *wire.Query, dst []byte, via *cache.Flights) (a wire.Answer, f found, ok bool) {
	f.looked = true
	if t != nil {
		var m table.Match
		if m, f.known = t.Find(q); f.known {
			if a, ok = m.Answer(q, dst, h.ttl); ok {
				return a, f, true
			}
		}
	}
	a, f.miss, ok = h.next.Fast(q, dst, via)
	return h.exists(q, f, a), f, ok
}

func (h *tables) Serve(ctx context.Context, q *wire.Query, f found, via *cache.Flights) wire.Answer {
	if !f.looked {
		var a wire.Answer
		var ok bool
		if a, f, ok = h.look(h.await(ctx, q), q, nil, via); ok {
			return a
		}
	}
	return h.exists(q, f, h.next.Serve(ctx, q, f.miss, via))
}

// await returns the table in force. Before the first one it waits for it, as
// long as q may be held; nil when none came.
func (h *tables) await(ctx context.Context, q *wire.Query) *table.Table {
	if t := h.current.Load(); t != nil || h.hold <= 0 {
		return t
	}
	select {
	case h.held <- struct{}{}:
		defer func() { <-h.held }()
	default:
		return nil
	}
	began := time.Now()
	defer func() { q.Held = time.Since(began) }()
	select {
	case <-h.first:
	case <-time.After(h.hold):
	case <-ctx.Done():
	}
	return h.current.Load()
}

// exists makes NODATA of an upstream's NXDOMAIN for a name of the table, which exists.
// A failure stays one: as NODATA it would tell a mail client that there is no MX.
func (h *tables) exists(q *wire.Query, f found, a wire.Answer) wire.Answer {
	if !f.known || len(a.Msg) < wire.HeaderLen || wire.RcodeOf(a.Msg) != wire.RcodeNXDomain {
		return a
	}
	a.Msg = wire.AppendNodata(a.Msg[:0], q, nil, h.ttl)
	return a
}
