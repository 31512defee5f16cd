package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// chaosPods is how many pods share the rounds: a pod has half a dozen processes at work.
const chaosPods = 2

// TestChaos does something bad to a hand-off in every round, and then upgrades.
func TestChaos(t *testing.T) {
	t.Parallel()
	n := rounds(t)
	for i := range chaosPods {
		t.Run(fmt.Sprint("pod ", i), func(t *testing.T) {
			t.Parallel()
			random := chance(t)
			p := newChaosPod(t)
			faults := faults(t, p.Lab)
			for round := i; round < n; round += chaosPods {
				p.round(t, round, faults[random.IntN(len(faults))], random)
				// In the short form further rounds may come first, but no pod ends without one.
				if n >= soakRounds || round+chaosPods >= n || random.IntN(3) == 0 {
					p.upgrade(t)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

func (p *chaosPod) round(t *testing.T, round int, f fault, random *rand.Rand) {
	t.Helper()
	begin := time.Now()
	p.vacate(t)
	before, old := p.portrait(t), p.serving
	load := p.startLoad(t)
	may, how := f.strike(t, p, random)
	took := time.Since(begin)
	p.decide(t)
	report := load.stop(t)
	p.settle(t) // a generation drains as long as the load has connections to it
	what := fmt.Sprintf("round %d, %s (%s, %v)", round, f.name, how, took.Round(time.Millisecond))
	may.check(t, what, report)
	if p.serving == old && may != everything {
		p.unchanged(t, before)
	}
	p.everyPortServes(t, 10)
}

// moment is a point of a hand-off.
type moment struct {
	line  string // of the newcomer's log; "" for its start
	after time.Duration
}

func (m moment) String() string {
	if m.line == "" {
		return fmt.Sprintf("%v after the start", m.after.Round(time.Millisecond))
	}
	return fmt.Sprintf("%v after %q", m.after.Round(time.Millisecond), m.line)
}

// A hand-off is through its first half within about this time.
const warmUp = 400 * time.Millisecond

func randomMoment(random *rand.Rand) moment {
	if random.IntN(2) == 0 {
		return moment{after: time.Duration(random.Int64N(int64(warmUp)))}
	}
	lines := []string{saysTakingOver, saysEnvoyStarted, saysWorkersStart, saysEnvoyServes, saysLetGo}
	m := moment{line: lines[random.IntN(len(lines))]}
	switch {
	case m.line == saysLetGo: // and all of the probation
		m.after = time.Duration(random.Int64N(int64(lateProbation)))
	case random.IntN(2) == 0:
		m.after = time.Duration(random.Int64N(int64(50 * time.Millisecond)))
	}
	return m
}

// wait returns at that moment of a life.
func (m moment) wait(t *testing.T, l life) {
	t.Helper()
	if m.line != "" {
		l.await(t, m.line)
	}
	<-time.After(m.after)
}

// tollOf is what the death of a newcomer at a time may cost: nothing, unless its Envoy had begun to
// accept; and everything once the old generation has closed its sockets.
func tollOf(t *testing.T, newcomer life, at time.Time) toll {
	t.Helper()
	switch {
	case newcomer.committed(t, at):
		return everything
	case newcomer.said(saysWorkersStart):
		return inFlight
	}
	return nothing
}

// tollOfEnvoy is what the death of a newcomer's Envoy, just now, may cost. Its agent has the sockets.
func tollOfEnvoy(t *testing.T, newcomer life) toll {
	t.Helper()
	if newcomer.said(saysEnvoyServes) { // from here on its agent may be the one that answers
		return envoyGone
	}
	return min(inFlight, tollOf(t, newcomer, time.Now()))
}

// mustEnd ends what is in the slot that does not serve: by SIGTERM in bounded time, or by SIGKILL.
func mustEnd(t *testing.T, slot *lab.Slot, random *rand.Rand) {
	t.Helper()
	if random.IntN(2) == 0 {
		slot.Kill()
		return
	}
	begin := time.Now()
	if code, was := slot.Stop(lab.Deadline); was && code < 0 {
		t.Errorf("SIGTERM has not ended a newcomer within %v", time.Since(begin))
	}
}
