package cache

import (
	"bytes"
	"context"
	"sync"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
)

// Flights are the questions that are on their way, by the cache's key: who asks the same
// waits for the same answer. A flight goes on when the query that began it has waited for
// as long as it may; the client's next one, as resolvers ask twice, finds it there.
type Flights struct {
	Transport upstream.Transport

	mu   sync.Mutex
	open map[string]*flight
}

type flight struct {
	landed chan struct{} // closed once answer is set
	answer wire.Answer   // whoever follows makes a copy of its message
	// followers is how many joined it: where none did, nobody needs a copy.
	followers int
}

// join returns the flight for key. first says that it is new: the caller lands it.
func (s *Flights) join(key string) (f *flight, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f = s.open[key]; f != nil {
		f.followers++
		return f, false
	}
	if s.open == nil {
		s.open = map[string]*flight{}
	}
	f = &flight{landed: make(chan struct{})}
	s.open[key] = f
	return f, true
}

// land gives a to those who follow f. a stays the caller's.
func (s *Flights) land(key string, f *flight, a wire.Answer) {
	s.mu.Lock()
	delete(s.open, key)
	followed := f.followers > 0
	s.mu.Unlock()
	if followed {
		f.answer = a
		f.answer.Msg = bytes.Clone(a.Msg)
	}
	close(f.landed)
}

// lead does what f is for. A leader that has waited in vain leaves the rest to a task.
func (h *Cache) lead(ctx context.Context, q *wire.Query, via *Flights, f *flight, key string) wire.Answer {
	began := h.outage.Clock()
	a := h.fetch(ctx, q, via, key)
	late := a.Late
	if late == nil {
		via.land(key, f, a)
		return a
	}
	a.Late, a.Pending = nil, true
	via.Transport.Go(func() {
		a := <-late
		h.settle(ctx, key, a, began)
		via.land(key, f, a)
	})
	return a
}

// follow waits for another's question, as long as q may.
func (h *Cache) follow(ctx context.Context, q *wire.Query, f *flight) wire.Answer {
	timer := time.NewTimer(h.next.Patience(q))
	defer timer.Stop()
	select {
	case <-f.landed:
		a := f.answer
		a.Msg = bytes.Clone(a.Msg)
		return a
	case <-timer.C:
	case <-ctx.Done():
	}
	return wire.Answer{Msg: wire.AppendReply(nil, q, 0, wire.RcodeServFail), Source: wire.SourceFailure, Pending: true}
}
