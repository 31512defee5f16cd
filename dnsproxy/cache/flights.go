package cache

import (
	"bytes"
	"sync"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
)

// Flights are the questions that are on their way, by the cache's key: queries that ask the same
// wait for one answer. A flight goes on when the query that began it has waited for as long as
// it may, for the client's next one: resolvers ask twice.
type Flights struct {
	Transport upstream.Transport
	// ExplainOnly is for a question of Explain's: it counts as no hit, and begins nothing that
	// other queries would wait for.
	ExplainOnly bool

	mu   sync.Mutex
	open map[string]*flight
}

type flight struct {
	landed chan struct{} // closed once answer is set
	answer wire.Answer   // followers copy its message
	// followers is how many joined it: without one no copy is made.
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
