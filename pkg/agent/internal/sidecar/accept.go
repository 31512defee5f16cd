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
	if sockets.HasProbePort(s.cfg) {
		if l.Probe, err = s.Sockets.Listeners(sockets.UseProbe, s.cfg.ReadyPort); err != nil {
			return err
		}
	}
	if l.Admin, err = s.Sockets.Listeners(sockets.UseAdmin, s.cfg.AdminPort); err != nil {
		return err
	}
	f := &listeners{released: make(chan struct{})}
	if s.names.captured {
		udp, tcp, err := s.Sockets.DNS()
		if err != nil {
			return err
		}
		f.dns = s.names.dns.Start(udp, tcp)
	}
	s.probation.begin()
	f.status = s.Status.Start(l)
	s.serving.begin(f)
	go func() {
		if err := f.failed(s.base); err != nil {
			s.fail(err)
		}
	}()
	return nil
}

// Accepting tells whether it does.
func (s *Sidecar) Accepting() bool { return s.serving.accepts() }

// ReleaseListeners stops accepting, in an instant; what was accepted is served on. Where a control
// plane suspends, nothing is published until Resume.
func (s *Sidecar) ReleaseListeners() {
	s.serving.release(s.base)
	if s.plane.Suspends() {
		s.publisher.suspend()
	}
}
