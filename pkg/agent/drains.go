package agent

import (
	"cmp"
	"context"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/envoy"
)

const (
	// countEvery is how many words on a drain come without Envoy's counters, which cost it
	// more than the number of connections; Envoy itself asks every 5 s.
	countEvery = 5
	// lateGrace is what a connection has at least that Envoy accepted at the very end of the probation,
	// where --upgradeDrainDuration, which counts from its begin, is over by then: time for a request.
	lateGrace = 2 * time.Second
)

// retire lets connections end: the newcomer holds everything for good.
func (a *Agent) retire() {
	a.finishAttempt(resultSuccess, nil)
	successor := a.loop.handOff.newcomer.Identity().ID
	a.update(func(s *shown) { s.successor, s.successorServes = successor, false })
	a.followSuccessor(successor)
	s := a.loop.sidecar
	ctx, hurry := context.WithDeadline(a.loop.ctx, a.drainDeadline(time.Now()))
	a.loop.drains.leaving, a.loop.drains.hurry = s, append(a.loop.drains.hurry, hurry)
	a.spawn(func(life context.Context) (event, bool) {
		defer hurry()
		requests := s.Requests(life)
		a.update(func(s *shown) { s.requests = requests })
		var last *envoy.Counters
		words := 0
		s.Retire(ctx, func(left envoy.Load, final bool) {
			if words++; final || words%countEvery == 0 {
				last = s.Count(life, last)
			}
			a.report(life, event{kind: roles.DrainNews, sidecar: s, drained: handoff.Drained{Left: left.Connections}, load: left, counters: last})
		})
		return event{kind: roles.Retired, sidecar: s, drained: handoff.Drained{Done: true}, counters: last}, true
	})
}

// drainDeadline is when a drain that begins now has to end: Envoy has accepted until now.
func (a *Agent) drainDeadline(now time.Time) time.Time {
	until := a.loop.handOff.released.Add(a.cfg.UpgradeDrainDuration)
	if late := now.Add(min(a.cfg.UpgradeDrainDuration, lateGrace)); late.After(until) {
		return late
	}
	return until
}

// tellNewcomer passes on how the drain goes, and what Envoy counted since the last word.
func (a *Agent) tellNewcomer(e event) {
	h := &a.loop.handOff
	if h.newcomer == nil {
		return
	}
	news := e.sidecar.ExportCounters(h.counted, e.counters)
	if err := h.newcomer.Drained(e.drained, news); err != nil {
		a.warnUnlessLost(err)
		return
	}
	h.counted = cmp.Or(e.counters, h.counted)
}

// endDrain: an old Envoy has exited, and nothing is left of it.
func (a *Agent) endDrain(e event) {
	if e.sidecar == a.loop.drains.leaving {
		a.loop.drains.leaving = nil
		if a.loop.Role != handoff.RoleHandingOff { // else they are what the next newcomer knows
			a.loop.handOff.counted = nil
		}
		a.update(func(s *shown) { s.left, s.drain = 0, nil })
		a.step("drained, and Envoy has ended")
	}
	if a.loop.Retiring == 0 {
		a.loop.drains.hurry = nil
	}
}

// hurryDrains ends them now.
func (a *Agent) hurryDrains() {
	for _, hurry := range a.loop.drains.hurry {
		hurry()
	}
}

// waitsFor is what a drain waits for, in the words of `upgrade-status`; nil: Envoy does not tell.
func waitsFor(l envoy.Load) *contract.Drain {
	if !l.Known && l.Connections > 0 {
		return nil
	}
	return &contract.Drain{Idle: l.Idle, Active: l.Active, Streams: l.Streams, TCP: l.TCP}
}
