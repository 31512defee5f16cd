package sidecar

import (
	"context"
	"fmt"
	"slices"
	"time"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/status"
)

// front is the agent's own servers while they accept: on the status, probe, admin and DNS sockets.
type front struct {
	status *status.Serving
	dns    *dnsproxy.Serving // nil without DNS capture
	// released is closed once it was let go, which is no failure of its servers.
	released chan struct{}
}

// Accept begins to serve on copies of the agent's own sockets.
func (s *Sidecar) Accept() (err error) {
	var l status.Listeners
	defer func() {
		if err != nil {
			for _, open := range slices.Concat(l.Status, l.Probe, l.Admin) {
				open.Close() // copies
			}
		}
	}()
	if l.Status, err = s.Sockets.Listeners(sockets.UseStatus, sockets.StatusPort(s.cfg)); err != nil {
		return err
	}
	if s.cfg.ReadyPort != sockets.StatusPort(s.cfg) {
		if l.Probe, err = s.Sockets.Listeners(sockets.UseProbe, s.cfg.ReadyPort); err != nil {
			return err
		}
	}
	if l.Admin, err = s.Sockets.Listeners(sockets.UseAdmin, s.cfg.AdminPort); err != nil {
		return err
	}
	f := &front{released: make(chan struct{})}
	if s.dns != nil {
		udp, tcp, err := s.Sockets.DNS()
		if err != nil {
			return err
		}
		f.dns = s.dns.Start(udp, tcp)
	}
	s.probation.begin()
	f.status = s.Status.Start(l)
	s.mu.Lock()
	s.front = f
	s.mu.Unlock()
	go func() {
		if err := f.failed(s.base); err != nil {
			s.fail(err)
		}
	}()
	return nil
}

// Accepting tells whether it does.
func (s *Sidecar) Accepting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.front != nil
}

// failed returns when a server has, or when the front was let go, or at the end of ctx (nil).
func (f *front) failed(ctx context.Context) error {
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

// ReleaseListeners stops accepting, in an instant; what was accepted is served on. Nothing is
// published until resume.
func (s *Sidecar) ReleaseListeners() {
	s.release()
	s.suspend()
}

// release stops accepting and lets what was accepted finish in the background.
func (s *Sidecar) release() {
	s.mu.Lock()
	f := s.front
	s.front = nil
	s.mu.Unlock()
	if f == nil {
		return
	}
	close(f.released)
	f.status.Release()
	if f.dns != nil {
		f.dns.Release()
	}
	s.closing.Go(func() { f.finish(s.base) })
}

// finish waits for the requests in flight: a minute, or a moment when the sidecar ends.
func (f *front) finish(base context.Context) {
	ctx, cancel := context.WithTimeout(context.Background(), letGoGrace)
	defer cancel()
	defer context.AfterFunc(base, func() {
		time.AfterFunc(serverGrace, cancel)
	})()
	f.status.Close(ctx)
	if f.dns != nil {
		f.dns.Close(ctx)
	}
}

// Resume undoes releaseListeners: a successor failed.
func (s *Sidecar) Resume() error {
	s.publish()
	return s.Accept()
}
