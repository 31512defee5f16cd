// Package sidecar owns one Envoy beside the application with all that the agent serves for it:
// the embedded control plane, DNS, XDS, status, from the first bound socket to the last
// drained connection.
package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/agent/internal/rundir"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/files"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// Sidecar is one Envoy with its servers. An agent has at most one that is not draining; a standby has none.
type Sidecar struct {
	cfg   *config.Config
	world World
	hooks Hooks
	log   *slog.Logger

	dir       *rundir.Dir
	Sockets   *sockets.Set
	Ready     *status.Readiness
	admin     *envoy.Admin
	xds       *xds.Server
	dns       *dnsproxy.Server // nil without DNS capture
	resolver  *resolver        // of Envoy's own look-ups
	vips      *vip.Pool
	Envoy     *envoy.Supervisor
	files     *files.Files
	Status    *status.Server
	stats     *envoy.CounterRelay
	probation *probation    // nil after a cold start
	version   atomic.Value  // string: the running Envoy's, once known
	moved     chan struct{} // holds a token when Envoy's listeners may have changed

	life

	mu         sync.Mutex
	open       *listeners     // nil while it accepts nothing
	closing    sync.WaitGroup // listeners that were released
	publishing func()         // ends the publisher and waits for it; nil while there is none
}

// World is what of its surroundings a sidecar depends on: a part of agent.World, which cannot embed it, since
// its callers cannot name a type of an internal package.
type World struct {
	Environ        []string // is handed on to Envoy
	Stdout, Stderr *os.File // become Envoy's
	DataDir        string   // keeps what outlives a restart of the container; "" is Istio's
	FileLimit      uint64   // how many files Envoy may have open; 0 is no limit, or an unknown one
	Started        time.Time
	Log            func(scope string) *slog.Logger
}

// Hooks are what the sidecar's servers need of its agent.
type Hooks struct {
	Samples     func() []status.Sample // what the agent counts besides
	Quit, Drain func(context.Context) error
	Learned     func() // is told when Envoy's version or sockets are others than before
}

// publish begins, or goes on, to bring changes into force.
func (s *Sidecar) publish() {
	ctx, cancel := context.WithCancel(s.work)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.files.Publish(ctx)
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publishing = func() { cancel(); <-done }
}

// suspend leaves everything as it is in force now, until the next publish.
func (s *Sidecar) suspend() {
	s.mu.Lock()
	end := s.publishing
	s.publishing = nil
	s.mu.Unlock()
	if end != nil {
		end()
	}
}

// PassProbation: this generation is the one that serves, for good.
func (s *Sidecar) PassProbation() { s.probation.pass() }

// Upgradable says why the sidecar could not be taken over; nil when it can.
func (s *Sidecar) Upgradable() error {
	if err := s.Envoy.Upgradable(); err != nil {
		return fmt.Errorf("its Envoy takes no part in hot restarts: %w", err)
	}
	return nil
}

// close gives back what New took.
func (s *Sidecar) close() {
	if s.Sockets != nil {
		s.Sockets.Close()
	}
	if s.resolver != nil {
		s.resolver.close()
	}
	if s.admin != nil {
		s.admin.Close()
	}
	if s.dir != nil {
		if err := s.dir.Remove(); err != nil {
			s.log.Warn("this generation's files stay", "err", err)
		}
	}
}

// IsClosed tells whether nobody need wait for c any more.
func IsClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
