package sidecar

import (
	"slices"

	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/status"
)

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
	f := &listeners{released: make(chan struct{})}
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
	s.open = f
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
	return s.open != nil
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
	s.closing.Go(func() { f.finish(s.base) })
}
