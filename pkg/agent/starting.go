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
	// acceptTimeout bounds the time between Envoy's admin saying that it serves and Envoy
	// itself saying to the generation before that it accepts; the one follows from the other.
	acceptTimeout = 5 * time.Second
)

// stopping is why a newcomer that was asked to stop gives its hand-off up. The other side
// looks for it: the words are part of the protocol.
const stoppingReason = "this generation was asked to stop"

// look finds out who else there is.
func (a *Agent) look(event) hotrestart.Role {
	if f := a.loop.follow; f != nil {
		f.close()
		a.loop.follow = nil
	}
	replaced := a.loop.replaced
	a.spawn(func(ctx context.Context) (event, bool) { return a.survey(ctx, replaced), true })
	return a.stay()
}

// lookIn looks after a pause.
func (a *Agent) lookIn(pause time.Duration) hotrestart.Role {
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-ctx.Done():
			return event{}, false
		case <-time.After(pause):
			return event{kind: lookAgain}, true
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
	foremost := slices.MaxFunc(live, func(x, y hotrestart.Neighbour) int {
		if by := cmp.Compare(importance(x.Report.Role), importance(y.Report.Role)); by != 0 {
			return by
		}
		if hotrestart.Newer(x.Report.Identity, y.Report.Identity).TakeOver {
			return 1
		}
		return -1
	}).Report
	verdict := hotrestart.Newer(a.me, foremost.Identity)
	if verdict.Warning != "" {
		a.log.Warn(verdict.Warning)
	}
	switch {
	case foremost.Leaving && importance(foremost.Role) == importance(hotrestart.RoleServing):
		return event{kind: foundOlder, peer: foremost.Identity, reason: "it was asked to stop"}
	case replaced || !verdict.TakeOver:
		return event{kind: foundNewer, peer: foremost.Identity, reason: verdict.Reason}
	}
	return event{kind: foundOlder, peer: foremost.Identity, reason: verdict.Reason}
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

// startCold binds everything and serves, for nobody else does.
func (a *Agent) startCold(event) hotrestart.Role {
	if a.loop.stopping {
		return a.finish(event{})
	}
	s, err := a.newSidecar(nil)
	if err == nil {
		a.run(s)
		err = s.accept()
	}
	if err != nil {
		return a.fail(event{sidecar: a.loop.sidecar, err: err})
	}
	return hotrestart.RoleStarting
}

func (a *Agent) newSidecar(inherited *inheritance) (*sidecar, error) {
	a.mu.Lock()
	a.loop.lives++
	id := a.me.ID
	if a.loop.lives > 1 {
		id = fmt.Sprintf("%s-%d", a.me.ID, a.loop.lives)
	}
	a.mu.Unlock()
	return newSidecar(a.cfg, a.world, id, hooks{samples: a.upgradeSamples, quit: a.Quit, drain: a.Drain}, inherited)
}

// run starts s, makes it the agent's, and reports when it is in force and when it ends.
func (a *Agent) run(s *sidecar) {
	a.adopt(s)
	s.start()
	a.watch(s)
}

// adopt makes s the one that commands and metrics are about.
func (a *Agent) adopt(s *sidecar) {
	a.loop.sidecar = s
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shown.sidecar = s
}

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
	if e.kind == inForce && a.loop.taking != nil {
		return a.stay() // the take-over goes on by itself
	}
	a.loop.taking, a.loop.failures, a.loop.replaced = nil, 0, false
	if e.kind == tookOver {
		a.adopt(e.sidecar)
		a.watch(e.sidecar)
		a.finishAttempt(resultSuccess, nil)
	}
	if f := a.loop.follow; f != nil {
		f.close()
		a.loop.follow = nil
	}
	a.loop.sidecar.sockets.settle()
	if e.kind == inForce {
		a.loop.sidecar.sockets.widen() // nobody is left who would empty a surplus socket
	}
	a.world.Settled()
	if a.loop.stopping {
		a.loop.role = hotrestart.RoleServing
		return a.considerStop(e)
	}
	return hotrestart.RoleServing
}

// takeOver begins to take over from an older generation.
func (a *Agent) takeOver(e event) hotrestart.Role {
	if a.loop.stopping {
		return a.finish(e)
	}
	a.log.Info("taking over", "from", e.peer.ID, "because", e.reason)
	a.beginAttempt(e.peer.ID, true)
	ctx, cancel := context.WithCancel(a.loop.ctx)
	done := make(chan struct{})
	a.loop.taking = func() { cancel(); <-done }
	a.loop.children.Go(func() {
		outcome := a.attempt(ctx, e.peer.ID)
		close(done)
		a.report(a.loop.ctx, outcome)
	})
	return a.stay()
}

