package sidecar

import (
	"context"
	"slices"
	"strings"
	"time"
)

// moveSockets has followSockets ask Envoy.
func (s *Sidecar) moveSockets() {
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// followSockets asks Envoy for its sockets whenever its listeners may have changed, and
// for its version.
func (s *Sidecar) followSockets(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.moved:
		}
		i := s.Envoy.Hot()
		if i == nil || !IsClosed(i.Accepts()) {
			continue
		}
		names, version := s.Sockets.Names(), s.EnvoyVersion()
		// The sockets first: until they are here, an Envoy that dies takes them with it.
		if err := s.Sockets.Refresh(ctx, i.Fetch); err != nil && ctx.Err() == nil && !IsClosed(i.Done()) {
			s.log.Warn("after a crash Envoy would start without its sockets, and an upgrade cannot have them", "err", err)
		}
		s.learnVersion(ctx)
		if version != s.EnvoyVersion() || !slices.Equal(names, s.Sockets.Names()) {
			s.hooks.Learned()
		}
	}
}

// learnVersion asks Envoy for its version, "1.40.0" out of what its admin says.
func (s *Sidecar) learnVersion(ctx context.Context) {
	if s.EnvoyVersion() != "" {
		return
	}
	full, err := s.admin.Version(ctx)
	if err != nil {
		s.log.Debug("ask Envoy for its version", "err", err)
		return
	}
	if parts := strings.Split(full, "/"); len(parts) > 1 {
		full = parts[1]
	}
	s.version.Store(full)
}

// EnvoyVersion is the running Envoy's, "" while it is not known.
func (s *Sidecar) EnvoyVersion() string {
	version, _ := s.version.Load().(string)
	return version
}

// progress is called when Envoy, or a configuration, has come into force.
func (s *Sidecar) progress() {
	s.moveSockets()
	if ready, _ := s.Ready.Check(); !ready {
		return
	}
	s.once.Do(func() {
		s.files.Served()
		s.Status.Started(time.Since(s.world.Started))
		close(s.inForce)
	})
}
