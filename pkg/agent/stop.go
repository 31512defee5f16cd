package agent

import (
	"context"
	"sync"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
)

const (
	// watchPause is the time until a generation that cannot be watched is looked at again: it is
	// gone by then, or has had time to run.
	watchPause = 100 * time.Millisecond
	// reliefTime bounds how long a stop waits for an older generation to take over: a standby
	// does so within milliseconds, unless it is being stopped as well.
	reliefTime = 2 * time.Second
)

// awaitSuccessor reports when no newer generation is about to take over from this one.
func (a *Agent) awaitSuccessor() {
	a.spawn(func(ctx context.Context) (event, bool) {
		last, said := time.Now(), false // when a newer one was seen
		for {
			seen, newer, relief := a.successors(ctx)
			if newer {
				last = time.Now()
			}
			left := time.Until(last.Add(reliefTime))
			if !newer && (!relief || left <= 0) {
				return event{kind: roles.NobodyTakesOver}, true
			}
			patience := time.After(left)
			if newer { // is waited for as long as it takes
				patience = nil
			}
			if newer && !said {
				said = true
				a.log.Info("asked to stop: serving on until a newer generation that starts has taken over")
			}
			if !a.awaitChange(ctx, seen, patience) {
				return event{}, false
			}
		}
	})
}

// successors tells whether one of the other generations is a newer one that is about to take over
// from this one (newer), and whether any other might (relief). One that does not answer might: it
// may be a newer one that gets no time to run.
func (a *Agent) successors(ctx context.Context) (seen []handoff.Neighbour, newer, relief bool) {
	if a.dir == nil || sidecar.IsClosed(a.noDrain) {
		return nil, false, false
	}
	seen, err := a.dir.Look(ctx)
	if err != nil {
		return nil, false, false
	}
	for _, n := range seen {
		if n.Err != nil {
			relief = true
			continue
		}
		if n.Report.Role == handoff.RoleStarting && handoff.Newer(n.Report.Identity, a.me).TakeOver {
			newer = true
		}
		relief = relief || !n.Report.Leaving
	}
	return seen, newer, relief
}

// awaitChange returns when a generation is not any more as it was seen, when patience is over, or when
// a stop need not wait any more; false at the end of ctx. A generation that starts meanwhile need not
// be looked for: it connects.
func (a *Agent) awaitChange(ctx context.Context, seen []handoff.Neighbour, patience <-chan time.Time) bool {
	var watching sync.WaitGroup
	defer watching.Wait()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	changed := make(chan struct{}, len(seen))
	for _, n := range seen {
		watching.Go(func() {
			a.untilChanged(watch, n)
			changed <- struct{}{}
		})
	}
	select {
	case <-changed:
	case <-patience:
	case <-a.noDrain:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// untilChanged returns when a generation is not any more as it was seen, or at the end of ctx.
func (a *Agent) untilChanged(ctx context.Context, seen handoff.Neighbour) {
	w, err := a.dir.Watch(ctx, seen.ID)
	if err != nil {
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
		}
		return
	}
	defer w.Close()
	for {
		select {
		case r, ok := <-w.Reports():
			if !ok || seen.Err != nil || r.Role != seen.Report.Role || r.Leaving != seen.Report.Leaving {
				return
			}
		case <-ctx.Done():
			return
		}
	}
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
