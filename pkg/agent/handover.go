package agent

import (
	"errors"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
)

func (a *Agent) reject(e event, action roles.Action) *event {
	a.log.Info("a newcomer was refused", "generation", e.newcomer.Identity().ID, "reason", action.Refusal.Reason)
	return a.refuse(e, action)
}

func (a *Agent) refuse(e event, action roles.Action) *event {
	a.warnUnlessLost(e.newcomer.Refuse(action.Refusal.Code, action.Refusal.Reason))
	return nil
}

// welcome tells a newcomer that it may take over, and all that warms it.
func (a *Agent) welcome(e event, _ roles.Action) *event {
	s := a.loop.sidecar
	if err := e.newcomer.Accept(s.ExportState(), s.ExportFiles(e.newcomer.Takes)); err != nil {
		a.warnUnlessLost(err)
		return nil
	}
	return &event{kind: roles.Welcomed, newcomer: e.newcomer}
}

func (a *Agent) beginHandOff(e event) {
	newcomer := e.newcomer.Identity()
	a.log.Info("a newcomer takes over", "generation", newcomer.ID, "agent", newcomer.AgentVersion)
	a.loop.handOff = handOff{newcomer: e.newcomer, began: time.Now()}
	a.beginAttempt(newcomer.ID, false)
	a.step("generation %s arrived, and was told what there is", newcomer.ID)
}

// giveSockets hands copies of every socket to the newcomer.
func (a *Agent) giveSockets(e event) {
	s := a.loop.sidecar
	if i := s.Envoy.Current(); i != nil && sidecar.IsClosed(i.Accepts()) {
		if err := s.Sockets.Refresh(a.loop.ctx, i.Fetch); err != nil {
			a.log.Warn("the newcomer gets the sockets that Envoy had when it was asked last", "err", err)
		}
	}
	all, err := s.Sockets.Copy()
	if err == nil {
		a.step("gave it %d sockets", len(all.Names()))
		err = errors.Join(e.newcomer.Give(all), all.Close())
	}
	a.warnUnlessLost(err)
}

// releaseListeners: the newcomer accepts on every socket. The agent's own servers accept no more
// from here on, Envoy does until the newcomer has settled.
func (a *Agent) releaseListeners(e event) {
	s := a.loop.sidecar
	a.loop.handOff.released = time.Now()
	a.step("it accepts on every socket; let go of the listeners")
	s.ReleaseListeners()
	var state handoff.State
	state, a.loop.handOff.counted = s.ExportLast(a.loop.ctx)
	all, err := s.Sockets.Copy()
	if err == nil {
		err = errors.Join(e.newcomer.Release(all, state), all.Close())
	}
	a.warnUnlessLost(err)
}

// failHandOff: it ended without a successor.
func (a *Agent) failHandOff(e event) {
	a.loop.handOff.newcomer = nil
	a.loop.sidecar.Alone()
	a.finishAttempt(resultFailure, e.err)
	a.log.Warn("the hand-off failed: this generation serves on", "err", e.err, "after", time.Since(a.loop.handOff.began).Round(time.Millisecond))
}

func (a *Agent) sayPostponed() {
	a.log.Info("asked to stop: serving on until the newcomer has taken over", "generation", a.loop.handOff.newcomer.Identity().ID)
}
