package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/envoy"
)

const (
	// heirPoll is how often a generation that was asked to stop looks whether the newcomer
	// for which it waits is still there: one that has come so far that it speaks is an event.
	heirPoll = 100 * time.Millisecond
	// reliefTime is how long it serves on for one that could take over although it is
	// older: a standby does within milliseconds, or is being stopped as well.
	reliefTime = 2 * time.Second
	// countEvery is how many words on a drain come without Envoy's counters, which cost it
	// more than the number of connections; Envoy itself asks every 5 s.
	countEvery = 5
	// lateGrace is what a connection has at least that Envoy accepted at the very end of the probation,
	// where --upgradeDrainDuration, which counts from its begin, is over by then: time for a request.
	lateGrace = 2 * time.Second
	// statsTimeout bounds how long the counters of Envoy may take: a newcomer waits for them.
	statsTimeout = time.Second
)

// welcome answers a newcomer: it may take over if it is the newer one.
func (a *Agent) welcome(e event) hotrestart.Role {
	if refusal := a.judge(e.newcomer.Identity()); refusal != nil {
		a.log.Info("a newcomer was refused", "generation", e.newcomer.Identity().ID, "reason", refusal.Reason)
		a.warnUnlessLost(e.newcomer.Refuse(refusal.Code, refusal.Reason))
		if refusal.Code == hotrestart.RefusedMoved { // both are about to start: this one yields
			return a.look(e)
		}
		return a.stay()
	}
	if err := e.newcomer.Accept(a.fit(a.loop.sidecar.bequeath())); err != nil {
		a.warnUnlessLost(err)
		return a.stay()
	}
	if a.loop.cutDrain != nil {
		a.loop.sidecar.ready.On() // the drain of the stop took it
	}
	a.log.Info("a newcomer takes over", "generation", e.newcomer.Identity().ID, "agent", e.newcomer.Identity().AgentVersion)
	a.loop.newcomer, a.loop.began, a.loop.before = e.newcomer, time.Now(), a.loop.role
	a.beginAttempt(e.newcomer.Identity().ID, false)
	return hotrestart.RoleHandingOff
}

// fit leaves out of what a newcomer is told what does not fit into a hand-off: it starts without rather
// than not at all.
func (a *Agent) fit(state hotrestart.State) hotrestart.State {
	for name, size := range state.Fit(stateStats, stateCache, stateResources) {
		a.log.Warn("the newcomer does without: too large to be handed over", "component", name, "bytes", size)
	}
	return state
}

// judge says why a newcomer may not take over; nil when it may.
func (a *Agent) judge(newcomer hotrestart.Identity) *hotrestart.RefusedError {
	verdict := hotrestart.Newer(newcomer, a.me)
	starting := a.loop.role == hotrestart.RoleStarting
	switch {
	case !verdict.TakeOver && !a.loop.stopping: // else whoever comes is welcome
		return &hotrestart.RefusedError{Code: hotrestart.RefusedOlder, Reason: fmt.Sprintf("generation %s serves: %s", a.me.ID, verdict.Reason)}
	case a.loop.emptying:
		return &hotrestart.RefusedError{Code: hotrestart.RefusedBusy, Reason: fmt.Sprintf("generation %s is ending, and its sockets take nobody new", a.me.ID)}
	case starting && a.me.Force && !newcomer.Force:
		return &hotrestart.RefusedError{Code: hotrestart.RefusedBusy, Reason: fmt.Sprintf("generation %s is starting with --takeover=force", a.me.ID)}
	case a.loop.taking != nil:
		return &hotrestart.RefusedError{Code: hotrestart.RefusedBusy, Reason: fmt.Sprintf("generation %s is taking over itself", a.me.ID)}
	case a.loop.sidecar == nil:
		return &hotrestart.RefusedError{Code: hotrestart.RefusedMoved, Reason: fmt.Sprintf("generation %s has nothing to hand over, and stands by", a.me.ID)}
	}
	if err := a.loop.sidecar.upgradable(); err != nil {
		return &hotrestart.RefusedError{Code: hotrestart.RefusedUnready, Reason: fmt.Sprintf("generation %s cannot be taken over: %v", a.me.ID, err)}
	}
	return nil
}

