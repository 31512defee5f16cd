package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"understudy.mesh/hotrestart"
	hotenvoy "understudy.mesh/hotrestart/envoy"
)

// neverTerminate keeps Envoy from ending its parent, which is the agent: only while it
// has one does it ask for the socket of a listener that comes later.
const neverTerminate = math.MaxInt32 * time.Second

// usualVersion is what every Envoy from 1.20 to 1.40 says to --hot-restart-version.
// Envoy checks it by itself as it starts, and asking it takes as long as half a start: so
// it is asked only when one ended before it served, and beside one that serves.
var usualVersion = hotenvoy.Version{Version: 11, Size: 104}

// launcher starts Envoys, one after the other, each as the successor of an Envoy that the
// agent plays: it asks the agent for its listening sockets, and would do so of an Envoy.
type launcher struct {
	cfg Config

	mu      sync.Mutex
	version hotenvoy.Version
	off     error // why Envoys take no part in hot restarts; nil while they do
}

// Instance is one running Envoy, and what it needs to take part in a hot restart.
type Instance struct {
	*Process
	// accepts is closed when Envoy accepts on all its first listeners.
	accepts chan struct{}
	child   *hotenvoy.Child // nil: it takes no part
	// cleared is closed when Envoy has ended and nothing that it needed is left.
	cleared <-chan struct{}

	mu    sync.Mutex
	asked []string // the addresses of its bound listeners: for these it asked for sockets
}

// start launches an Envoy. Where hot restart is impossible it says why, once, and
// launches one that takes no part in any; but not beside a generation that may still
// serve: with SO_REUSEPORT Envoy would bind the same ports, get a share of that one's
// connections, and cut them when the take-over fails. The error is ErrNoHotRestart then.
func (l *launcher) start() (*Instance, error) {
	impossible := l.disabled()
	if impossible == nil {
		i, err := l.startHot()
		if err == nil || !errors.As(err, new(*impossibleError)) {
			return i, err
		}
		impossible = err
	}
	if l.cfg.Inherits != nil && l.cfg.Inherits() {
		return nil, fmt.Errorf("%w: %w", ErrNoHotRestart, impossible)
	}
	l.disable(impossible)
	return l.startPlain()
}

// startPlain launches an Envoy that takes no part in hot restarts.
func (l *launcher) startPlain() (*Instance, error) {
	if l.cfg.DropSockets != nil {
		l.cfg.DropSockets()
	}
	process, err := startProcess(l.cfg.Command(nil))
	if err != nil {
		return nil, err
	}
	return &Instance{Process: process, cleared: process.Done()}, nil
}

// impossibleError says why an Envoy cannot take part in a hot restart, though it may run.
type impossibleError struct{ err error }

func (e *impossibleError) Error() string { return e.err.Error() }
func (e *impossibleError) Unwrap() error { return e.err }

func (l *launcher) disabled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.off
}

// disable keeps the first reason, and logs it.
func (l *launcher) disable(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.off != nil {
		return
	}
	l.off = why
	l.cfg.Log.Warn("Envoy runs without hot restart: it cannot be upgraded in place, and a crash closes its ports", "err", why)
}

