// Package sidecar owns one Envoy beside the application with all that the agent serves for it:
// the embedded control plane, DNS, XDS, status, from the first bound socket to the last
// drained connection.
package sidecar

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"understudy.mesh/pkg/agent/internal/identity"
	"understudy.mesh/pkg/agent/internal/rundir"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/istiod"
	"understudy.mesh/pkg/status"
)

// Sidecar is one Envoy with its servers. An agent has at most one that is not draining; a standby has none.
type Sidecar struct {
	cfg   *config.Config
	world World
	log   *slog.Logger
	dir   *rundir.Dir
	life

	// Envoy, and what is known of it.
	Sockets *sockets.Set
	Envoy   *envoy.Supervisor
	admin   *envoy.Admin
	learner *learner
	stats   *envoy.CounterRelay
	helper  *envoy.Helper // tries what it is to have

	// What Envoy and DNS are told.
	xds       feed
	clients   *istiod.Direct     // nil without istiod
	identity  *identity.Identity // nil without istiod
	others    identity.Others    // that have certificates
	plane     controlPlane
	publisher publisher
	names     *names
	modules   *moduleStore // of Wasm filters

	// What the agent answers on sockets of its own.
	Ready     *status.Readiness
	Status    *status.Server
	probation *probation // nil after a cold start
	serving   serving
}

// World is what of its surroundings a sidecar depends on: a part of agent.World, which cannot embed it, since
// its callers cannot name a type of an internal package.
type World struct {
	Version        string   // of the agent
	Environ        []string // is handed on to Envoy
	Stdout, Stderr *os.File // become Envoy's
	DataDir        string   // keeps what outlives a restart of the container; "" is Istio's
	FileLimit      uint64   // how many files Envoy may have open; 0 is no limit, or an unknown one
	Started        time.Time
	GiveBack       func() // gives memory back to the system; nil: nobody can
	Log            func(scope string) *slog.Logger
}

// Hooks are what the sidecar's servers need of its agent.
type Hooks struct {
	Samples     func() []status.Sample // what the agent counts besides
	Quit, Drain func(context.Context) error
	Upgrade     http.Handler // answers everybody what the pod's generations do
	// Overview answers a process of the pod what this generation does, as a page and as JSON.
	Overview, OverviewJSON http.Handler
	Learned                func() // is told when Envoy's version or sockets are others than before
}

// EnvoyVersion is the running Envoy's, "" while it is not known.
func (s *Sidecar) EnvoyVersion() string { return s.learner.version() }

// PassProbation: this generation is the one that serves, for good.
func (s *Sidecar) PassProbation() {
	s.probation.pass()
	s.linkClients()
}

// Alone says that no Envoy of another generation accepts: that of the one before does until a moment after the probation, that of a
// newcomer until it has failed.
func (s *Sidecar) Alone() { s.plane.Alone() }

// linkClients has xDS clients other than Envoy find this generation where Istio's agent serves them, unless Envoy itself was told
// to look there.
func (s *Sidecar) linkClients() {
	if s.clients == nil || s.cfg.CustomConfigFile != "" {
		return
	}
	if err := s.dir.LinkClients(); err != nil {
		s.log.Warn("no xDS client but Envoy finds this agent", "err", err)
	}
}

// Unfit gets why this generation had better not take over, once.
func (s *Sidecar) Unfit() <-chan error { return s.plane.Unfit() }

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
	if s.names != nil {
		s.names.resolver.close()
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