// give hands copies of every socket to the newcomer. Nothing changes for this generation.
func (a *Agent) give(e event) hotrestart.Role {
	s := a.loop.sidecar
	if i := s.supervisor.Current(); i != nil && isClosed(i.Accepts()) {
		if err := s.sockets.Refresh(a.loop.ctx, i.Fetch); err != nil {
			a.log.Warn("the newcomer gets the sockets that Envoy had when it was asked last", "err", err)
		}
	}
	all, err := s.sockets.Copy()
	if err == nil {
		err = errors.Join(e.newcomer.Give(all), all.Close())
	}
	a.warnUnlessLost(err)
	return a.stay()
}

// letGo: the newcomer accepts on every socket. The agent's own servers accept no more
// from here on, Envoy does until the newcomer has settled.
func (a *Agent) letGo(e event) hotrestart.Role {
	s := a.loop.sidecar
	a.loop.letGoAt = time.Now()
	s.letGo()
	state := s.bequeathLast()
	if a.cfg.UpgradeStats {
		ctx, cancel := context.WithTimeout(a.loop.ctx, statsTimeout)
		counters, err := s.supervisor.Counters(ctx)
		if err != nil {
			a.log.Warn("Envoy's counters are not carried over", "err", err)
		} else {
			state[stateStats] = (*envoy.Counters)(nil).Delta(counters)
		}
		a.loop.counted = counters
		cancel()
	}
	all, err := s.sockets.Copy()
	if err == nil {
		err = errors.Join(e.newcomer.Release(all, a.fit(state)), all.Close())
	}
	a.warnUnlessLost(err)
	return a.stay()
}

// serveOn: the hand-off ended without a successor.
func (a *Agent) serveOn(e event) hotrestart.Role {
	if e.newcomer != a.loop.newcomer {
		return a.stay()
	}
	a.loop.newcomer = nil
	a.finishAttempt(resultFailure, e.err)
	a.log.Warn("the hand-off failed: this generation serves on", "err", e.err, "after", time.Since(a.loop.began).Round(time.Millisecond))
	a.loop.sidecar.sockets.UnrestrictReuseport()
	if !a.loop.sidecar.accepting() {
		if err := a.loop.sidecar.takeBack(); err != nil {
			return a.fail(event{sidecar: a.loop.sidecar, err: err})
		}
	}
	if a.loop.drainOver {
		a.emptySockets(e)
		return a.loop.before
	}
	if a.loop.cutDrain != nil {
		a.loop.sidecar.ready.Off(stopReason)
	}
	if a.loop.stopping && a.loop.cutDrain == nil {
		var aborted *hotrestart.AbortedError
		switch podStops := errors.As(e.err, &aborted) && aborted.Code == hotrestart.AbortStopping; {
		case !podStops:
			a.loop.orphaned = true // the newcomer may be started again
		case a.loop.before == hotrestart.RoleStarting:
			return a.stopStarting(e)
		default:
			a.drainToStop(e)
		}
	}
	return a.loop.before
}

// noteInForce: a cold start came into force while a newcomer was already taking over.
func (a *Agent) noteInForce(e event) hotrestart.Role {
	if e.sidecar != a.loop.sidecar {
		return a.stay() // of one that drains
	}
	a.loop.before, a.loop.settled = hotrestart.RoleServing, true
	e.sidecar.sockets.Settle()
	a.world.Settled()
	return a.stay()
}

// considerStop: a generation that was asked to stop serves on while a newer one is
// about to take over from it.
func (a *Agent) considerStop(event) hotrestart.Role {
	a.loop.stopping = true
	a.spawn(func(ctx context.Context) (event, bool) {
		last, said := time.Now(), false // when an heir was seen
		for {
			heir, relief := a.successors(ctx)
			if !heir && (!relief || time.Since(last) > reliefTime) {
				return event{kind: nobodyStarts}, true
			}
			if heir {
				last = time.Now()
			}
			if heir && !said {
				said = true
				a.log.Info("asked to stop: serving on until a newer generation that starts has taken over")
			}
			select {
			case <-ctx.Done():
				return event{}, false
			case <-time.After(heirPoll):
			}
		}
	})
	return a.stay()
}

// successors tells whether a newer generation is about to take over from this one (heir),
// and whether there is any other that might (relief): one that lives and does not answer,
// for one, which is an heir again as soon as it gets a share of the processor.
func (a *Agent) successors(ctx context.Context) (heir, relief bool) {
	if a.dir == nil || isClosed(a.noDrain) {
		return false, false
	}
	neighbours, err := a.dir.Look(ctx)
	if err != nil {
		return false, false
	}
	for _, n := range neighbours {
		if n.Err != nil {
			relief = true
			continue
		}
		if n.Report.Role == hotrestart.RoleStarting && hotrestart.Newer(n.Report.Identity, a.me).TakeOver {
			heir = true
		}
		relief = relief || !n.Report.Leaving
	}
	return heir, relief
}

