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

	"golang.org/x/sync/errgroup"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/agent/internal/rundir"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

const (
	// serverGrace is how long requests to the agent's own ports may take to finish once it stops.
	serverGrace = 2 * time.Second
	// letGoGrace is the same for a generation that lives on after it let go of its
	// sockets: a profile or a scrape takes a minute at most.
	letGoGrace = time.Minute
	// abandonGrace is how long what the Envoy of a failed take-over has accepted may take; the
	// next attempt waits for it.
	abandonGrace = 5 * time.Second
	// lastGrace is how long what Envoy serves at the end of an ordinary stop may take, when nobody
	// new reaches it any more: time for a request. lastPoll is how often it is asked.
	lastGrace = time.Second
	lastPoll  = 50 * time.Millisecond
	// stopReason is why a generation is not ready any more.
	stopReason = "the agent is stopping"
)

// Sidecar is one Envoy beside the application with all that the agent serves for it:
// DNS, XDS, status, admin. An agent has at most one that is not draining; a standby has none.
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
	source    *mesh.Source
	dns       *dnsproxy.Server // nil without DNS capture
	resolver  *resolver        // of Envoy's own look-ups
	vips      *vip.Pool
	Envoy     *envoy.Supervisor
	publisher *publish.Publisher
	Status    *status.Server
	stats     *envoy.CounterRelay
	probation *probation   // nil after a cold start
	version   atomic.Value // string: the running Envoy's, once known
	// heritage is what the Envoy of the generation before uses, until this one is in force; nil
	// for a cold start, and if that generation does not say precisely.
	heritage atomic.Pointer[build.Output]

	changes *publish.Mailbox
	// inForce is closed once everything is: Envoy serves its whole configuration, DNS
	// has its names.
	inForce     chan struct{}
	inForceOnce sync.Once
	moved       chan struct{} // holds a token when Envoy's listeners may have changed

	group   *errgroup.Group
	base    context.Context // ends with the sidecar
	endBase context.CancelFunc
	work    context.Context // ends when it takes no more changes
	endWork context.CancelFunc
	done    chan struct{} // closed when nothing of it runs any more; err is set then
	err     error
	// failures takes the error of a server that broke, which ends the sidecar.
	failures chan error

	mu         sync.Mutex
	front      *front         // nil while it accepts nothing
	closing    sync.WaitGroup // fronts that were let go
	publishing func()         // ends the publisher and waits for it; nil while there is none
}

// World is what of its surroundings a sidecar depends on.
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

