package e2e_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// window is a part of a hand-off, found by what the newcomer says.
type window struct {
	name  string
	line  string
	after time.Duration
	// It is in the short form, for a victim of the old and of the new generation.
	old, new bool
}

// lateProbation is in its 2 s, with what a busy machine needs to kill somebody.
const lateProbation = 1700 * time.Millisecond

// windows are all of them, up to the last moment at which the old generation could take back.
var windows = []window{
	{name: "as it begins", line: saysTakingOver},
	{name: "while the new Envoy starts", line: saysEnvoyStarted, old: true},
	{name: "as the new Envoy begins to accept", line: saysWorkersStart, old: true},
	{name: "as the new Envoy serves", line: saysEnvoyServes, new: true},
	{name: "as the old one has let go", line: saysLetGo, old: true, new: true},
	{name: "in the probation", line: saysLetGo, after: time.Second, old: true},
	{name: "at the end of the probation", line: saysLetGo, after: lateProbation, new: true},
}

// victim is who dies in a window.
type victim struct {
	name string
	old  bool
	kill func(life)
}

// TestChaosWindows kills the old agent, the old Envoy, the new agent and the new Envoy in every
// window of a hand-off. Whatever was lost, the pod serves in the end, and every socket is read.
func TestChaosWindows(t *testing.T) {
	t.Parallel()
	agent := func(l life) { l.slot.Kill() }
	envoy := func(l life) { signalEnvoy(l, syscall.SIGKILL) }
	for generation, victims := range map[string][]victim{
		"old": {{"the old agent", true, agent}, {"the old Envoy", true, envoy}},
		"new": {{"the new agent", false, agent}, {"the new Envoy", false, envoy}},
	} {
		t.Run(generation, func(t *testing.T) {
			t.Parallel()
			p := newChaosPod(t)
			for _, w := range windows {
				if rounds(t) < soakRounds && !(generation == "old" && w.old || generation == "new" && w.new) {
					continue
				}
				for _, v := range victims {
					p.dieIn(t, w, v)
					if t.Failed() {
						return
					}
				}
			}
		})
	}
}

func (p *chaosPod) dieIn(t *testing.T, w window, v victim) {
	t.Helper()
	load := p.startLoad(t)
	old := life{Agent: p.slot(p.serving).Agent(), slot: p.slot(p.serving), position: p.slot(p.serving).Log.Len()}
	l := p.newcomer(t, p.other())
	l.await(t, w.line)
	<-time.After(w.after)
	begin := time.Now()
	if v.old {
		v.kill(old)
	} else {
		v.kill(l)
	}
	late := !v.old && l.committed(t, time.Now()) // a busy machine may need long to kill
	p.decide(t)
	took := time.Since(begin)
	report := load.stop(t)
	p.settle(t)
	lost, err := envoyGone.judge(report)
	what := fmt.Sprintf("%s is killed %s: %s serves, as it is certain after %v; lost %q of %d", v.name, w.name,
		p.slot(p.serving).Name, took.Round(time.Millisecond), lost, report.Total().OK)
	t.Log(what)
	// A newcomer that had no copies of the sockets yet cannot keep them open, nor can an old
	// generation that has closed its own.
	if err != nil && !(v.old && w.line == saysTakingOver) && !late {
		t.Errorf("%s: lost what must not be: %v", what, err)
	}
	p.everyPortServes(t, 50)
}

// TestChaosEnvoyCrash kills the Envoy that serves, again and again. Connections that come
// meanwhile wait in the sockets that the agent holds.
func TestChaosEnvoyCrash(t *testing.T) {
	t.Parallel()
	crashes := 5
	if rounds(t) >= soakRounds {
		crashes = 20
	}
	p := newChaosPod(t)
	p.upgrade(t) // its sockets are inherited ones
	load := p.startLoad(t)
	<-time.After(time.Second)
	var took []time.Duration
	for range crashes {
		serving := life{Agent: p.slot(p.serving).Agent(), slot: p.slot(p.serving), position: p.slot(p.serving).Log.Len()}
		if !signalEnvoy(serving, syscall.SIGKILL) {
			t.Fatal("there is no Envoy")
		}
		begin := time.Now()
		must(t, p.firstAnswer())
		took = append(took, time.Since(begin).Round(time.Millisecond))
		serving.await(t, saysEnvoyServes)
		<-time.After(500 * time.Millisecond) // traffic between two crashes
	}
	report := load.stop(t)
	lost, err := envoyGone.judgeTimes(report, crashes)
	t.Logf("%d crashes: accepted again after %v; lost %q of %d", crashes, took, lost, report.Total().OK)
	if err != nil {
		t.Errorf("lost what must not be: %v", err)
	}
	p.settle(t)
	// So many deaths turned the pod unready, for a minute after the third last.
	lab.Eventually(t, time.Minute+lab.Deadline, "the pod is ready again", patiently(func() error {
		return answers(p.Out, "http://"+lab.PodIP+":"+lab.HealthPort+"/healthz/ready")
	}))
	p.everyPortServes(t, 50)
}

// firstAnswer makes requests, one after the other, until one is answered. One that the dying Envoy
// has accepted may fail; none may be refused.
func (p *chaosPod) firstAnswer() error {
	for {
		err := answers(p.Out, "http://"+lab.PodIP+":8080/")
		if err == nil || strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "exceeded") {
			return err
		}
	}
}
