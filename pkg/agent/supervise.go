package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/status"
)

const (
	// maxEarlyDeaths is how many Envoys in a row may die before the first one
	// ever served: then the cause is not a passing one.
	maxEarlyDeaths = 5
	// firstBackOff doubles with each early death, up to lastBackOff.
	firstBackOff = 200 * time.Millisecond
	lastBackOff  = 3 * time.Second
	// readyPoll is how often a starting Envoy is asked whether it serves; it adds
	// to the time that a pod waits, and a question costs Envoy well under 1 ms.
	readyPoll = 10 * time.Millisecond
	// reasonPoll is how often an Envoy that does not serve yet is asked why, which
	// costs it far more than the question whether it does.
	reasonPoll = time.Second
	// killTimeout is how long Envoy has to end after SIGTERM before SIGKILL.
	killTimeout = 3 * time.Second

	// taskEnvoy is the readiness task that is pending while Envoy does not serve.
	taskEnvoy = "envoy"
)

// ExitError says that the agent's process must end with Status.
type ExitError struct {
	Status int
	Reason string
}

func (e *ExitError) Error() string { return e.Reason }

// supervisor keeps one Envoy running: before one ever served it gives up after
// maxEarlyDeaths, and afterwards it starts the next one at once, however often.
type supervisor struct {
	launcher *launcher
	admin    *envoy.Admin
	ready    *status.Readiness
	log      *slog.Logger
	// serves is called each time an Envoy begins to; nil is allowed.
	serves func()

	mu       sync.Mutex
	process  *instance
	stopping bool

	served   atomic.Int64 // how many Envoys did
	restarts atomic.Int64
}

// run starts Envoy again and again until stop is called (nil), or until it is
// clear that no Envoy will ever serve (an *ExitError with Envoy's status).
func (s *supervisor) run(ctx context.Context) error {
	for deaths := 0; ; {
		p, err := s.start()
		if err != nil || p == nil {
			return err
		}
		watch, stopWatch := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() { s.watchReady(watch, p) })
		<-p.cleared
		stopWatch()
		watching.Wait()
		if s.isStopping() {
			return nil
		}
		s.ready.Pending(taskEnvoy, "Envoy ended ("+p.Exit().String()+") and is being started again")
		if s.served.Load() > 0 {
			deaths = 0
			s.log.Warn("Envoy ended and is started again", "exit", p.Exit().String(), "pid", p.PID())
		} else if deaths++; deaths >= maxEarlyDeaths {
			return &ExitError{p.Exit().Status(), fmt.Sprintf("Envoy ended %d times before it ever served, the last time with %s: its own log says why", deaths, p.Exit())}
		} else if !s.launcher.recheck(ctx) && !s.backOff(ctx, deaths, p.Exit()) {
			return nil
		}
		s.restarts.Add(1)
	}
}

// start launches Envoy, unless the supervisor is stopping (nil, nil).
func (s *supervisor) start() (*instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, nil
	}
	s.ready.Pending(taskEnvoy, "Envoy is starting")
	p, err := s.launcher.start()
	if err != nil {
		return nil, err
	}
	s.process = p
	s.log.Info("Envoy started", "pid", p.PID(), "path", s.launcher.binary)
	return p, nil
}

// backOff waits before the next start; false when ctx ended.
func (s *supervisor) backOff(ctx context.Context, deaths int, exit envoy.Exit) bool {
	wait := min(firstBackOff<<(deaths-1), lastBackOff)
	s.log.Error("Envoy ended before it served", "exit", exit.String(), "deaths", deaths, "of", maxEarlyDeaths, "next", wait)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// watchReady marks the agent's Envoy as ready once it serves.
func (s *supervisor) watchReady(ctx context.Context, p *instance) {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	started := time.Now()
	asked := started
	for {
		err := s.admin.Serves(ctx)
		if err == nil {
			s.served.Add(1)
			s.log.Info("Envoy serves", "pid", p.PID(), "after", time.Since(started).Round(time.Millisecond))
			s.ready.Done(taskEnvoy)
			if s.serves != nil {
				s.serves()
			}
			return
		}
		if time.Since(asked) > reasonPoll {
			asked = time.Now()
			if state, stateErr := s.admin.State(ctx); stateErr == nil {
				err = cmp.Or(state.Ready(), err)
			}
		}
		s.ready.Pending(taskEnvoy, err.Error())
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *supervisor) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// alive returns the channel that closes when the running Envoy ends, or has; nil when none was started.
func (s *supervisor) alive() <-chan struct{} {
	if p := s.current(); p != nil {
		return p.Done()
	}
	return nil
}

// current returns the running Envoy, or the one that ended last; nil when none was started.
func (s *supervisor) current() *instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// hot is current, where that takes part in hot restarts; nil otherwise.
func (s *supervisor) hot() *instance {
	if i := s.current(); i != nil && i.child != nil {
		return i
	}
	return nil
}

// release lets the next death of Envoy end the supervision: a draining agent
// starts no new one.
func (s *supervisor) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}

// stop ends Envoy, with SIGTERM and only then SIGKILL, and returns when it is gone.
func (s *supervisor) stop() {
	s.release()
	p := s.current()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	p.Stop(ctx)
}
