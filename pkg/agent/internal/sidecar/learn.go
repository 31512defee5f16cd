package sidecar

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/envoy"
)

// learner asks Envoy for its listening sockets and its version, for whoever comes after it.
type learner struct {
	sockets *sockets.Set
	admin   *envoy.Admin
	learned func() // is told when one of them is another than before
	log     *slog.Logger
	wanted  chan struct{} // holds a token when Envoy's listeners may have changed
	known   atomic.Value  // string: the version, once known
}

func newLearner(set *sockets.Set, admin *envoy.Admin, learned func(), log *slog.Logger) *learner {
	return &learner{sockets: set, admin: admin, learned: learned, log: log, wanted: make(chan struct{}, 1)}
}

// ask has run ask Envoy.
func (l *learner) ask() {
	select {
	case l.wanted <- struct{}{}:
	default:
	}
}

// run asks the Envoy that there is whenever ask wants it, until ctx ends.
func (l *learner) run(ctx context.Context, supervisor *envoy.Supervisor) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wanted:
		}
		i := supervisor.Hot()
		if i == nil || !IsClosed(i.Accepts()) {
			continue
		}
		names, version := l.sockets.Names(), l.version()
		// The sockets first: until they are here, an Envoy that dies takes them with it.
		if err := l.sockets.Refresh(ctx, i.Fetch); err != nil && ctx.Err() == nil && !IsClosed(i.Done()) {
			l.log.Warn("after a crash Envoy would start without its sockets, and an upgrade cannot have them", "err", err)
		}
		l.askVersion(ctx)
		if version != l.version() || !slices.Equal(names, l.sockets.Names()) {
			l.learned()
		}
	}
}

// askVersion asks for "1.40.0" out of what Envoy's admin says, once.
func (l *learner) askVersion(ctx context.Context) {
	if l.version() != "" {
		return
	}
	full, err := l.admin.Version(ctx)
	if err != nil {
		l.log.Debug("ask Envoy for its version", "err", err)
		return
	}
	if parts := strings.Split(full, "/"); len(parts) > 1 {
		full = parts[1]
	}
	l.known.Store(full)
}

// version is the running Envoy's, "" while it is not known.
func (l *learner) version() string {
	version, _ := l.known.Load().(string)
	return version
}
