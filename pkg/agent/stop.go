package agent

import (
	"context"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
)

const (
	// heirPoll is how often a generation that was asked to stop looks whether the newcomer
	// for which it waits is still there: one that has come so far that it speaks is an event.
	heirPoll = 100 * time.Millisecond
	// reliefTime is how long it serves on for one that could take over although it is
	// older: a standby does within milliseconds, or is being stopped as well.
	reliefTime = 2 * time.Second
)

// awaitSuccessor reports when no newer generation is about to take over from this one.
func (a *Agent) awaitSuccessor() {
	a.spawn(func(ctx context.Context) (event, bool) {
		last, said := time.Now(), false // when an heir was seen
		for {
			heir, relief := a.successors(ctx)
			if !heir && (!relief || time.Since(last) > reliefTime) {
				return event{kind: roles.NobodyTakesOver}, true
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
		if n.Report.Role == handoff.RoleStarting && handoff.Newer(n.Report.Identity, a.me).TakeOver {
			heir = true
		}
		relief = relief || !n.Report.Leaving
	}
	return heir, relief
}

// drainToStop is the ordinary stop.
func (a *Agent) drainToStop() {
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
		s.Drain(cut)
		return event{kind: roles.DrainedToStop}, true
	})
}

// emptySockets serves what came before Envoy ends.
func (a *Agent) emptySockets() {
	s := a.loop.sidecar
	a.spawn(func(ctx context.Context) (event, bool) {
		s.Empty(ctx)
		return event{kind: roles.Emptied}, true
	})
}
