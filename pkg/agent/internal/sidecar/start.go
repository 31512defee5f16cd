package sidecar

import (
	"context"

	"golang.org/x/sync/errgroup"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/agent/internal/rundir"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// New checks cfg against the world and takes or binds every socket; it starts
// nothing. inherited is nil for a cold start; its sockets are the sidecar's from here
// on, unless it fails: what it bound or wrote is undone then.
func New(cfg *config.Config, world World, id string, h Hooks, inherited *Inheritance) (_ *Sidecar, err error) {
	s := &Sidecar{
		cfg: cfg, world: world, hooks: h, log: world.Log("agent"),
		Ready: &status.Readiness{}, stats: &envoy.CounterRelay{},
		moved: make(chan struct{}, 1),
		life:  life{inForce: make(chan struct{}), failures: make(chan error, 1), done: make(chan struct{})},
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
	listener, err := s.dir.ListenXDS()
	if err != nil {
		return nil, err
	}
	s.xds = xds.New(listener, build.Types(), world.Log("xds"))
	s.xds.SendFirst(build.OutboundListener, build.InboundListener)
	s.admin = envoy.NewAdmin(s.dir.AdminSocket())
	if err := s.newDNS(); err != nil {
		return nil, err
	}
	if err := s.newEnvoy(); err != nil {
		return nil, err
	}
	if err := s.newFiles(); err != nil {
		return nil, err
	}
	if inherited != nil {
		s.files.Import(inherited.State)
		s.adopt(inherited.State)
	}
	return s, s.newStatus()
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
	s.group.Go(func() error { return s.files.Run(s.work) })
	s.group.Go(func() error { s.followSockets(s.base); return nil })
	s.group.Go(func() error { return s.resolver.run(s.base) })
	s.group.Go(func() error {
		select {
		case err := <-s.failures:
			return err
		case <-s.base.Done():
			return nil
		}
	})
	s.publish()
	go func() {
		<-s.base.Done() // something failed, or it is over
		s.endStream()
		s.Envoy.Stop()
		s.Sockets.Close() // nobody accepts any more: who connects is refused and need not wait
		endFeed()         // Envoy would warn of a control plane that goes first
		s.err = s.group.Wait()
		s.suspend()
		s.release()
		s.closing.Wait()
		s.close()
		close(s.done)
	}()
}

// Resume undoes ReleaseListeners: a successor failed.
func (s *Sidecar) Resume() error {
	s.publish()
	return s.Accept()
}
