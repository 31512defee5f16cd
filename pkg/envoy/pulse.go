package envoy

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
	answered bool   // since the tick before
	thread   thread // its main thread
	known    bool   // thread is
	starved  bool   // the node has nothing to give
}

// tick notes a beat, and returns why Envoy counts as hung; "" while it does not.
func (p *pulse) tick(b beat) (hung string) {
	passed, idled := b.now.Sub(p.last), b.known && b.thread.time == p.cpu
	p.last, p.cpu = b.now, b.thread.time
	// A thread that would run and is not let waits for a processor, and not for anything of Envoy's.
	starved := b.starved || idled && b.thread.runnable || passed > pulsePoll+maxLate
	switch {
	case b.answered:
		p.silent, p.idle = 0, 0
	case starved:
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
	thread  func() (thread, error)
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
				thread, err := w.thread()
				b.thread, b.known, b.starved = thread, err == nil, w.starved()
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