// attempt is one take-over, from the first word to the last; the sidecar that it makes
// is ended when it fails.
func (a *Agent) attempt(ctx context.Context, id string) event {
	begun := time.Now()
	client, err := hotrestart.Dial(ctx, a.dir, id)
	if err != nil {
		return event{kind: failedToTake, err: err}
	}
	given := new(hotrestart.Sockets)
	if _, err := client.Sockets(ctx, given); err != nil {
		client.Close()
		return event{kind: failedToTake, err: errors.Join(err, given.Close())}
	}
	a.log.Debug("the generation before has told and given what it has", "bytes", client.State().Size(),
		"sockets", len(given.Names()), "after", time.Since(begun))
	s, err := a.newSidecar(&inheritance{given, client.State()})
	if err != nil {
		a.giveUp(client, err.Error())
		return event{kind: sidecarEnded, err: errors.Join(err, given.Close())}
	}
	clear(client.State()) // the client lives until the generation before has drained, and would keep it
	s.start()
	a.mu.Lock()
	a.shown.sidecar = s
	a.mu.Unlock()
	err = a.comeIntoForce(ctx, s, client)
	if err == nil {
		err = a.commit(ctx, s, client, begun)
	}
	switch {
	case err == nil:
		a.followDrain(client, s)
		return event{kind: tookOver, sidecar: s}
	case errors.Is(err, hotrestart.ErrLost):
		client.Close()
		return event{kind: wentAlone, sidecar: s, err: err}
	}
	s.sockets.widen()
	a.giveUp(client, err.Error())
	s.end()
	a.mu.Lock()
	a.shown.sidecar = nil
	a.mu.Unlock()
	var own *ownError
	if errors.As(err, &own) {
		return event{kind: sidecarEnded, err: own.err}
	}
	return event{kind: failedToTake, err: err}
}

func (a *Agent) giveUp(client *hotrestart.Client, reason string) {
	if err := client.Abort(reason); err != nil {
		a.log.Debug("the generation before could not be told", "err", err)
	}
}

// ownError is a fault of this generation's own, which another attempt would not mend.
type ownError struct{ err error }

func (e *ownError) Error() string { return e.err.Error() }
func (e *ownError) Unwrap() error { return e.err }

// comeIntoForce waits until the sidecar could serve. Nothing has changed for the
// generation before until then.
func (a *Agent) comeIntoForce(ctx context.Context, s *sidecar, client *hotrestart.Client) error {
	select {
	case <-s.inForce:
	case <-s.done:
		if errors.Is(s.err, errNoHotRestart) { // the generation before serves on; what is missing may come
			return s.err
		}
		return &ownError{cmp.Or(s.err, errors.New("the sidecar ended"))}
	case <-client.Lost():
		return whyLost(ctx, s, client)
	case <-ctx.Done():
		return errors.New(stoppingReason)
	}
	i := s.supervisor.current()
	if i == nil || i.child == nil {
		return fmt.Errorf("this generation's Envoy takes no part in hot restarts: %w", cmp.Or(s.launcher.disabled(), errNoHotRestart))
	}
	select {
	case <-i.accepts:
		return s.sockets.refresh(ctx, i)
	case <-client.Lost():
		return whyLost(ctx, s, client)
	case <-i.Done():
		return fmt.Errorf("Envoy ended as it took over: %s", i.Exit())
	case <-time.After(acceptTimeout):
		return errors.New("Envoy does not say that it accepts on the sockets that it was given")
	}
}

// whyLost says whether the generation before died or gave up, which the next step tells.
func whyLost(ctx context.Context, s *sidecar, client *hotrestart.Client) error {
	_, _, err := client.Ready(ctx, s.sockets.predecessors())
	return cmp.Or(err, hotrestart.ErrLost)
}

// commit begins to serve beside the generation before, and has that let go. Between
// the two somebody reads every socket at any moment.
func (a *Agent) commit(ctx context.Context, s *sidecar, client *hotrestart.Client, begun time.Time) error {
	if err := s.accept(); err != nil {
		return &ownError{err}
	}
	s.sockets.narrow()
	_, state, err := client.Ready(ctx, s.sockets.predecessors())
	if err != nil {
		return err
	}
	a.log.Info("serving; the generation before has let go", "from", client.Parent().ID, "after", time.Since(begun).Round(time.Millisecond))
	if s.adopt(state) {
		s.publishAgain()
	}
	return client.Commit(ctx)
}

// goAlone: the generation before died in the middle. Its sockets are here, and nobody
// else reads them.
func (a *Agent) goAlone(e event) hotrestart.Role {
	a.log.Warn("the generation before died during the hand-off: its connections are lost, its sockets are not", "err", e.err)
	a.loop.taking = nil
	a.adopt(e.sidecar)
	a.finishAttempt(resultSuccess, e.err)
	a.watch(e.sidecar)
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
		return a.finish(e)
	}
	var refused *hotrestart.RefusedError
	if errors.As(e.err, &refused) {
		a.finishAttempt(resultRefused, e.err)
		a.log.Warn("not taking over for now", "err", e.err)
		if refused.Code == hotrestart.RefusedOlder {
			return a.lookIn(retryFirst) // it judges otherwise than this one; the next look may not
		}
		return a.lookIn(lookSoon)
	}
	a.finishAttempt(resultFailure, e.err)
	if errors.Is(e.err, hotrestart.ErrLost) {
		a.log.Warn("the generation to take over from is gone", "err", e.err)
		return a.look(e)
	}
	pause := min(retryFirst<<min(a.loop.failures, 10), retryLast)
	a.loop.failures++
	a.log.Error("the take-over failed: the generation before serves on", "err", e.err, "next", pause)
	return a.lookIn(pause)
}

// stopStarting: nothing serves here yet, so that nothing has to be drained.
func (a *Agent) stopStarting(e event) hotrestart.Role {
	a.loop.stopping = true
	if a.loop.taking != nil {
		a.loop.taking() // tells the generation before
	}
	return a.finish(e)
}
