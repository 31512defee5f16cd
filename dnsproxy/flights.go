package dnsproxy

import (
	"bytes"
	"context"
	"sync"
	"time"
)

// flights are the questions that are on their way, by the cache's key: who asks the same
// waits for the same answer. A flight goes on when the query that began it has waited for
// as long as it may; the client's next one, as resolvers ask twice, finds it there.
type flights struct {
	transport transport

	mu   sync.Mutex
	open map[string]*flight
}

type flight struct {
	landed chan struct{} // closed once answer is set
	answer answer        // whoever follows makes a copy of its message
	// followers is how many joined it: where none did, nobody needs a copy.
	followers int
}

// join returns the flight for key. first says that it is new: the caller lands it.
func (s *flights) join(key string) (f *flight, first bool) {
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
func (s *flights) land(key string, f *flight, a answer) {
	s.mu.Lock()
	delete(s.open, key)
	followed := f.followers > 0
	s.mu.Unlock()
	if followed {
		f.answer = a
		f.answer.msg = bytes.Clone(a.msg)
	}
	close(f.landed)
}

// lead does what f is for. A leader that has waited in vain leaves the rest to a task.
func (h *cache) lead(ctx context.Context, q *query, via *flights, f *flight, key string) answer {
	began := h.outage.clock()
	a := h.fetch(ctx, q, via, key)
	late := a.late
	if late == nil {
		via.land(key, f, a)
		return a
	}
	a.late, a.pending = nil, true
	via.transport.run(func() {
		a := <-late
		h.settle(ctx, key, a, began)
		via.land(key, f, a)
	})
	return a
}

// follow waits for another's question, as long as q may.
func (h *cache) follow(ctx context.Context, q *query, f *flight) answer {
	timer := time.NewTimer(h.next.patience(q))
	defer timer.Stop()
	select {
	case <-f.landed:
		a := f.answer
		a.msg = bytes.Clone(a.msg)
		return a
	case <-timer.C:
	case <-ctx.Done():
	}
	return answer{msg: appendReply(nil, q, 0, rcodeServFail), source: SourceFailure, pending: true}
}
