package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/envoy"
)

// World is what `main` has read of its surroundings.
type World struct {
	// Version is the agent's own, for the node's metadata and the metrics.
	Version string
	// Environ is handed on to Envoy.
	Environ []string
	// Stdout and Stderr become Envoy's.
	Stdout, Stderr *os.File
	// dataDir keeps what outlives a restart of the container; "" is Istio's.
	dataDir string
	// FileLimit is how many files a process may have open (RLIMIT_NOFILE), as a child inherits
	// it; 0 is no limit, or an unknown one.
	FileLimit uint64
	// Init says that the process is PID 1 of its container and must reap orphans.
	Init bool
	// Started is when the process began, and Boot the same as the time since the node's
	// boot (CLOCK_BOOTTIME), 0 when unknown.
	Started time.Time
	Boot    time.Duration
	// Settled is called whenever there is memory to give back: the first configuration
	// is in force, or the agent has become a standby.
	Settled func()
	// Explain leaves why this agent is ended where its container's status shows it; "" takes that back. nil: nowhere.
	Explain func(reason string)
	Log     func(scope string) *slog.Logger
}

// Agent is one generation: a process, whatever its role.
type Agent struct {
	cfg   *config.Config
	world World
	log   *slog.Logger

	me      handoff.Identity
	control *control.Listener
	dir     *handoff.Dir    // nil: no hot upgrade
	server  *handoff.Server // nil with dir
	off     string          // why there is no hot upgrade; "" while there is

	events   chan event
	quit     chan struct{} // closed by quitAtOnce
	quitOnce sync.Once
	// noDrain is closed when a stop need not wait for connections: they were drained already.
	noDrain     chan struct{}
	noDrainOnce sync.Once
	// told is closed when a command has heard that this agent ends.
	told     chan struct{}
	toldOnce sync.Once
	// cutOff is closed when a postStart hook was cut off.
	cutOff     chan struct{}
	cutOffOnce sync.Once

	lives atomic.Int64 // how many sidecars there were

	// loop is what only the goroutine of Run touches.
	loop loop

	mu    sync.Mutex
	shown shown
}

// eventQueue lets those who report go on: no event waits for the loop for long.
const eventQueue = 16

// event is one thing that happened, with what belongs to it.
type event struct {
	kind     roles.Kind
	peer     handoff.Identity  // of Found*, PeerLeaves
	reason   string            // of Found*, PeerLeaves
	search   int               // of Found*, LookAgain: see roles.State
	sidecar  *sidecar.Sidecar  // whom it is about
	newcomer *handoff.Newcomer // of the hand-off's
	drained  handoff.Drained   // of PredecessorNews, DrainNews, Retired
	load     envoy.Load        // of DrainNews
	counters *envoy.Counters   // of DrainNews, Retired: Envoy's; nil when unknown
	err      error
}

// loop is the state of the goroutine that lives through the roles.
type loop struct {
	roles.State
	err error // why the life is over, unless that was asked for

	sidecar  *sidecar.Sidecar
	taking   context.CancelCauseFunc // ends the attempt to take over; nil: there was none
	follow   *follower               // of the generation that serves instead
	handOff  handOff                 // to a newcomer
	cutDrain func()                  // ends the ordinary drain; nil: there was none
	drains   drains                  // after hand-offs

	ctx      context.Context // ends with the life
	children sync.WaitGroup  // goroutines that report events
}

// report delivers an event of a goroutine of the loop's.
func (a *Agent) report(ctx context.Context, e event) {
	select {
	case a.events <- e:
	case <-ctx.Done():
	}
}

// spawn runs work, whose event is reported, until the life is over.
func (a *Agent) spawn(work func(ctx context.Context) (event, bool)) {
	ctx := a.loop.ctx
	a.loop.children.Go(func() {
		if e, ok := work(ctx); ok {
			a.report(ctx, e)
		}
	})
}

func (a *Agent) warnUnlessLost(err error) {
	if err != nil && !errors.Is(err, handoff.ErrLost) {
		a.log.Warn("answer a newcomer", "err", err)
	}
}

// handOff is the one to the newcomer that was welcomed last.
type handOff struct {
	newcomer *handoff.Newcomer // nil: there is none any more
	began    time.Time
	released time.Time       // when this generation released its listeners
	counted  *envoy.Counters // what the newcomer knows of Envoy's counters
}

// drains are those after hand-offs.
type drains struct {
	leaving *sidecar.Sidecar // the one of which the newcomer is told
	hurry   []func()         // each ends one; empty: there are none
}

// follower watches the generation that serves instead of this one.
type follower struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}
