package envoy

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// readyPoll is how often a starting Envoy is asked whether it serves; it adds
	// to the time that a pod waits, and a question costs Envoy well under 1 ms.
	readyPoll = 10 * time.Millisecond
	// spareReadyPoll is the same for one that says by itself when it accepts: a question
	// costs the agent half a millisecond, most of it in Go's runtime, which wakes up for it.
	spareReadyPoll = 100 * time.Millisecond
	// reasonPoll is how often an Envoy that does not serve yet is asked why. With 10,000
	// hosts it looks for that through statistics for 100 ms, in which it does not start.
	reasonPoll = 5 * time.Second
	// killTimeout is how long Envoy has to end after SIGTERM before SIGKILL.
	killTimeout = 3 * time.Second

	// taskEnvoy is the readiness task that is pending while Envoy does not serve.
	taskEnvoy = "envoy"
	// taskCrashes is pending while Envoy has ended too often of late.
	taskCrashes = "crash-loop"
)

// ExitError says that the agent's process must end with Status.
type ExitError struct {
	Status int
	Reason string
}

func (e *ExitError) Error() string { return e.Reason }

// Supervisor keeps one Envoy running: before one ever served it gives up after
// maxEarlyDeaths, and afterwards it starts the next one, at once after a life that was
// long enough, until a crash loop has lasted too long.
type Supervisor struct {
	cfg      Config
	launcher *launcher
	node     pressure // only the goroutine that takes the pulse uses it
	ended    string   // why the last Envoy was ended by the agent; "" when it was not

	mu       sync.Mutex
	process  *Instance
	stopping bool

	served   atomic.Int64 // how many Envoys did
	restarts atomic.Int64
}

// NewSupervisor returns a supervisor that has started nothing.
func NewSupervisor(cfg Config) *Supervisor {
	s := &Supervisor{
		cfg: cfg, launcher: &launcher{cfg: cfg, version: usualVersion}, node: pressure{files: pressureFiles[:]},
	}
	if cfg.NoHotRestart != nil {
		s.launcher.disable(cfg.NoHotRestart)
	}
	return s
}

// Run starts Envoy again and again until Stop is called (nil), or until it is
// clear that no Envoy will serve (an *ExitError with Envoy's status, or see [Hopeless]).
func (s *Supervisor) Run(ctx context.Context) error {
	s.cfg.Ready.Pending(taskEnvoy, "Envoy is starting")
	if err := s.launcher.fit(ctx); err != nil {
		return err
	}
	var lives crashes
	for {
		p, err := s.start()
		if p == nil && (err == nil || s.served.Load() == 0) {
			return err
		}
		died := death{status: 1}
		if err != nil { // what there was a moment ago may come back
			died.how = err.Error()
		} else {
			died.served = s.live(ctx, p, &lives)
			died.how, died.status, died.pid = cmp.Or(s.ended, p.Exit().String()), p.Exit().status(), p.pid()
		}
		if s.isStopping() {
			return nil
		}
		pause, err := s.mourn(ctx, &lives, died)
		if err != nil || !sleep(ctx, pause, nil) {
			return err
		}
		s.restarts.Add(1)
	}
}

// live returns when p has ended, and nothing that it needed is left, with the time for
// which it served.
func (s *Supervisor) live(ctx context.Context, p *Instance, lives *crashes) (served time.Duration) {
	s.ended = ""
	watch, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	since := make(chan time.Time, 1)
	var watching sync.WaitGroup
	watching.Go(func() {
		defer close(since)
		if s.watchReady(watch, p) {
			since <- time.Now()
			watching.Go(func() { s.calmDown(watch, lives) })
			s.takePulse(watch, p)
		}
	})
	<-p.cleared
	ended := time.Now()
	stopWatch()
	watching.Wait()
	if began, ok := <-since; ok {
		served = ended.Sub(began)
	}
	return served
}

// death is how one Envoy ended, or that it could not be started at all.
type death struct {
	how    string
	status int // that the agent ends with if it was the last one
	pid    int
	served time.Duration
}

// mourn says what comes after a death: the next start, after a pause, or the agent's end.
func (s *Supervisor) mourn(ctx context.Context, lives *crashes, d death) (pause time.Duration, err error) {
	now := time.Now()
	pause = lives.died(now, d.served)
	s.cfg.Ready.Pending(taskEnvoy, "Envoy ended ("+d.how+") and is being started again")
	// A stop that nobody asked for is an error, whatever Envoy thinks of it.
	status := cmp.Or(d.status, 1)
	if s.served.Load() == 0 {
		if lives.short >= maxEarlyDeaths {
			return 0, &ExitError{status, fmt.Sprintf("Envoy ended %d times before it ever served, the last time with %s: its own log says why", lives.short, d.how)}
		}
		if s.launcher.recheck(ctx) {
			pause = 0
		}
		s.cfg.Log.Error("Envoy ended before it served", "exit", d.how, "deaths", lives.short, "of", maxEarlyDeaths, "next", pause)
		return pause, nil
	}
	if lives.hopeless(now) {
		return 0, &ExitError{status, fmt.Sprintf("%s; it has been so for %v", lives.reason(d.how), now.Sub(lives.since).Round(time.Second))}
	}
	s.cfg.Log.Warn("Envoy ended and is started again", "exit", d.how, "pid", d.pid, "served", d.served.Round(time.Millisecond), "next", pause)
	if lives.looping(now) {
		s.cfg.Ready.Pending(taskCrashes, lives.reason(d.how))
	} else {
		s.cfg.Ready.Done(taskCrashes)
	}
	return pause, nil
}