// recheck asks the binary for its version after an Envoy has ended early; true when
// the next start will be another one.
func (l *launcher) recheck(ctx context.Context) bool {
	if l.disabled() != nil {
		return false
	}
	version, err := l.ask(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		l.disable(err)
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := version != l.version
	l.version = version
	return changed
}

func (l *launcher) currentVersion() hotenvoy.Version {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version
}

// startHot launches an Envoy with a shared memory, a parent and a child of its own.
func (l *launcher) startHot() (*Instance, error) {
	if _, err := hotenvoy.RemoveStaleSharedMemory(hotenvoy.SharedMemoryDir); err != nil {
		l.cfg.Log.Warn("what agents that were killed left stays behind", "err", err)
	}
	memory, err := hotenvoy.CreateSharedMemory(hotenvoy.SharedMemoryDir, l.currentVersion())
	if err != nil {
		return nil, &impossibleError{err}
	}
	where := hotenvoy.Rendezvous{Path: l.cfg.Path, Base: memory.Base()}
	stats := l.cfg.Stats.begin()
	cleared := make(chan struct{})
	i := &Instance{accepts: make(chan struct{}), cleared: cleared}
	parent, err := hotenvoy.NewParent(hotenvoy.ParentConfig{
		Rendezvous: where, StartTime: l.cfg.StartTime, Log: l.cfg.Log, Stats: stats,
		Sockets: func(address string, worker uint32) (int, bool) {
			i.note(address)
			return l.cfg.Sockets(address, worker)
		},
		OnServing: sync.OnceFunc(func() {
			close(i.accepts)
			l.cfg.Accepts()
		}),
	})
	if err != nil {
		return nil, &impossibleError{errors.Join(err, memory.Close())}
	}
	if i.child, err = hotenvoy.NewChild(where); err != nil {
		return nil, &impossibleError{errors.Join(err, parent.Close(), memory.Close())}
	}
	speaking, quiet := context.WithCancel(context.Background())
	var speakers sync.WaitGroup
	for _, run := range []func(context.Context) error{parent.Run, i.child.Run} {
		speakers.Go(func() {
			if err := run(speaking); err != nil {
				l.cfg.Log.Error("Envoy cannot be spoken to any more", "err", err)
			}
		})
	}
	cleanUp := func() {
		quiet()
		speakers.Wait()
		if err := errors.Join(parent.Close(), i.child.Close(), where.RemoveLeftovers(), memory.Close()); err != nil {
			l.cfg.Log.Warn("something of an Envoy that ended stays behind", "err", err)
		}
	}
	i.Process, err = startProcess(l.cfg.Command(hotenvoy.Args(hotenvoy.ArgsConfig{
		Rendezvous: where, ParentShutdown: neverTerminate, SkipStats: stats == nil,
	})))
	if err != nil {
		cleanUp()
		return nil, err
	}
	go func() {
		<-i.Done()
		cleanUp()
		close(cleared)
	}()
	return i, nil
}

// Accepts is closed when Envoy accepts on all its first listeners; nil for one that takes no part in hot restarts.
func (i *Instance) Accepts() <-chan struct{} { return i.accepts }

func (i *Instance) ended() bool {
	select {
	case <-i.Done():
		return true
	default:
		return false
	}
}

// note remembers that Envoy has a listener at address.
func (i *Instance) note(address string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !slices.Contains(i.asked, address) {
		i.asked = append(i.asked, address)
	}
}

// addresses are those of the listeners that Envoy has, or had, bound.
func (i *Instance) addresses() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.asked)
}

// Fetch returns copies of the sockets that Envoy listens on, which the caller closes.
func (i *Instance) Fetch(ctx context.Context) (*hotrestart.Sockets, error) {
	if i.child == nil {
		return nil, ErrNoHotRestart
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-i.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return i.child.Fetch(ctx, i.addresses()...)
}

// ErrNoHotRestart says that an Envoy cannot be asked for what only a hot restart tells.
var ErrNoHotRestart = errors.New("this Envoy takes no part in hot restarts")

// Readiness is told what is pending before the pod may have traffic.
type Readiness interface {
	Pending(task, reason string)
	Done(task string)
}

// Config says how Envoys are started and what is made of what becomes of them.
type Config struct {
	Binary string
	// Command makes the command line of an Envoy that takes part in a hot restart, or of
	// one that does not (nil).
	Command func(hotRestart []string) Command
	// Path is where the sockets of the hot restart begin, see hotenvoy.Rendezvous.
	Path    string
	Sockets func(address string, worker uint32) (fd int, ok bool)
	// Inherits tells whether the sockets are those of a generation that may still serve;
	// nil: they are not.
	Inherits func() bool
	// NoHotRestart is why no Envoy may take part in a hot restart; nil: each that can, does.
	NoHotRestart error
	// DropSockets is called before an Envoy is started that takes no part in hot restarts and
	// binds for itself; nil: nothing is to be done.
	DropSockets func()
	Accepts     func()        // called when an Envoy accepts on all its first listeners
	Stats       *CounterRelay // nil: none
	StartTime   time.Time

	Admin *Admin
	Ready Readiness
	// Serves is called each time an Envoy begins to; nil is allowed.
	Serves func()
	// RestartHung ends an Envoy that hangs, instead of only saying so.
	RestartHung bool
	Log         *slog.Logger
}
