package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy.mesh/hotrestart"
)

const (
	// lookSoon is the pause before another look when somebody else is at work:
	// taking over, or about to stand by.
	lookSoon = 100 * time.Millisecond
	// retryFirst doubles with each failed take-over, up to retryLast: the generation
	// before serves on, and each attempt costs it a little.
	retryFirst = time.Second
	retryLast  = 30 * time.Second
)

// look finds out who else there is.
func (a *Agent) look(event) hotrestart.Role {
	if f := a.loop.follow; f != nil {
		f.close()
		a.loop.follow = nil
	}
	a.loop.search++
	search, replaced := a.loop.search, a.loop.replaced
	a.spawn(func(ctx context.Context) (event, bool) {
		e := a.survey(ctx, replaced)
		e.search = search
		return e, true
	})
	return a.stay()
}

// lookIn looks after a pause.
func (a *Agent) lookIn(pause time.Duration) hotrestart.Role {
	a.loop.search++
	search := a.loop.search
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-ctx.Done():
			return event{}, false
		case <-time.After(pause):
			return event{kind: lookAgain, search: search}, true
		}
	})
	return a.stay()
}

// survey asks every other generation for its role and judges the foremost of those that
// serve or are about to. One that does not answer counts as dead: whether it is shows in
// its ports.
func (a *Agent) survey(ctx context.Context, replaced bool) event {
	if a.dir == nil {
		return event{kind: foundNobody}
	}
	neighbours, err := a.dir.Look(ctx)
	if err != nil {
		a.log.Warn("the hand-off directory cannot be read: this generation believes to be alone", "err", err)
	}
	live := slices.DeleteFunc(neighbours, func(n hotrestart.Neighbour) bool {
		if n.Err != nil {
			a.log.Warn("a generation does not answer and is taken for dead", "generation", n.ID, "err", n.Err)
		}
		return n.Err != nil || importance(n.Report.Role) == 0
	})
	if len(live) == 0 {
		return event{kind: foundNobody}
	}
	first := slices.MaxFunc(live, func(x, y hotrestart.Neighbour) int {
		if by := cmp.Compare(importance(x.Report.Role), importance(y.Report.Role)); by != 0 {
			return by
		}
		if hotrestart.Newer(x.Report.Identity, y.Report.Identity).TakeOver {
			return 1
		}
		return -1
	}).Report
	verdict := hotrestart.Newer(a.me, first.Identity)
	if verdict.Warning != "" {
		a.log.Warn(verdict.Warning)
	}
	switch {
	case first.Leaving && serves(first.Role):
		return event{kind: foundOlder, peer: first.Identity, reason: "it was asked to stop"}
	case first.Role == hotrestart.RoleStarting && first.Identity.Force && !a.me.Force:
		return event{kind: foundNewer, peer: first.Identity, reason: "it starts with --takeover=force"}
	case replaced && first.Role != hotrestart.RoleStarting, !verdict.TakeOver:
		return event{kind: foundNewer, peer: first.Identity, reason: verdict.Reason}
	}
	return event{kind: foundOlder, peer: first.Identity, reason: verdict.Reason}
}

// importance orders roles by how near they are to serving; 0 are those that never will
// while somebody else does.
func importance(r hotrestart.Role) int {
	switch r {
	case hotrestart.RoleServing, hotrestart.RoleHandingOff:
		return 2
	case hotrestart.RoleStarting:
		return 1
	}
	return 0
}

// serves tells whether a generation in that role does.
func serves(r hotrestart.Role) bool { return importance(r) == importance(hotrestart.RoleServing) }

// startCold binds everything and serves, for nobody else does.
func (a *Agent) startCold(e event) hotrestart.Role {
	if a.loop.stopping {
		return a.stopStarting(e)
	}
	s, err := a.newSidecar(nil)
	if err == nil {
		a.run(s)
		err = s.accept()
	}
	if err != nil && a.loop.sidecar == nil && a.loop.retiring > 0 {
		a.log.Error("this generation cannot serve again yet", "err", err, "next", retryFirst)
		return a.lookIn(retryFirst) // its end would cut the connections that it drains
	}
	if err != nil {
		return a.fail(event{sidecar: a.loop.sidecar, err: err})
	}
	return hotrestart.RoleStarting
}

