package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// maxGreeting bounds the connections that have said nothing yet; the oldest is closed for
	// one more. A newcomer speaks as soon as it is connected, so no number of silent ones
	// keeps it out.
	maxGreeting = 64
	// maxWatchers bounds those that follow the role; others get one answer. A pod hardly
	// ever has more than three generations.
	maxWatchers = 16
	// maxDetails leaves room for the rest of a report in one frame.
	maxDetails = 48 << 10
	// acceptPause is the time between two attempts to accept, without descriptors for one.
	acceptPause = 100 * time.Millisecond
)

// Server is the old generation's side: it tells everybody the generation's role, and
// leads one newcomer at a time through a hand-off. It decides nothing: what a newcomer
// wants comes as an Event, and the owner answers by a method of the Newcomer.
type Server struct {
	place     *place
	me        Identity
	log       *slog.Logger
	timing    timing
	protocols protocolRange
	watch     func(sent bool, raw []byte, fds int) // for transcripts; may be nil

	events   chan Event
	sessions sync.WaitGroup

	mu       sync.Mutex
	report   Report
	greeting []*Newcomer // oldest first
	watchers []*Newcomer
	current  *Newcomer // the one that was welcomed, or is being decided about
}

// EventKind says what a newcomer wants, or what became of it.
type EventKind string

// What happens in a hand-off. After Arrived comes exactly one Ended, whatever happens,
// unless Run ends first; nothing comes after it.
const (
	// Arrived: answer with Accept or Refuse, within 5 s. Nothing has changed yet.
	Arrived EventKind = "arrived"
	// WantSockets: the newcomer is able to serve; answer with Give, within 10 s. It may
	// come again.
	WantSockets EventKind = "want sockets"
	// Ready: the newcomer accepts on every socket; let go and answer with Release, within
	// 10 s, keeping copies of everything.
	Ready EventKind = "ready"
	// Settled: the newcomer passed its probation, 2 s; drop the copies, drain, and say by
	// Drained how that goes.
	Settled EventKind = "settled"
	// Ended: the hand-off is over, and Event.Err says why. After Ready and before Settled,
	// serve again from the copies, whatever was let go.
	Ended EventKind = "ended"
)

func (k EventKind) String() string { return string(k) }

// Event is one thing that happened.
type Event struct {
	Kind     EventKind
	Newcomer *Newcomer
	Err      error // of Ended; never nil then
}

// NewServer takes this generation's place in the directory: others find it from now on.
// report is what they are told. It starts nothing.
func NewServer(dir *Dir, report Report, log *slog.Logger) (*Server, error) {
	s := &Server{
		me: dir.me, log: log, timing: defaultTiming(), protocols: ownProtocols(),
		events: make(chan Event),
	}
	if err := s.SetReport(report); err != nil {
		return nil, err
	}
	var err error
	if s.place, err = dir.take(); err != nil {
		return nil, err
	}
	return s, nil
}

// Events delivers what newcomers want. The owner must read it while Run runs; nothing
// is lost or reordered.
func (s *Server) Events() <-chan Event { return s.events }

// SetReport changes what others are told, and tells those that follow. The identity is
// always the directory's. It fails when Details is no JSON or too large.
func (s *Server) SetReport(r Report) error {
	r.Identity = s.me
	if len(r.Details) > maxDetails {
		return fmt.Errorf("report: details of %d bytes, at most %d", len(r.Details), maxDetails)
	}
	if _, err := json.Marshal(r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = r
	for _, w := range s.watchers {
		w.tell(command{act: actReport}) // a full queue has a report in it, which will be this one
	}
	return nil
}

func (s *Server) currentReport() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}

// Run serves until ctx ends, then gives the place up and returns nil when every
// connection is closed. A newcomer that is in the middle of it sees the end of this
// generation. Another error means that nobody can reach this generation any more.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.place.listener.Close() }) // ends accept
	err := s.acceptAll(ctx)
	cancel()
	stop()
	s.sessions.Wait()
	return errors.Join(err, s.place.leave())
}

func (s *Server) acceptAll(ctx context.Context) error {
	for {
		conn, err := s.place.listener.AcceptUnix()
		if ctx.Err() != nil {
			if conn != nil {
				conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept newcomers: %w", err)
		}
		if err != nil { // out of descriptors, or a client that left: it passes
			s.log.Warn("a connection to the hand-off socket could not be accepted", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if err := checkPeer(conn); err != nil {
			s.log.Warn("a connection to the hand-off socket was refused", "err", err)
			conn.Close()
			continue
		}
		s.admit(ctx, conn)
	}
}

// admit gives the connection a goroutine, and closes the oldest silent one when there
// are too many.
func (s *Server) admit(ctx context.Context, conn *net.UnixConn) {
	n := newNewcomer(s, conn)
	s.mu.Lock()
	var oldest *Newcomer
	if len(s.greeting) >= maxGreeting {
		oldest, s.greeting = s.greeting[0], slices.Delete(s.greeting, 0, 1)
	}
	s.greeting = append(s.greeting, n)
	s.mu.Unlock()
	if oldest != nil {
		oldest.link.conn.Close() // its goroutine sees the end
	}
	s.sessions.Go(func() { n.run(ctx) })
}

// spoke takes n off the list of the silent.
func (s *Server) spoke(n *Newcomer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeting = slices.DeleteFunc(s.greeting, func(g *Newcomer) bool { return g == n })
}

// claim makes n the one newcomer, or says why not.
func (s *Server) claim(n *Newcomer) *RefusedError {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.current == nil:
		s.current = n
		return nil
	case s.current.settled.Load():
		return &RefusedError{RefusedMoved, fmt.Sprintf("generation %s has taken over from %s already: ask it", s.current.identity.ID, s.me.ID)}
	}
	return &RefusedError{RefusedBusy, fmt.Sprintf("generation %s is just taking over from %s", s.current.identity.ID, s.me.ID)}
}

// follow lets n have every report; false when there are too many.
func (s *Server) follow(n *Newcomer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watchers) >= maxWatchers {
		return false
	}
	s.watchers = append(s.watchers, n)
	return true
}

// forget takes n off every list.
func (s *Server) forget(n *Newcomer) {
	s.spoke(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = slices.DeleteFunc(s.watchers, func(w *Newcomer) bool { return w == n })
	if s.current == n {
		s.current = nil
	}
}
