// Package xds owns the configuration stream to Envoy: one gRPC server that speaks
// delta ADS (aggregated discovery service) on a Unix socket.
//
// The whole desired state goes in with Set; each connected Envoy gets what it lacks of
// the newest one, make before break, one type after the other: what is new or changed
// before the types that may refer to it, what is removed after them, and each only when
// Envoy has acknowledged the one before. A push is finished before a newer state is looked at, so states that come
// in quick succession are skipped but for the last.
//
// When Envoy refuses a response and does not say which resource of it, the response is
// halved until each refused resource is known by name; all others come into force.
//
// Resources are passed on as bytes, by type URL. Nothing here knows what is in them.
package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Server serves the latest snapshot to every Envoy that connects. It is made by New.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	*transport

	order []string // see New

	mu      sync.Mutex
	current *state               // nil until the first Set
	streams map[*stream]progress // what each connected Envoy has
	changed chan struct{}        // closed and replaced when streams or stopped change
	stopped bool
	served  bool          // an Envoy has answered for a configuration in full
	renewed chan struct{} // see Renewed
	damaged chan struct{} // see Damaged
}

// progress is how far one stream is; Server.mu guards it.
type progress struct {
	waiting string // what the push waits for
	done    uint64 // version that was sent and answered in full
	failed  error  // what Envoy refuses of done; nil when it took everything
}

// New returns a server for l, a Unix listener whose file mode (0600) says who may
// connect. It starts nothing; Run owns l from then on. Envoys that connect before the
// first Set are kept waiting, since an empty configuration would make them ready.
//
// order are the type URLs that are served, each after those that it may refer to; Envoy is expected
// to ask for all, but for extensions and routes that no listener names. Of other types it hears that there is nothing.
func New(l net.Listener, order []string, log *slog.Logger) *Server {
	s := &Server{
		transport: newTransport(l, log),
		order:     order,
		streams:   make(map[*stream]progress),
		changed:   make(chan struct{}),
		renewed:   make(chan struct{}, 1),
		damaged:   make(chan struct{}, 1),
	}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.sock, s)
	return s
}

// Run serves until ctx ends, and returns once every stream is closed and every
// goroutine gone: nil when ctx was cancelled, else why it could not serve. It closes
// the listener. A server runs once.
func (s *Server) Run(ctx context.Context) error {
	err := s.sock.Run(ctx)
	s.mu.Lock()
	s.stopped = true
	s.broadcast()
	s.mu.Unlock()
	return err
}

// Set makes snap the desired state and gives its version, which is higher than that of
// every earlier one. It does not wait for anyone; see Applied. It keeps the resources'
// bodies, not the slices.
func (s *Server) Set(snap Snapshot) (version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	version = 1
	if s.current != nil {
		version = s.current.version + 1
	}
	next, duplicates := newState(version, snap)
	if len(duplicates) > 0 {
		s.log.Warn("resources with a name that another one has were left out", "version", version, "names", duplicates)
	}
	for url := range snap {
		if !slices.Contains(s.order, url) {
			s.log.Error("resources of a type that is not served were left out", "version", version, "type", url)
		}
	}
	s.current = next
	for st := range s.streams {
		st.wake()
	}
	return version
}

// Given is the desired state, nil before the first Set. Nobody may change it.
func (s *Server) Given() Snapshot {
	if st := s.desired(); st != nil {
		return st.resources
	}
	return nil
}

// Applied blocks until a connected Envoy has answered for version, or a newer one, in
// full. It is nil when Envoy took everything; when it refused something the error is a
// *RejectedError (the rest is in force). When ctx ends first, the error wraps ctx.Err() and
// says what was being waited for. A listener that Envoy took may yet be warming.
func (s *Server) Applied(ctx context.Context, version uint64) error {
	for {
		waiting, changed, done, err := s.look(version)
		if done {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("configuration version %d is not in force: %s: %w", version, waiting, ctx.Err())
		case <-changed:
		}
	}
}

// look is one try of Applied. When done is false, changed is closed when it is worth
// trying again.
func (s *Server) look(version uint64) (waiting string, changed <-chan struct{}, done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting = "no Envoy is connected"
	for _, p := range s.streams {
		switch {
		case p.done >= version && p.failed == nil:
			return "", nil, true, nil
		case p.done >= version:
			err = p.failed
		default:
			waiting = p.waiting
		}
	}
	if err != nil {
		return "", nil, true, err
	}
	if s.stopped {
		return "", nil, true, errors.New("the xDS server has stopped")
	}
	return waiting, s.changed, false, nil
}

// Renewed holds a token once an Envoy that came after another one has answered for its
// first configuration: it may refuse what that one took.
func (s *Server) Renewed() <-chan struct{} { return s.renewed }

// Damaged holds a token once Envoy could not be given a resource that is ErrUnreadable: its stream has ended, as will those that it opens
// until a further Set.
func (s *Server) Damaged() <-chan struct{} { return s.damaged }

// answered notes that a stream has answered for its first configuration. The caller has
// reported that.
func (s *Server) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.served {
		s.served = true
		return
	}
	select {
	case s.renewed <- struct{}{}:
	default:
	}
}

// Connected says whether an Envoy has a stream open; changed is closed when that may have changed.
func (s *Server) Connected() (connected bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams) > 0, s.changed
}

// DeltaAggregatedResources serves one stream; gRPC calls it.
func (s *Server) DeltaAggregatedResources(conn envoyStream) error {
	st := newStream(s, conn)
	s.counters.streams.Add(1)
	s.report(st, progress{waiting: notAsked(s.order[0])})
	defer s.forget(st)
	return st.run(s.receive(conn))
}

// desired is the newest state, nil before the first Set.
func (s *Server) desired() *state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (s *Server) report(st *stream, p progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = p
	s.broadcast()
}

func (s *Server) forget(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.broadcast()
}

// broadcast wakes everyone in Applied; the caller holds mu.
func (s *Server) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}