// New checks cfg against the world and takes or binds every socket; it starts
// nothing. inherited is nil for a cold start; its sockets are the sidecar's from here
// on, unless it fails: what it bound or wrote is undone then.
func New(cfg *config.Config, world World, id string, h Hooks, inherited *Inheritance) (_ *Sidecar, err error) {
	s := &Sidecar{
		cfg: cfg, world: world, hooks: h, log: world.Log("agent"),
		Ready: &status.Readiness{}, stats: &envoy.CounterRelay{}, changes: publish.NewMailbox(),
		inForce: make(chan struct{}), moved: make(chan struct{}, 1), done: make(chan struct{}),
		failures: make(chan error, 1),
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := CheckBinary(cfg.BinaryPath); err != nil {
		return nil, err
	}
	if s.source, err = mesh.NewSource(cfg.ConfigDir, meshOptions(cfg), world.Log("mesh")); err != nil {
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
	if err := s.newPublisher(); err != nil {
		return nil, err
	}
	if inherited != nil {
		s.inherit(inherited.State)
	}
	return s, s.newStatus()
}

// Start runs the sidecar until end; what ends it early is in err once done is closed.
// Envoy starts first and boots while the files are read.
func (s *Sidecar) Start() {
	base, endBase := context.WithCancel(context.Background())
	s.endBase = endBase
	s.group, s.base = errgroup.WithContext(base)
	s.work, s.endWork = context.WithCancel(s.base)
	s.group.Go(func() error { return s.Envoy.Run(s.base) })
	feed, endFeed := context.WithCancel(context.Background())
	s.group.Go(func() error { return s.xds.Run(feed) })
	s.group.Go(func() error { return s.readFiles(s.work) })
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

func (s *Sidecar) fail(err error) {
	select {
	case s.failures <- err:
	default: // an earlier one counts
	}
}

// readFiles puts the first good state of the files and every later one into changes.
func (s *Sidecar) readFiles(ctx context.Context) error {
	registry, err := s.source.Load()
	if err != nil {
		return err
	}
	s.changes.Put(registry)
	return s.source.Run(ctx, s.changes.Put)
}

// publish begins, or goes on, to bring changes into force.
func (s *Sidecar) publish() {
	ctx, cancel := context.WithCancel(s.work)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.publisher.Run(ctx, s.changes.C)
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

// progress is called when Envoy, or a configuration, has come into force.
func (s *Sidecar) progress() {
	s.moveSockets()
	if ready, _ := s.Ready.Check(); !ready {
		return
	}
	s.inForceOnce.Do(func() {
		s.heritage.Store(nil)
		s.Status.Started(time.Since(s.world.Started))
		close(s.inForce)
	})
}

// InForce is closed once everything is: Envoy serves its whole configuration, DNS has its names.
func (s *Sidecar) InForce() <-chan struct{} { return s.inForce }

// Done is closed when nothing of it runs any more.
func (s *Sidecar) Done() <-chan struct{} { return s.done }

// Err is what ended it early. It is valid after Done.
func (s *Sidecar) Err() error { return s.err }

// PassProbation: this generation is the one that serves, for good.
func (s *Sidecar) PassProbation() { s.probation.pass() }

// DrainInbound closes Envoy's inbound listeners to new connections, and nothing else (POST /drain).
func (s *Sidecar) DrainInbound(ctx context.Context) error {
	return s.admin.Drain(ctx, envoy.DrainOptions{InboundOnly: s.cfg.Role == config.Sidecar, Graceful: true, SkipExit: true})
}

// Unready turns readiness off before a stop.
func (s *Sidecar) Unready() { s.Ready.Off(stopReason) }

// Upgradable says why the sidecar could not be taken over; nil when it can.
func (s *Sidecar) Upgradable() error {
	if err := s.Envoy.Upgradable(); err != nil {
		return fmt.Errorf("its Envoy takes no part in hot restarts: %w", err)
	}
	return nil
}

// Drain is the first part of an ordinary stop: readiness off, inbound drained, all else goes
// on. cut ends it early. The others are empty and end.
func (s *Sidecar) Drain(cut context.Context) {
	s.Unready()
	s.endWork()
	s.vips.Compact() // whoever starts next may be a release that finds no change in a journal
	s.Envoy.Release()
	if !s.Envoy.HasServed() || cut.Err() != nil {
		return
	}
	s.Envoy.Drain(cut, envoy.DrainPlan{
		InboundOnly: s.cfg.Role == config.Sidecar,
		Duration:    s.cfg.TerminationDrainDuration,
		UntilIdle:   s.cfg.ExitOnZeroActiveConnections,
		Minimum:     s.cfg.MinimumDrainDuration,
	}, s.log)
}

// Empty is the second part: nobody new reaches a socket, so that nobody who waits in one, or has
// just been accepted, is reset at the end. It takes lastGrace at most. This generation must be the
// only one that has the sockets.
func (s *Sidecar) Empty(ctx context.Context) {
	if !s.Envoy.HasServed() {
		return
	}
	s.Sockets.Quench()
	ctx, cancel := context.WithTimeout(ctx, lastGrace)
	defer cancel()
	tick := time.NewTicker(lastPoll)
	defer tick.Stop()
	for {
		left, err := s.Envoy.Connections(ctx)
		if err == nil && left == 0 && s.Sockets.Queued() == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.Envoy.Exited():
			return
		case <-tick.C:
		}
	}
}

// Retire lets connections end after a successor took over: Envoy stops accepting and asks
// its clients to go, and every copy of a socket is closed, so that nobody queues in one on
// which nobody accepts. It returns when no connection is left, or at the end of ctx, with
// Envoy gone. left is called with the number of connections now and then, and as it ends
// (final).
func (s *Sidecar) Retire(ctx context.Context, left func(n int, final bool)) {
	s.endWork()
	s.suspend()
	s.Envoy.Release()
	if err := s.Envoy.StopAccepting(ctx); err != nil {
		s.log.Warn("Envoy was not told to drain", "err", err)
	}
	s.Sockets.Close()
	s.log.Info("draining after the hand-off")
	s.Envoy.AwaitIdle(ctx, func(n int) { left(n, false) }, s.log)
	if n, err := s.Envoy.Connections(context.Background()); err == nil {
		left(n, true)
	}
	s.End()
}

// Abandon ends the sidecar of a take-over that failed. What its Envoy has accepted, beside that of
// the generation before, may finish; whoever connects from now on reaches the latter.
func (s *Sidecar) Abandon() {
	s.Envoy.Release() // an Envoy that has died is not started again, beside the one that serves
	s.release()
	s.probation.fail()
	if i := s.Envoy.Current(); i == nil || !isClosed(i.Accepts()) || isClosed(i.Done()) {
		s.End()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), abandonGrace)
	defer cancel()
	s.Retire(ctx, func(int, bool) {})
}

// End stops everything at once, Envoy with SIGTERM and only then SIGKILL, and returns
// when nothing is left.
func (s *Sidecar) End() {
	s.endBase()
	<-s.done
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

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
