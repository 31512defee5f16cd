// Package agent owns one life of the agent beside one Envoy: it puts together
// the embedded control plane, DNS, XDS, status and Envoy itself, and runs them
// from the first bound socket to the last drained connection.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// World is what `main` has read of its surroundings.
type World struct {
	// Version is the agent's own, for the node's metadata and the metrics.
	Version string
	// Environ is handed on to Envoy.
	Environ []string
	// Stdout and Stderr become Envoy's.
	Stdout, Stderr *os.File
	// Init says that the process is PID 1 of its container and must reap orphans.
	Init bool
	// Started is when the process began; Settled is called once, when the first
	// configuration is in force.
	Started time.Time
	Settled func()
	Log     func(scope string) *slog.Logger
}

// Agent is one generation: its sockets, its files below configPath, and its Envoy.
type Agent struct {
	cfg   *config.Config
	world World
	log   *slog.Logger

	generation *generation
	sockets    *sockets
	ready      *status.Readiness
	admin      *envoy.Admin
	xds        *xds.Server
	source     *mesh.Source
	dns        *dnsproxy.Server // nil without DNS capture
	vips       *dnsproxy.VIPs
	supervisor *supervisor
	publisher  *publisher
	status     *status.Server

	settled  sync.Once     // the first configuration is in force
	stop     chan struct{} // closed by the first request to stop
	stopOnce sync.Once
	// noDrain is closed when the stop must not wait for connections: they were
	// drained already, or whoever asked does not want to.
	noDrain     chan struct{}
	noDrainOnce sync.Once
}

// New checks cfg against the world and binds every socket; it starts nothing.
// What it bound or wrote is undone when it fails.
func New(cfg *config.Config, world World) (_ *Agent, err error) {
	a := &Agent{
		cfg: cfg, world: world, log: world.Log("agent"),
		ready: &status.Readiness{},
		stop:  make(chan struct{}), noDrain: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if err := checkBinary(cfg.BinaryPath); err != nil {
		return nil, err
	}
	if a.source, err = mesh.NewSource(cfg.ConfigDir, a.meshOptions(), world.Log("mesh")); err != nil {
		return nil, err
	}
	if a.generation, err = newGeneration(cfg.ConfigPath, a.log); err != nil {
		return nil, err
	}
	if a.sockets, err = bindSockets(cfg, a.generation, a.log); err != nil {
		return nil, err
	}
	a.admin = envoy.NewAdmin(a.generation.adminSocket())
	a.xds = xds.New(a.sockets.xds, world.Log("xds"))
	if err := a.newDNS(); err != nil {
		return nil, err
	}
	if err := a.newEnvoy(); err != nil {
		return nil, err
	}
	a.newPublisher()
	return a, a.newStatus()
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

// Run serves until ctx ends or somebody asks for a stop, then drains; it returns
// when every goroutine and Envoy are gone. An *ExitError carries the status that
// the process should end with; nil is a stop that was asked for.
func (a *Agent) Run(ctx context.Context) error {
	defer a.close()
	// Two life times: what must outlive the drain (DNS, status, XDS), and what ends with the stop.
	base, endBase := context.WithCancel(context.WithoutCancel(ctx))
	defer endBase()
	g, base := errgroup.WithContext(base)
	work, endWork := context.WithCancel(base)
	defer endWork()

	a.runServers(g, base)
	g.Go(func() error { return a.supervisor.run(base) }) // first: Envoy starts while the files are read
	changes := newMailbox()
	g.Go(func() error { return a.publisher.run(work, changes.ch) })
	g.Go(func() error { return a.readFiles(work, changes) })
	g.Go(func() error {
		select {
		case <-base.Done(): // something failed
			a.supervisor.stop()
			return nil
		case <-ctx.Done():
		case <-a.stop:
		}
		endWork()
		a.shutDown()
		endBase()
		return nil
	})
	return g.Wait()
}

// readFiles puts the first good state of the files and every later one into changes.
func (a *Agent) readFiles(ctx context.Context, changes mailbox) error {
	registry, err := a.source.Load()
	if err != nil {
		return err
	}
	changes.put(registry)
	return a.source.Run(ctx, changes.put)
}

// runServers starts what goes on during a drain.
func (a *Agent) runServers(g *errgroup.Group, ctx context.Context) {
	if a.world.Init {
		g.Go(func() error { envoy.ReapOrphans(ctx, a.log); return nil })
	}
	g.Go(func() error { return a.status.Run(ctx) })
	g.Go(func() error { return a.xds.Run(ctx) })
	if a.sockets.control != nil {
		g.Go(func() error {
			return serveControl(ctx, a.sockets.control, a.status.Local(), a.status.LocalAdmin(), a.log)
		})
	}
	if a.dns != nil {
		g.Go(func() error { return a.dns.Run(ctx) })
	}
}

// shutDown is the ordinary stop: readiness off, inbound drained, then Envoy
// ended; DNS and status go on until it is gone.
func (a *Agent) shutDown() {
	a.ready.Off("the agent is stopping")
	a.supervisor.release()
	if a.supervisor.served.Load() > 0 {
		cut, cancel := context.WithCancel(context.Background())
		go func() { // ends the drain early when somebody asks for it
			select {
			case <-a.noDrain:
				cancel()
			case <-cut.Done():
			}
		}()
		if !isClosed(a.noDrain) {
			drain(cut, a.drainPlan(), a.admin, a.supervisor.alive(), a.log)
		}
		cancel()
	}
	a.supervisor.stop()
	a.log.Info("stopped")
}

func (a *Agent) drainPlan() drainPlan {
	return drainPlan{
		inboundOnly: a.cfg.Role == config.Sidecar,
		duration:    a.cfg.TerminationDrainDuration,
		untilIdle:   a.cfg.ExitOnZeroActiveConnections,
		minimum:     a.cfg.MinimumDrainDuration,
	}
}

// Quit ends the agent without a drain (POST /quitquitquit).
func (a *Agent) Quit(context.Context) error {
	a.skipDrain()
	a.stopOnce.Do(func() { close(a.stop) })
	return nil
}

// Drain closes Envoy's listeners to new connections while everything goes on
// serving; a later stop does not drain again (POST /drain).
func (a *Agent) Drain(ctx context.Context) error {
	opts := envoy.DrainOptions{InboundOnly: a.cfg.Role == config.Sidecar, Graceful: true, SkipExit: true}
	if err := a.admin.Drain(ctx, opts); err != nil {
		return fmt.Errorf("drain Envoy: %w", err)
	}
	a.skipDrain()
	return nil
}

func (a *Agent) skipDrain() { a.noDrainOnce.Do(func() { close(a.noDrain) }) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// close gives back what New took.
func (a *Agent) close() {
	if a.sockets != nil {
		a.sockets.close()
	}
	if a.generation != nil {
		if err := a.generation.remove(); err != nil {
			a.log.Warn("this generation's files stay", "err", err)
		}
	}
}

// mailbox holds the newest registry; what was not taken yet is replaced.
type mailbox struct{ ch chan *mesh.Registry }

func newMailbox() mailbox { return mailbox{make(chan *mesh.Registry, 1)} }

func (m mailbox) put(r *mesh.Registry) {
	select {
	case <-m.ch:
	default:
	}
	m.ch <- r
}
