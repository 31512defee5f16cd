package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	traffic "understudy.mesh/tests/load"
)

// hang is an agent that stops in the middle of a hand-off, and goes on later.
type hang struct {
	name  string
	old   bool
	line  string // of the newcomer's log
	short bool   // it is in the short form
}

// TestChaosHung stops the old agent, or the new one, for a while (SIGSTOP), shorter or longer than
// its peer has patience. What goes through Envoy is served all the time; what the agent itself
// answers may have to wait. Afterwards exactly one generation serves.
func TestChaosHung(t *testing.T) {
	t.Parallel()
	pauses, deadlines := []time.Duration{3 * time.Second}, rounds(t) >= soakRounds
	if deadlines {
		pauses = append(pauses, 20*time.Second)
	}
	for _, h := range []hang{
		{"the old agent while the new Envoy starts", true, saysEnvoyStarted, true},
		{"the old agent as it has let go", true, saysLetGo, false},
		{"the new agent while its Envoy starts", false, saysEnvoyStarted, false},
		{"the new agent as its Envoy serves", false, saysEnvoyServes, true},
		{"the new agent as the old one has let go", false, saysLetGo, false},
	} {
		if !h.short && !deadlines {
			continue
		}
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			p := newChaosPod(t)
			for _, pause := range pauses {
				p.stopFor(t, h, pause)
				if t.Failed() {
					return
				}
				if deadlines {
					p.upgrade(t)
				}
			}
		})
	}
}

func (p *chaosPod) stopFor(t *testing.T, h hang, pause time.Duration) {
	t.Helper()
	p.vacate(t)
	load := p.startLoad(t)
	old := p.slot(p.serving).Agent()
	l := p.newcomer(t, p.other())
	l.await(t, h.line)
	hung := l.Agent
	if h.old {
		hung = old
	}
	hung.Signal(syscall.SIGSTOP)
	<-time.After(pause)
	hung.Signal(syscall.SIGCONT)
	begin := time.Now()
	p.decide(t)
	took := time.Since(begin)
	report := load.stop(t)
	p.settle(t)
	lost, err := judgeHung(report)
	what := fmt.Sprintf("%s stops for %v: %s serves, as it is certain %v after its end; lost %q of %d",
		h.name, pause, p.slot(p.serving).Name, took.Round(time.Millisecond), lost, report.Total().OK)
	t.Log(what)
	if err != nil {
		t.Errorf("%s: lost what must not be: %v", what, err)
	}
	p.everyPortServes(t, 50)
}

// agentFlows are those of the load that the agent itself answers. Envoy's statistics are among
// them: its main thread waits for the agent while it asks, every 5 s, for those of the Envoy before.
var agentFlows = []string{"probe 15020", "probe 15021", "DNS", "DNS TCP", "admin", "scrape 15090"}

// judgeHung forgives what a hung agent does not answer, or not in time, and what a newcomer's Envoy
// has in flight when its agent finds, as it goes on, that the old generation has taken back.
func judgeHung(report traffic.Report) (lost []string, err error) {
	for _, f := range report.Flows {
		for class, n := range f.Total.Failed {
			said := fmt.Sprintf("%s: %d %s", f.Name, n, class)
			lost = append(lost, said)
			waits := slices.Contains(agentFlows, f.Name) && class != traffic.Refused && class != traffic.Wrong
			cut := (class == traffic.EOF || class == traffic.Reset) && n <= chaosWorkers
			if !waits && !cut {
				err = errors.Join(err, fmt.Errorf("%s; the first: %v", said, f.Failures[:min(3, len(f.Failures))]))
			}
		}
	}
	slices.Sort(lost)
	return lost, err
}
