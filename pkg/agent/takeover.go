package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/envoy"
)

const (
	// deathTimeout bounds the time between the end of a generation's connection and that of its
	// lock: the kernel closes one file of a process after the other, some thousand at most.
	// deathPoll is how often the lock is looked at meanwhile. Nothing tells of its end: flock(2)
	// waits for it, but for ever, if the generation lives; inotify(7) tells of the close before the
	// lock goes; and a process in another container has no PID here.
	deathTimeout = time.Second
	deathPoll    = 5 * time.Millisecond
	// acceptTimeout bounds the time between Envoy's admin saying that it serves and Envoy
	// itself saying to the generation before that it accepts; the one follows from the other.
	acceptTimeout = 5 * time.Second
)

// stoppingReason is why a newcomer that was asked to stop gives its hand-off up.
const stoppingReason = "this generation was asked to stop"

// errSidecarEnded is why an attempt failed where its sidecar does not say more.
var errSidecarEnded = errors.New("the sidecar ended")

// takeOver begins to take over from an older generation.
func (a *Agent) takeOver(e event) {
	a.log.Info("taking over", "from", e.peer.ID, "because", e.reason)
	a.beginAttempt(e.peer.ID, true)
	a.step("asked generation %s to hand over, because %s", e.peer.ID, e.reason)
	ctx, cancel := context.WithCancelCause(a.loop.ctx)
	a.loop.taking = cancel
	a.spawn(func(context.Context) (event, bool) {
		defer cancel(nil)
		return a.attempt(ctx, e.peer.ID), true
	})
}

// finishTakeOver: this generation serves for good.
func (a *Agent) finishTakeOver(e event) {
	e.sidecar.PassProbation()
	a.adopt(e.sidecar)
	a.watch(e.sidecar)
	a.finishAttempt(resultSuccess, e.err)
}

// adoptOrphanedSockets: the generation before died in the middle.
func (a *Agent) adoptOrphanedSockets(e event) {
	a.log.Warn("the generation before died during the hand-off: its connections are lost, its sockets are not", "err", e.err)
	e.sidecar.Alone()
	a.finishTakeOver(e)
}

func (a *Agent) sayRefused(e event, action roles.Action) {
	a.log.Warn("not taking over for now", "err", e.err, "next", action.Pause)
}

func (a *Agent) sayLost(e event, _ roles.Action) {
	a.log.Warn("the generation to take over from is gone", "err", e.err)
}

func (a *Agent) sayHopeless(event, roles.Action) {
	a.log.Error("no further attempt would take over: this agent ends, and the generation before serves on")
}

func (a *Agent) sayCutOff(event, roles.Action) {
	a.log.Error("nobody waits for this newcomer any more: it ends, and the generation before serves on")
}

func (a *Agent) sayFailed(e event, action roles.Action) {
	a.log.Error("the take-over failed: the generation before serves on", "err", e.err, "next", action.Pause)
}

// succession is what one take-over has to do with.
type succession struct {
	client  *handoff.Client
	sidecar *sidecar.Sidecar
	envoy   *envoy.Instance // that came into force
	begun   time.Time
}

// attempt is one take-over, from the first word to the last; the sidecar that it makes
// is ended when it fails.
func (a *Agent) attempt(ctx context.Context, id string) event {
	begun := time.Now()
	client, err := handoff.Dial(ctx, a.dir, id, sidecar.TakesFiles(a.cfg)...)
	if err != nil {
		return event{kind: roles.FailedToTake, err: err}
	}
	given := new(hotrestart.Sockets)
	if err := client.Sockets(ctx, given); err != nil {
		client.Files().Close()
		a.giveUp(ctx, client, err)
		return event{kind: roles.FailedToTake, err: errors.Join(err, given.Close())}
	}
	a.log.Debug("the generation before has told and given what it has", "bytes", client.State().Size(),
		"sockets", len(given.Names()), "after", time.Since(begun))
	a.step("got %d sockets and %d bytes of state", len(given.Names()), client.State().Size())
	s, err := a.newSidecar(&sidecar.Inheritance{Sockets: given, State: client.State(), Files: client.Files()})
	client.Files().Close() // they are read
	if err != nil {
		a.giveUp(ctx, client, err)
		return event{kind: roles.SidecarEnded, err: errors.Join(err, given.Close())}
	}
	clear(client.State()) // the client lives until the generation before has drained, and would keep it
	s.Start()
	a.update(func(shown *shown) { shown.sidecar = s })
	t := &succession{client: client, sidecar: s, begun: begun}
	err = t.comeIntoForce(ctx)
	if err == nil {
		a.step("the configuration is in force, and Envoy accepts")
	}
	hopeless := envoy.Hopeless(err) && !sidecar.IsClosed(client.Lost())
	if err == nil {
		err = a.commit(ctx, t)
	}
	switch {
	case err == nil:
		a.followDrain(client, s)
		return event{kind: roles.TookOver, sidecar: s}
	case errors.Is(err, handoff.ErrLost) && a.died(ctx, id):
		client.Close()
		return event{kind: roles.PredecessorDied, sidecar: s, err: err}
	case errors.Is(err, handoff.ErrLost):
		err = fmt.Errorf("the generation before broke the hand-off off, and lives: %v", err) //nolint:errorlint // it is not lost
	}
	s.Sockets.UnrestrictReuseport()
	a.giveUp(ctx, client, err)
	s.Abandon()
	a.update(func(shown *shown) { shown.sidecar = nil })
	if hopeless {
		err = fmt.Errorf("this agent's Envoy cannot take over from generation %s, which serves on: %v", id, err) //nolint:errorlint // its status is not the agent's
		return event{kind: roles.Hopeless, err: err}
	}
	return event{kind: roles.FailedToTake, err: err}
}