// reconsiderStop: the newer generation for which this one served on is gone. One that
// died in the middle may be started again, and this one is all that the pod has.
func (a *Agent) reconsiderStop(e event) hotrestart.Role {
	if a.loop.orphaned {
		return a.stay()
	}
	return a.drainToStop(e)
}

// drainToStop is the ordinary stop. A newcomer may still take over meanwhile.
func (a *Agent) drainToStop(event) hotrestart.Role {
	cut, cancel := context.WithCancel(a.loop.ctx)
	a.loop.cutDrain = cancel
	s := a.loop.sidecar
	a.spawn(func(ctx context.Context) (event, bool) {
		defer cancel()
		go func() { // whoever asks for it ends the drain early
			select {
			case <-a.noDrain:
				cancel()
			case <-cut.Done():
			}
		}()
		s.drain(cut)
		return event{kind: drainedToStop}, true
	})
	return a.stay()
}

// postponeStop: the newcomer that is taking over decides.
func (a *Agent) postponeStop(event) hotrestart.Role {
	a.loop.stopping = true
	a.log.Info("asked to stop: serving on until the newcomer has taken over", "generation", a.loop.newcomer.Identity().ID)
	return a.stay()
}

// emptySockets: the drain of the ordinary stop is over. What came before is served before Envoy ends.
func (a *Agent) emptySockets(e event) hotrestart.Role {
	if isClosed(a.noDrain) {
		return a.finish(e)
	}
	a.loop.emptying = true
	s := a.loop.sidecar
	a.spawn(func(ctx context.Context) (event, bool) {
		s.empty(ctx)
		return event{kind: emptied}, true
	})
	return a.stay()
}

// postponeFinish: Envoy serves on behind its drain until the newcomer holds the sockets.
func (a *Agent) postponeFinish(event) hotrestart.Role {
	a.loop.drainOver = true
	return a.stay()
}

// retire: the newcomer holds everything for good. What is left here is to let
// connections end.
func (a *Agent) retire(event) hotrestart.Role {
	if a.loop.cutDrain != nil {
		a.loop.cutDrain()
		a.loop.cutDrain = nil
	}
	a.finishAttempt(resultSuccess, nil)
	a.loop.replaced, a.loop.drainOver = true, false
	a.shownSuccessor(a.loop.newcomer.Identity().ID, false)
	a.followSuccessor(a.loop.newcomer.Identity().ID)
	s := a.loop.sidecar
	ctx, hurry := context.WithDeadline(a.loop.ctx, a.drainDeadline(time.Now()))
	earlier := a.loop.hurry
	a.loop.hurry = func() {
		if hurry(); earlier != nil {
			earlier()
		}
	}
	a.loop.retiring++
	a.loop.leaving = s
	a.spawn(func(life context.Context) (event, bool) {
		defer hurry()
		var last *envoy.Counters
		words := 0
		s.retire(ctx, func(left int, final bool) {
			if words++; final || words%countEvery == 0 {
				last = a.count(life, s, last)
			}
			a.report(life, event{kind: draining, sidecar: s, drained: hotrestart.Drained{Left: left}, counters: last})
		})
		return event{kind: retired, sidecar: s, counters: last}, true
	})
	return hotrestart.RoleDraining
}

// drainDeadline is when a drain that begins now has to end: Envoy has accepted until now.
func (a *Agent) drainDeadline(now time.Time) time.Time {
	until := a.loop.letGoAt.Add(a.cfg.UpgradeDrainDuration)
	if late := now.Add(min(a.cfg.UpgradeDrainDuration, lateGrace)); late.After(until) {
		return late
	}
	return until
}

// count is counters for a drain: now and then it is asked what Envoy counted meanwhile.
// It returns last when that is not wanted, or not known.
func (a *Agent) count(ctx context.Context, s *sidecar, last *envoy.Counters) *envoy.Counters {
	if !a.cfg.UpgradeStats {
		return last
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	counters, err := s.supervisor.Counters(ctx)
	if err != nil {
		a.log.Debug("Envoy's counters", "err", err)
		return last
	}
	return counters
}
