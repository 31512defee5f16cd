package agent

import (
	"context"
	"slices"
	"strings"
)

// moveSockets has followSockets ask Envoy.
func (s *sidecar) moveSockets() {
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// followSockets asks Envoy for its sockets whenever its listeners may have changed, and
// for its version.
func (s *sidecar) followSockets(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.moved:
		}
		i := s.supervisor.Hot()
		if i == nil || !isClosed(i.Accepts()) {
			continue
		}
		names, version := s.sockets.Names(), s.envoyVersion()
		// The sockets first: until they are here, an Envoy that dies takes them with it.
		if err := s.sockets.Refresh(ctx, i.Fetch); err != nil && ctx.Err() == nil && !isClosed(i.Done()) {
			s.log.Warn("after a crash Envoy would start without its sockets, and an upgrade cannot have them", "err", err)
		}
		s.learnVersion(ctx)
		if version != s.envoyVersion() || !slices.Equal(names, s.sockets.Names()) {
			s.hooks.learned()
		}
	}
}

// learnVersion asks Envoy for its version, "1.40.0" out of what its admin says.
func (s *sidecar) learnVersion(ctx context.Context) {
	if s.envoyVersion() != "" {
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

// envoyVersion is the running Envoy's, "" while it is not known.
func (s *sidecar) envoyVersion() string {
	version, _ := s.version.Load().(string)
	return version
}
