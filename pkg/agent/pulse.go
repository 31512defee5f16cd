package agent

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// pulsePoll is how often a serving Envoy is asked whether its main thread still answers.
	pulsePoll = time.Second
	// hungIdle is how long it may stay silent without any processor time: longer than a page
	// fault or a disk keeps it waiting.
	hungIdle = 30 * time.Second
	// hungBusy is the same for one that works: 20 s for a large Wasm module, or for ten thousand
	// hosts, are normal.
	hungBusy = 2 * time.Minute
	// maxLate is how late the agent's own timer may be on a node that gives it time.
	maxLate = time.Second
)

// pulse judges whether an Envoy that does not answer hangs. It is told the time.
type pulse struct {
	last time.Time     // of the tick before
	cpu  time.Duration // its main thread's, at the tick before
	// silent is for how long it has not answered, idle for how long of that, most recently, it
	// has had no processor time; in both, only time counts in which the node was well.
	silent, idle time.Duration
}

// beat is what was seen at one tick.
type beat struct {
	now      time.Time
	answered bool          // since the tick before
	cpu      time.Duration // what the main thread has had, ever
	cpuKnown bool
	starved  bool // the node has nothing to give
}

// tick notes a beat, and returns why Envoy counts as hung; "" while it does not.
func (p *pulse) tick(b beat) (hung string) {
	passed, idled := b.now.Sub(p.last), b.cpuKnown && b.cpu == p.cpu
	p.last, p.cpu = b.now, b.cpu
	switch {
	case b.answered:
		p.silent, p.idle = 0, 0
	case b.starved || passed > pulsePoll+maxLate:
		// It says nothing about Envoy: one bad node would turn all its pods unready.
	default:
		p.silent += passed
		p.idle += passed
		if !idled {
			p.idle = 0
		}
	}
	switch {
	case p.idle >= hungIdle:
		return fmt.Sprintf("Envoy hangs: it has not answered for %v, and its main thread did nothing for %v", p.silent.Round(time.Second), p.idle.Round(time.Second))
	case p.silent >= hungBusy:
		return fmt.Sprintf("Envoy hangs: it has not answered for %v, busy as it is", p.silent.Round(time.Second))
	}
	return ""
}

// watch is how the pulse of one Envoy is taken, and what comes of it.
type watch struct {
	ask     func(context.Context) error // returns once Envoy answers; an error is no answer
	cpu     func() (time.Duration, error)
	starved func() bool
	hung    func(reason string) // it hangs; called again each second, as long as it does
	well    func()              // it answers again
}

// run watches until ctx ends. At most one question is open at a time.
func (w watch) run(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	answers := make(chan error, 1)
	ask := func() { asking.Go(func() { answers <- w.ask(ctx) }) }
	tick := time.NewTicker(pulsePoll)
	defer tick.Stop()
	p := pulse{last: time.Now()}
	open, answered, hangs := true, false, false
	ask()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-answers:
			open, answered = false, err == nil
			if answered && hangs {
				hangs = false
				w.well()
			}
		case <-tick.C:
			b := beat{now: time.Now(), answered: answered}
			if !answered { // else nobody needs to look
				cpu, err := w.cpu()
				b.cpu, b.cpuKnown, b.starved = cpu, err == nil, w.starved()
			}
			if reason := p.tick(b); reason != "" {
				hangs = true
				w.hung(reason)
			}
			answered = false
			if !open {
				open = true
				ask()
			}
		}
	}
}