// giveUp tells the generation before why. The error of one that was asked to stop comes of that,
// and is not told.
func (a *Agent) giveUp(ctx context.Context, client *handoff.Client, why error) {
	code, reason := handoff.AbortFailed, why.Error()
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		code, reason = handoff.AbortStopping, ""
	} else if cause != nil { // the life is over for it
		reason = cause.Error()
	}
	if err := client.Abort(code, reason); err != nil {
		a.log.Debug("the generation before could not be told", "err", err)
	}
}

// died tells whether a generation whose connection ended is gone: a living one, whom
// something else made break off, serves on.
func (a *Agent) died(ctx context.Context, id string) bool {
	deadline := time.NewTimer(deathTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(deathPoll)
	defer tick.Stop()
	for {
		living, err := a.dir.Generations()
		if err != nil || !slices.Contains(living, id) {
			return true
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// comeIntoForce waits until the sidecar could serve. Nothing has changed for the
// generation before until then.
func (t *succession) comeIntoForce(ctx context.Context) error {
	s := t.sidecar
	select {
	case <-s.InForce():
	case err := <-s.Unfit():
		return err
	case <-s.Done():
		return cmp.Or(s.Err(), errSidecarEnded)
	case <-t.client.Lost():
		return t.whyLost(ctx)
	case <-ctx.Done():
		return errors.New(stoppingReason)
	}
	i := s.Envoy.Hot()
	t.envoy = i
	if i == nil {
		return fmt.Errorf("this generation's Envoy takes no part in hot restarts: %w", cmp.Or(s.Envoy.Upgradable(), envoy.ErrNoHotRestart))
	}
	select {
	case <-i.Accepts():
		return s.Sockets.Refresh(ctx, i.Fetch)
	case <-t.client.Lost():
		return t.whyLost(ctx)
	case <-i.Done():
		return fmt.Errorf("this generation's Envoy ended as it took over: %s", i.Exit())
	case <-time.After(acceptTimeout):
		return errors.New("this generation's Envoy does not say that it accepts on the sockets that it was given")
	}
}

// whyLost says whether the generation before died or gave up, which the next step tells.
func (t *succession) whyLost(ctx context.Context) error {
	_, err := t.client.Ready(ctx, t.sidecar.Sockets.Predecessors())
	return cmp.Or(err, handoff.ErrLost)
}

// commit begins to serve beside the generation before, and then has that release its listeners:
// at any moment somebody reads every socket.
func (a *Agent) commit(ctx context.Context, t *succession) error {
	s := t.sidecar
	if err := s.Accept(); err != nil {
		return err
	}
	s.Sockets.RestrictReuseport()
	state, err := t.client.Ready(ctx, s.Sockets.Predecessors())
	if err != nil {
		return err
	}
	a.log.Info("serving; the generation before has let go", "from", t.client.Parent().ID, "after", time.Since(t.begun).Round(time.Millisecond))
	s.InheritLast(state)
	a.step("serves; the generation before has let go, and could take back for 2 s")
	return t.awaitProbation(ctx)
}

// awaitProbation makes the take-over final, unless this generation's Envoy ends before: then the one
// before serves again.
func (t *succession) awaitProbation(ctx context.Context) error {
	probation, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-t.envoy.Done():
		case <-t.sidecar.Done():
		case <-probation.Done():
		}
		cancel()
	}()
	err := t.client.Commit(probation)
	switch {
	case err == nil || ctx.Err() != nil || !errors.Is(err, context.Canceled):
		return err
	case sidecar.IsClosed(t.sidecar.Done()):
		return cmp.Or(t.sidecar.Err(), errSidecarEnded)
	}
	return fmt.Errorf("this generation's Envoy ended just after it took over: %s", t.envoy.Exit())
}

// followDrain reports how the drain of the generation before goes, until it has ended.
// What the Envoy before went on to count goes to s.
func (a *Agent) followDrain(client *handoff.Client, s *sidecar.Sidecar) {
	a.update(func(s *shown) { s.predecessor = &handoff.Drained{} })
	a.spawn(func(ctx context.Context) (event, bool) {
		defer client.Close()
		for {
			d, news, err := client.Next(ctx)
			if err != nil {
				d = handoff.Drained{Done: true} // it ended
			}
			s.Alone() // its first word comes when its Envoy has stopped accepting
			s.InheritCounters(news)
			if d.Done {
				return event{kind: roles.PredecessorNews, drained: d}, true
			}
			a.report(ctx, event{kind: roles.PredecessorNews, drained: d})
		}
	})
}
