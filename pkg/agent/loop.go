package agent

import (
	"cmp"
	"context"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/envoy"
)

// runRoles handles one event after the other until the life is over. asked ends when a
// stop is asked for, base with the process.
func (a *Agent) runRoles(asked, base context.Context) error {
	ctx, cancel := context.WithCancel(base)
	a.loop.ctx = ctx
	a.loop.State = roles.State{ID: a.me.ID, Forced: a.me.Force, Role: handoff.RoleStarting}
	var handoffs <-chan handoff.Event
	if a.server != nil {
		handoffs = a.server.Events()
	}
	a.tell()
	a.handle(event{kind: roles.LookAgain})
	stop, quit, cutOff := asked.Done(), (<-chan struct{})(a.quit), (<-chan struct{})(a.cutOff)
	for !a.loop.Over {
		select {
		case <-stop:
			stop = nil
			a.handle(event{kind: roles.StopAsked})
		case <-quit:
			quit = nil
			a.handle(event{kind: roles.QuitAsked})
		case <-cutOff:
			cutOff = nil
			a.handle(event{kind: roles.HookCutOff, sidecar: a.current(), err: errCutOff})
		case e := <-handoffs:
			a.handle(event{kind: e.Kind, newcomer: e.Newcomer, err: e.Err})
		case e := <-a.events:
			a.handle(e)
		}
	}
	err := a.loop.err
	if err == nil {
		err = a.unsettled()
	}
	a.leave(cancel, handoffs)
	return err
}

// unsettled is the error of a stop that came before this generation was ever ready, or stood
// by (nil): a Job's sidecar whose start failed must be started again, not count as done.
func (a *Agent) unsettled() error {
	s := a.loop.sidecar
	if a.loop.Settled || s != nil && sidecar.IsClosed(s.InForce()) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	why := a.pending()
	if a.shown.waitFailed != "" { // that is why it is stopped
		why = "`wait` failed: " + a.shown.waitFailed
	}
	return &envoy.ExitError{Status: 1, Reason: "stopped before this agent was ever ready: " + why}
}

// handle does what an event asks for, and what follows from that.
func (a *Agent) handle(e event) {
	for next := &e; next != nil; {
		next = a.react(*next)
	}
}

// react enters the role that follows from an event, and tells everybody. The actions come first:
// what they change is told with the role.
func (a *Agent) react(e event) (next *event) {
	state, actions, known := a.loop.On(a.describe(e))
	if !known {
		a.log.Debug("of no consequence", "event", e.kind, "role", a.loop.Role)
		return nil
	}
	a.log.Debug("event", "event", e.kind, "role", a.loop.Role)
	a.loop.State = state
	for _, action := range actions {
		if next = execute[action.Do](a, e, action); next != nil {
			break // it failed: the others were to follow its success
		}
	}
	a.tell()
	return next
}

// describe is all that a role makes depend on an event.
func (a *Agent) describe(e event) roles.Event {
	current := a.loop.sidecar
	d := roles.Event{
		Kind: e.kind, Search: e.search, Err: e.err,
		Current: e.sidecar == current,
		Leaving: e.sidecar != nil && e.sidecar == a.loop.drains.leaving,
		Ours:    e.newcomer != nil && e.newcomer == a.loop.handOff.newcomer,
		Done:    e.drained.Done,
		Sidecar: current != nil, NoDrain: sidecar.IsClosed(a.noDrain), PredecessorDrained: a.predecessorDrained(),
	}
	if about := cmp.Or(e.sidecar, current); about != nil {
		d.InForce, d.Accepting = sidecar.IsClosed(about.InForce()), about.Accepting()
	}
	if e.kind == handoff.Arrived {
		newcomer := e.newcomer.Identity()
		d.Verdict, d.Forced = handoff.Newer(newcomer, a.me), newcomer.Force
		if current != nil {
			d.Unfit = current.Upgradable()
		}
	}
	return d
}

// leave ends everything that the life has begun.
func (a *Agent) leave(cancel func(), handoffs <-chan handoff.Event) {
	if a.loop.taking != nil {
		a.loop.taking(a.loop.err)
	}
	cancel()
	a.unfollow()
	done := make(chan struct{})
	go func() {
		a.loop.children.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			if s := a.current(); s != nil {
				s.End()
			}
			return
		case <-handoffs: // the server goes on until it is ended, after this
		}
	}
}
