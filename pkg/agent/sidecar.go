package agent

import (
	"context"
	"errors"
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

// sidecar is one Envoy beside the application with all that the agent serves for it:
// DNS, XDS, status, admin. An agent has at most one that is not draining; a standby has none.
type sidecar struct {
	cfg   *config.Config
	world World
	hooks hooks
	log   *slog.Logger

	dir        *rundir.Dir
	sockets    *sockets.Set
	ready      *status.Readiness
	admin      *envoy.Admin
	xds        *xds.Server
	source     *mesh.Source
	dns        *dnsproxy.Server // nil without DNS capture
	resolver   *resolver        // of Envoy's own look-ups
	vips       *vip.Pool
	supervisor *envoy.Supervisor
	publisher  *publish.Publisher
	status     *status.Server
	stats      *envoy.CounterRelay
	probation  *probation   // nil after a cold start
	version    atomic.Value // string: the running Envoy's, once known
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

// hooks are what the sidecar's servers need of its agent.
type hooks struct {
	samples     func() []status.Sample // what the agent counts besides
	quit, drain func(context.Context) error
	learned     func() // is told when Envoy's version or sockets are others than before
}

// newSidecar checks cfg against the world and takes or binds every socket; it starts
// nothing. inherited is nil for a cold start; its sockets are the sidecar's from here
// on, unless it fails: what it bound or wrote is undone then.
func newSidecar(cfg *config.Config, world World, id string, h hooks, inherited *inheritance) (_ *sidecar, err error) {
	s := &sidecar{
		cfg: cfg, world: world, hooks: h, log: world.Log("agent"),
		ready: &status.Readiness{}, stats: &envoy.CounterRelay{}, changes: publish.NewMailbox(),
		inForce: make(chan struct{}), moved: make(chan struct{}, 1), done: make(chan struct{}),
		failures: make(chan error, 1),
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := checkBinary(cfg.BinaryPath); err != nil {
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
		given, s.probation = inherited.sockets, newProbation()
	}
	if s.sockets, err = sockets.New(cfg, given, s.log); err != nil {
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
		s.inherit(inherited.state)
	}
	return s, s.newStatus()
}

// checkBinary refuses a binaryPath that cannot be executed, before anything starts.
func checkBinary(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("binaryPath %s: %w: install Envoy there, or set PROXY_CONFIG binaryPath", path, errors.Unwrap(err))
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("binaryPath %s: not an executable file (mode %s): set PROXY_CONFIG binaryPath to Envoy", path, info.Mode())
	}
	return nil
}

// start runs the sidecar until end; what ends it early is in err once done is closed.
// Envoy starts first and boots while the files are read.
func (s *sidecar) start() {
	base, endBase := context.WithCancel(context.Background())
	s.endBase = endBase
	s.group, s.base = errgroup.WithContext(base)
	s.work, s.endWork = context.WithCancel(s.base)
	s.group.Go(func() error { return s.supervisor.Run(s.base) })
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
		s.supervisor.Stop()
		s.sockets.Close() // nobody accepts any more: who connects is refused and need not wait
		endFeed()         // Envoy would warn of a control plane that goes first
		s.err = s.group.Wait()
		s.suspend()
		s.release()
		s.closing.Wait()
		s.close()
		close(s.done)
	}()
}

func (s *sidecar) fail(err error) {
	select {
	case s.failures <- err:
	default: // an earlier one counts
	}
}

// readFiles puts the first good state of the files and every later one into changes.
func (s *sidecar) readFiles(ctx context.Context) error {
	registry, err := s.source.Load()
	if err != nil {
		return err
	}
	s.changes.Put(registry)
	return s.source.Run(ctx, s.changes.Put)
}

// publish begins, or goes on, to bring changes into force.
func (s *sidecar) publish() {
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

// publishAgain brings the same files into force once more: VIPs have changed.
func (s *sidecar) publishAgain() { s.changes.Again() }

// suspend leaves everything as it is in force now, until the next publish.
func (s *sidecar) suspend() {
	s.mu.Lock()
	end := s.publishing
	s.publishing = nil
	s.mu.Unlock()
	if end != nil {
		end()
	}
}

// progress is called when Envoy, or a configuration, has come into force.
func (s *sidecar) progress() {
	s.moveSockets()
	if ready, _ := s.ready.Check(); !ready {
		return
	}
	s.inForceOnce.Do(func() {
		s.heritage.Store(nil)
		s.status.Started(time.Since(s.world.Started))
		close(s.inForce)
	})
}

// upgradable says why the sidecar could not be taken over; nil when it can.
func (s *sidecar) upgradable() error {
	if err := s.supervisor.Upgradable(); err != nil {
		return fmt.Errorf("its Envoy takes no part in hot restarts: %w", err)
	}
	return nil
}

// drain is the first part of an ordinary stop: readiness off, inbound drained, all else goes
// on. cut ends it early. The others are empty and end.
func (s *sidecar) drain(cut context.Context) {
	s.ready.Off(stopReason)
	s.endWork()
	s.vips.Compact() // whoever starts next may be a release that finds no change in a journal
	s.supervisor.Release()
	if !s.supervisor.HasServed() || cut.Err() != nil {
		return
	}
	s.supervisor.Drain(cut, envoy.DrainPlan{
		InboundOnly: s.cfg.Role == config.Sidecar,
		Duration:    s.cfg.TerminationDrainDuration,
		UntilIdle:   s.cfg.ExitOnZeroActiveConnections,
		Minimum:     s.cfg.MinimumDrainDuration,
	}, s.log)
}

// empty is the second part: nobody new reaches a socket, so that nobody who waits in one, or has
// just been accepted, is reset at the end. It takes lastGrace at most. This generation must be the
// only one that has the sockets.
func (s *sidecar) empty(ctx context.Context) {
	if !s.supervisor.HasServed() {
		return
	}
	s.sockets.Quench()
	ctx, cancel := context.WithTimeout(ctx, lastGrace)
	defer cancel()
	tick := time.NewTicker(lastPoll)
	defer tick.Stop()
	for {
		left, err := s.supervisor.Connections(ctx)
		if err == nil && left == 0 && s.sockets.Queued() == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.supervisor.Exited():
			return
		case <-tick.C:
		}
	}
}

// retire lets connections end after a successor took over: Envoy stops accepting and asks
// its clients to go, and every copy of a socket is closed, so that nobody queues in one on
// which nobody accepts. It returns when no connection is left, or at the end of ctx, with
// Envoy gone. left is called with the number of connections now and then, and as it ends
// (final).
func (s *sidecar) retire(ctx context.Context, left func(n int, final bool)) {
	s.endWork()
	s.suspend()
	s.supervisor.Release()
	if err := s.supervisor.StopAccepting(ctx); err != nil {
		s.log.Warn("Envoy was not told to drain", "err", err)
	}
	s.sockets.Close()
	s.log.Info("draining after the hand-off")
	s.supervisor.AwaitIdle(ctx, func(n int) { left(n, false) }, s.log)
	if n, err := s.supervisor.Connections(context.Background()); err == nil {
		left(n, true)
	}
	s.end()
}

// abandon ends the sidecar of a take-over that failed. What its Envoy has accepted, beside that of
// the generation before, may finish; whoever connects from now on reaches the latter.
func (s *sidecar) abandon() {
	s.supervisor.Release() // an Envoy that has died is not started again, beside the one that serves
	s.release()
	s.probation.fail()
	if i := s.supervisor.Current(); i == nil || !isClosed(i.Accepts()) || isClosed(i.Done()) {
		s.end()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), abandonGrace)
	defer cancel()
	s.retire(ctx, func(int, bool) {})
}

// end stops everything at once, Envoy with SIGTERM and only then SIGKILL, and returns
// when nothing is left.
func (s *sidecar) end() {
	s.endBase()
	<-s.done
}

// close gives back what newSidecar took.
func (s *sidecar) close() {
	if s.sockets != nil {
		s.sockets.Close()
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