// calmDown makes the agent ready again once Envoy has lived long enough after a crash loop.
func (s *Supervisor) calmDown(ctx context.Context, lives *crashes) {
	wait := lives.calmIn(time.Now())
	if wait == 0 || !sleep(ctx, wait, nil) {
		return
	}
	s.cfg.Log.Info("Envoy does not end again and again any more")
	s.cfg.Ready.Done(taskCrashes)
	s.begun()
}

// begun tells whoever waits for it that Envoy serves.
func (s *Supervisor) begun() {
	if s.cfg.Serves != nil {
		s.cfg.Serves()
	}
}

// takePulse makes the agent unready while its Envoy hangs, until ctx ends.
func (s *Supervisor) takePulse(ctx context.Context, p *Instance) {
	said := false
	watch{
		ask: s.cfg.Admin.answers, thread: p.mainThread,
		starved: func() bool { return s.node.starved(time.Now()) },
		hung: func(reason string) {
			s.cfg.Ready.Pending(taskEnvoy, reason)
			if !said {
				said = true
				s.cfg.Log.Error(reason, "pid", p.pid(), "restart", s.cfg.RestartHung)
			}
			if s.cfg.RestartHung && !s.isStopping() { // one that drains has connections that may yet be served
				s.ended = reason
				p.kill()
			}
		},
		well: func() {
			said = false
			s.cfg.Log.Info("Envoy answers again", "pid", p.pid())
			s.cfg.Ready.Done(taskEnvoy)
			s.begun()
		},
	}.run(ctx)
}

// sleep waits; false when ctx or what gone stands for ended before.
func sleep(ctx context.Context, wait time.Duration, gone <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-gone:
		return false
	case <-time.After(wait):
		return ctx.Err() == nil
	}
}

// start launches Envoy, unless the supervisor is stopping (nil, nil).
func (s *Supervisor) start() (*Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, nil
	}
	s.cfg.Ready.Pending(taskEnvoy, "Envoy is starting")
	p, err := s.launcher.start()
	if err != nil {
		return nil, err
	}
	s.process = p
	s.cfg.Log.Info("Envoy started", "pid", p.pid(), "path", s.cfg.Binary)
	return p, nil
}

// watchReady marks the agent's Envoy as ready once it serves; false when it never does.
func (s *Supervisor) watchReady(ctx context.Context, p *Instance) bool {
	accepts, poll := p.Accepts(), readyPoll
	if accepts != nil {
		poll = spareReadyPoll
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	started := time.Now()
	asked := started
	for {
		err := s.serves(ctx, p)
		if err == nil {
			s.served.Add(1)
			s.cfg.Log.Info("Envoy serves", "pid", p.pid(), "after", time.Since(started).Round(time.Millisecond))
			s.cfg.Ready.Done(taskEnvoy)
			s.begun()
			return true
		}
		if time.Since(asked) > reasonPoll {
			asked = time.Now()
			if state, stateErr := s.cfg.Admin.state(ctx); stateErr == nil {
				err = cmp.Or(state.ready(), err)
			}
		}
		s.cfg.Ready.Pending(taskEnvoy, err.Error())
		select {
		case <-ctx.Done():
			return false
		case <-p.Done():
			return false
		case <-accepts: // it has just begun to serve
			accepts = nil
		case <-tick.C:
		}
	}
}

// serves is nil when Envoy serves: it is live, which it is once it has had its first configuration, and its workers run. The
// question costs it next to nothing, but where it does not say by itself that it accepts.
func (s *Supervisor) serves(ctx context.Context, p *Instance) error {
	if err := s.cfg.Admin.isLive(ctx); err != nil {
		return err
	}
	accepts := p.Accepts()
	if accepts == nil {
		return s.cfg.Admin.workersRun(ctx)
	}
	select {
	case <-accepts:
		return nil
	default:
		return errWorkers
	}
}

// HasServed tells whether an Envoy ever did.
func (s *Supervisor) HasServed() bool { return s.served.Load() > 0 }

// Restarts is how many Envoys were started in the place of one that ended.
func (s *Supervisor) Restarts() uint64 { return uint64(s.restarts.Load()) }

// Upgradable is nil while Envoys take part in hot restarts; the error says why they do not.
func (s *Supervisor) Upgradable() error { return s.launcher.disabled() }

// HotRestartVersion is what Envoy is taken to say to --hot-restart-version.
func (s *Supervisor) HotRestartVersion() string { return s.launcher.currentVersion().String() }

func (s *Supervisor) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// Exited returns the channel that closes when the running Envoy ends, or has; nil when none was started.
func (s *Supervisor) Exited() <-chan struct{} {
	if p := s.Current(); p != nil {
		return p.Done()
	}
	return nil
}

// Current returns the running Envoy, or the one that ended last; nil when none was started.
func (s *Supervisor) Current() *Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// Hot is Current, where that takes part in hot restarts; nil otherwise.
func (s *Supervisor) Hot() *Instance {
	if i := s.Current(); i != nil && i.child != nil {
		return i
	}
	return nil
}

// Release lets the next death of Envoy end the supervision: a draining agent
// starts no new one.
func (s *Supervisor) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}

// AwaitStreamEnd returns when Envoy has seen the end of its configuration stream, when it cannot be asked, or when ctx ends.
func (s *Supervisor) AwaitStreamEnd(ctx context.Context) {
	gone := s.Exited()
	for {
		stats, err := s.cfg.Admin.gauges(ctx, gaugeStreams)
		if err != nil || stats[gaugeStreams.name] == 0 || !sleep(ctx, readyPoll, gone) {
			return
		}
	}
}

// Stop ends Envoy, with SIGTERM and only then SIGKILL, and returns when it is gone.
func (s *Supervisor) Stop() {
	s.Release()
	p := s.Current()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	p.stop(ctx)
}