func (a *Agent) newSidecar(inherited *inheritance) (*sidecar, error) {
	id := a.me.ID
	if n := a.lives.Add(1); n > 1 {
		id = fmt.Sprintf("%s-%d", a.me.ID, n)
	}
	return newSidecar(a.cfg, a.world, id, hooks{
		samples: a.upgradeSamples, quit: a.Quit, drain: a.Drain,
		learned: func() { a.report(a.loop.ctx, event{kind: learned}) },
	}, inherited)
}

// run starts s, and makes it the agent's.
func (a *Agent) run(s *sidecar) {
	a.adopt(s)
	s.start()
	a.watch(s)
}

// adopt makes s the agent's, and shows it; nil: it has none.
func (a *Agent) adopt(s *sidecar) {
	a.loop.sidecar = s
	a.showSidecar(s)
}

// watch reports when s is in force, and when it ends.
func (a *Agent) watch(s *sidecar) {
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-s.inForce:
			return event{kind: inForce, sidecar: s}, true
		case <-s.done:
		case <-ctx.Done():
		}
		return event{}, false
	})
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-s.done:
			return event{kind: sidecarEnded, sidecar: s, err: s.err}, true
		case <-ctx.Done():
			return event{}, false
		}
	})
}

// serve: this generation is the one that serves, and holds every socket.
func (a *Agent) serve(e event) hotrestart.Role {
	if e.kind == inForce && e.sidecar != a.loop.sidecar {
		return a.stay() // of one that drains
	}
	a.loop.taking, a.loop.failures, a.loop.replaced = nil, 0, false
	if e.kind == tookOver {
		e.sidecar.probation.pass()
		a.adopt(e.sidecar)
		a.watch(e.sidecar)
		a.finishAttempt(resultSuccess, nil)
	}
	if f := a.loop.follow; f != nil {
		f.close()
		a.loop.follow = nil
	}
	a.loop.sidecar.sockets.Settle()
	if e.kind == inForce || a.predecessorDrained() {
		a.loop.sidecar.sockets.UnrestrictReuseport() // nobody is left who would empty a surplus socket
	}
	a.world.Settled()
	if a.loop.stopping {
		a.considerStop(e)
	}
	return hotrestart.RoleServing
}

// goAlone: the generation before died in the middle. Its sockets are here, and nobody
// else reads them.
func (a *Agent) goAlone(e event) hotrestart.Role {
	a.log.Warn("the generation before died during the hand-off: its connections are lost, its sockets are not", "err", e.err)
	a.loop.taking = nil
	e.sidecar.probation.pass()
	a.adopt(e.sidecar)
	a.finishAttempt(resultSuccess, e.err)
	a.watch(e.sidecar)
	if a.loop.stopping && !isClosed(e.sidecar.inForce) {
		return a.finish(e)
	}
	if !e.sidecar.accepting() {
		if err := e.sidecar.accept(); err != nil {
			return a.fail(event{sidecar: e.sidecar, err: err})
		}
	}
	return hotrestart.RoleStarting
}

// tryLater: the generation before serves on; what this one had begun is undone.
func (a *Agent) tryLater(e event) hotrestart.Role {
	a.loop.taking = nil
	if a.loop.stopping {
		return a.stopStarting(e)
	}
	failures := min(a.loop.failures, 10)
	a.loop.failures++
	var refused *hotrestart.RefusedError
	if errors.As(e.err, &refused) {
		a.finishAttempt(resultRefused, e.err)
		pause := min(retryFirst<<failures, retryLast)
		if refused.Code == hotrestart.RefusedBusy || refused.Code == hotrestart.RefusedMoved {
			pause = min(lookSoon<<failures, retryFirst) // until somebody else is done
		}
		a.log.Warn("not taking over for now", "err", e.err, "next", pause)
		return a.lookIn(pause)
	}
	a.finishAttempt(resultFailure, e.err)
	if errors.Is(e.err, hotrestart.ErrLost) {
		a.log.Warn("the generation to take over from is gone", "err", e.err)
		return a.look(e)
	}
	pause := min(retryFirst<<failures, retryLast)
	a.log.Error("the take-over failed: the generation before serves on", "err", e.err, "next", pause)
	return a.lookIn(pause)
}

// stopStarting: nothing serves here yet, so that nothing has to be drained.
func (a *Agent) stopStarting(e event) hotrestart.Role {
	a.loop.stopping = true
	switch {
	case a.loop.taking != nil:
		a.loop.taking() // tells the generation before; what has become of it then, an event says
		return a.stay()
	case a.loop.sidecar == nil && a.loop.retiring > 0:
		return hotrestart.RoleDraining
	}
	return a.finish(e)
}
