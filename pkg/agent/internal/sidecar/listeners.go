package sidecar

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/status"
)

const (
	// serverGrace is how long requests to the agent's own ports may take to finish once it stops.
	serverGrace = 2 * time.Second
	// releaseGrace is the same for a generation that lives on after it released its
	// sockets: a profile or a scrape takes a minute at most.
	releaseGrace = time.Minute
)

// listeners are the agent's own servers while they accept: on the status, probe, admin and DNS sockets.
type listeners struct {
	status *status.Serving
	dns    *dnsproxy.Serving // nil without DNS capture
	// released is closed once they were released, which is no failure of its servers.
	released chan struct{}
}

// serving is what of its own sockets the sidecar serves.
type serving struct {
	mu      sync.Mutex
	open    *listeners     // nil while it accepts nothing
	closing sync.WaitGroup // those that were released, until what they accepted is served
}

// begin: l accepts.
func (s *serving) begin(l *listeners) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = l
}

func (s *serving) accepts() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open != nil
}

// release stops accepting and lets what was accepted finish in the background, until shortly after base ends.
func (s *serving) release(base context.Context) {
	s.mu.Lock()
	f := s.open
	s.open = nil
	s.mu.Unlock()
	if f == nil {
		return
	}
	close(f.released)
	f.status.Release()
	if f.dns != nil {
		f.dns.Release()
	}
	s.closing.Go(func() { f.finish(base) })
}

// failed returns when a server has, or when they were released, or at the end of ctx (nil).
func (f *listeners) failed(ctx context.Context) error {
	var dns <-chan error
	if f.dns != nil {
		dns = f.dns.Failed()
	}
	select {
	case err := <-f.status.Failed():
		return err
	case err := <-dns:
		return fmt.Errorf("serve DNS: %w", err)
	case <-f.released:
		return nil
	case <-ctx.Done():
		return nil
	}
}

// finish waits for the requests in flight: a minute, or a moment when the sidecar ends.
func (f *listeners) finish(base context.Context) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseGrace)
	defer cancel()
	defer context.AfterFunc(base, func() {
		time.AfterFunc(serverGrace, cancel)
	})()
	f.status.Close(ctx)
	if f.dns != nil {
		f.dns.Close(ctx)
	}
}
