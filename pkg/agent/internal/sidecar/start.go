package sidecar

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/agent/internal/identity"
	"understudy.mesh/pkg/agent/internal/rundir"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/status"
)

// New checks cfg against the world and takes or binds every socket; it starts
// nothing. inherited is nil for a cold start; its sockets are the sidecar's from here
// on, unless it fails: what it bound or wrote is undone then.
func New(cfg *config.Config, world World, id string, h Hooks, inherited *Inheritance) (_ *Sidecar, err error) {
	s := &Sidecar{
		cfg: cfg, world: world, log: world.Log("agent"),
		Ready: &status.Readiness{}, stats: &envoy.CounterRelay{},
		life: life{inForce: make(chan struct{}), serves: make(chan struct{}), failures: make(chan error, 1), done: make(chan struct{})},
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := CheckBinary(cfg.BinaryPath); err != nil {
		return nil, err
	}
	if s.dir, err = rundir.New(cfg.ConfigPath, id, s.log); err != nil {
		return nil, err
	}
	var given *hotrestart.Sockets
	if inherited != nil {
		given, s.probation = inherited.Sockets, newProbation()
	}
	if s.Sockets, err = sockets.New(cfg, given, s.log); err != nil {
		return nil, err
	}
	s.admin = envoy.NewAdmin(s.dir.AdminSocket())
	s.learner = newLearner(s.Sockets, s.admin, h.Learned, s.log)
	if s.names, err = openNames(cfg, world); err != nil {
		return nil, err
	}
	if cfg.ConfigDir == "" {
		if s.others, err = identity.FindOthers(cfg, s.log); err != nil {
			return nil, err
		}
	}
	if err := s.newEnvoy(); err != nil {
		return nil, err
	}
	s.helper = envoy.NewHelper(envoy.HelperConfig{Binary: cfg.BinaryPath, Dir: s.dir.TrialDir(), Environ: world.Environ})
	s.modules = newModuleStore(cfg, s.helper, world.Log("wasm"))
	if err := s.newControlPlane(); err != nil {
		return nil, err
	}
	s.publisher.publish = s.plane.Publish
	if inherited != nil {
		s.inheritModules(inherited)
		s.plane.Import(inherited.State, inherited.Files.Open)
		if s.identity != nil {
			s.identity.Import(inherited.State)
		}
		s.adopt(inherited.State)
	}
	return s, s.newStatus(h)
}

// Start runs the sidecar until End. Envoy starts first and boots while the files are read.
func (s *Sidecar) Start() {
	base, endBase := context.WithCancel(context.Background())
	s.endBase = endBase
	s.group, s.base = errgroup.WithContext(base)
	s.work, s.endWork = context.WithCancel(s.base)
	s.group.Go(func() error { return s.Envoy.Run(s.base) })
	feed, endFeed := context.WithCancel(context.Background())
	s.group.Go(func() error { return s.xds.Run(feed) })
	if s.identity != nil {
		s.group.Go(func() error { return s.identity.Run(feed) })
	}
	if s.clients != nil {
		s.group.Go(func() error { return s.clients.Run(feed) })
	}
	if s.probation == nil {
		s.linkClients()
	}
	s.group.Go(func() error { return s.plane.Run(s.work) })
	s.group.Go(func() error { s.learner.run(s.base, s.Envoy); return nil })
	s.group.Go(func() error { return s.names.resolver.run(s.base) })
	s.group.Go(func() error {
		select {
		case err := <-s.failures:
			return err
		case <-s.base.Done():
			return nil
		}
	})
	s.publisher.begin(s.base)
	go func() {
		<-s.base.Done() // something failed, or it is over
		s.endStream()
		s.Envoy.Stop()
		s.Sockets.Close() // nobody accepts any more: who connects is refused and need not wait
		endFeed()         // Envoy would warn of a control plane that goes first
		s.err = s.group.Wait()
		s.publisher.suspend()
		s.serving.release(s.base)
		s.serving.closing.Wait()
		s.close()
		close(s.done)
	}()
}

// Resume undoes ReleaseListeners: a successor failed.
func (s *Sidecar) Resume() error {
	if s.plane.Suspends() {
		s.publisher.begin(s.base)
	}
	return s.Accept()
}

// begun takes in that Envoy serves.
func (s *Sidecar) begun() {
	s.begins.Do(func() { close(s.serves) })
	s.progress()
}

// progress is called when Envoy, or a configuration, has come into force.
func (s *Sidecar) progress() {
	s.learner.ask()
	if ready, _ := s.Ready.Check(); !ready {
		return
	}
	s.once.Do(func() {
		s.plane.Served()
		s.Status.Started(time.Since(s.world.Started))
		close(s.inForce)
	})
}
