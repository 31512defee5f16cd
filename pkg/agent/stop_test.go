package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/envoy"
)

// moment is how long a test looks on before it says that nothing happens.
const moment = 300 * time.Millisecond

func (m *member) endsWell() {
	m.pod.t.Helper()
	if err := m.ends(); err != nil {
		m.pod.t.Errorf("a stop that was asked for: %v", err)
	}
}

// endsUnready: it was stopped before it was ever ready.
func (m *member) endsUnready() {
	m.pod.t.Helper()
	err := m.ends()
	if exit := new(envoy.ExitError); !errors.As(err, &exit) || exit.Status != 1 || !strings.Contains(exit.Reason, "ever ready: ") {
		m.pod.t.Errorf("a stop before it was ever ready: %v, want exit status 1 and the reason", err)
	}
}

func (m *member) goesOn(role handoff.Role) {
	m.pod.t.Helper()
	select {
	case <-m.ended:
		m.pod.t.Fatalf("%s ended: %v", m.name, m.err)
	case <-time.After(moment):
	}
	if m.role() != role {
		m.pod.t.Errorf("%s is %s, want %s", m.name, m.role(), role)
	}
}

func TestStopInTheMiddleOfATakeOverTellsTheOther(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]handoff.EventKind{
		"not welcomed yet": handoff.Arrived, "welcomed": handoff.WantSockets, "given the sockets": handoff.Ended, "ready": handoff.Ready,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			n := p.neighbour("n", handoff.RoleServing, nil, func(_ *neighbour, e handoff.Event) bool { return e.Kind == at })
			n.listen(t, p.listen)
			a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = at == handoff.Ended }))
			if at == handoff.Ended {
				n.expect(t, handoff.WantSockets)
				waitFor(t, "a to start its Envoy", func() bool { return a.current() != nil })
			} else {
				n.expect(t, at)
			}
			a.ask()
			a.endsUnready()
			if e := n.expect(t, handoff.Ended); e.Err.Error() != "the other generation gave up: "+stoppingReason {
				t.Errorf("the generation before is told %q, want %q", e.Err, stoppingReason)
			}
		})
	}
}

// TestStopOfTheServing: it serves on while a newer one is about to take over.
func TestStopOfTheServing(t *testing.T) {
	t.Parallel()
	t.Run("alone", func(t *testing.T) {
		t.Parallel()
		a := newPod(t).start("a")
		a.settles(handoff.RoleServing)
		a.ask()
		a.endsWell()
	})
	t.Run("beside an older one", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		a := p.start("a", withVersion("2", "1"))
		a.settles(handoff.RoleServing)
		p.neighbour("n", handoff.RoleStarting, func(i *handoff.Identity) { i.Version, i.Alt = "1", "2" }, nil)
		a.ask()
		a.endsWell()
	})
	t.Run("beside a newer one that gives up", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		a := p.start("a")
		a.settles(handoff.RoleServing)
		n := p.neighbour("n", handoff.RoleStarting, nil, nil)
		a.ask()
		a.goesOn(handoff.RoleServing)
		p.answers("a")
		n.leave()
		a.endsWell()
	})
	t.Run("beside a newer one that takes over", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		a := p.start("a")
		a.settles(handoff.RoleServing)
		held := p.connect()
		readName(held)
		n := p.neighbour("n", handoff.RoleStarting, nil, nil)
		a.ask()
		a.goesOn(handoff.RoleServing)
		p.replace(a, "n2")
		n.leave()
		a.becomes(handoff.RoleDraining)
		a.goesOn(handoff.RoleDraining)
		if !open(held) {
			t.Error("a connection was cut")
		}
		held.Close()
		a.endsWell()
	})
	t.Run("beside a newer one that does not get to answer", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		a := p.start("a")
		a.settles(handoff.RoleServing)
		dir := p.dir("n")
		n, err := handoff.NewServer(dir, handoff.Report{Role: handoff.RoleStarting}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		a.ask() // nobody runs n
		if _, newer, relief := a.successors(t.Context()); newer || !relief {
			t.Errorf("newer %v, relief %v: what lives may take over", newer, relief)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if err := n.Run(ended); err != nil {
			t.Error(err)
		}
		a.endsWell()
	})
	t.Run("without patience", func(t *testing.T) {
		t.Parallel()
		p := newPod(t)
		a := p.start("a")
		a.settles(handoff.RoleServing)
		p.neighbour("n", handoff.RoleStarting, nil, nil)
		a.kill()
		a.endsWell()
	})
}

func TestStopWhileHandingOff(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		code handoff.AbortCode
		ends bool
	}{
		"the newcomer fails":    {handoff.AbortFailed, false},  // it may be started again
		"the newcomer stops":    {handoff.AbortStopping, true}, // the whole pod does
		"the newcomer vanishes": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			a := p.start("a")
			a.settles(handoff.RoleServing)
			c, err := handoff.Dial(t.Context(), p.dir("c"), a.me.ID)
			if err != nil {
				t.Fatal(err)
			}
			var sockets hotrestart.Sockets
			defer sockets.Close()
			if err := c.Sockets(t.Context(), &sockets); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Ready(t.Context(), &sockets); err != nil { // it lets go
				t.Fatal(err)
			}
			a.ask()
			a.goesOn(handoff.RoleHandingOff)
			if tc.code == "" {
				c.Close()
			} else if err := c.Abort(tc.code, "my Envoy does not start"); err != nil {
				t.Fatal(err)
			}
			defer a.entered(handoff.RoleStarting, handoff.RoleServing, handoff.RoleHandingOff, handoff.RoleServing)
			if tc.ends {
				a.endsWell()
				return
			}
			a.becomes(handoff.RoleServing)
			a.goesOn(handoff.RoleServing)
			p.answers("a")
		})
	}
}

// TestStopOfAColdStart: what never served has nothing to drain, also after a hand-off that failed.
func TestStopOfAColdStart(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	waitFor(t, "a to start its Envoy", func() bool { return a.current() != nil })
	c, err := handoff.Dial(t.Context(), p.dir("c"), a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.becomes(handoff.RoleHandingOff)
	a.ask()
	a.goesOn(handoff.RoleHandingOff)
	if err := c.Abort(handoff.AbortStopping, ""); err != nil { // the whole pod stops
		t.Fatal(err)
	}
	a.endsUnready()
}

// TestStopBeforeReady: whoever asks for it.
func TestStopBeforeReady(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*member){
		"SIGTERM":       func(m *member) { m.ask() },
		"/quitquitquit": func(m *member) { m.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newPod(t).start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
			waitFor(t, "a to start its Envoy", func() bool { return a.current() != nil })
			stop(a)
			a.endsUnready()
		})
	}
}

func TestStopOfTheStandby(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.neighbour("n", handoff.RoleServing, func(i *handoff.Identity) { i.Started = time.Now().Add(time.Hour) }, nil)
	a := p.start("a")
	a.settles(handoff.RoleStandby)
	a.ask()
	a.endsWell()
}

func TestStopOfTheDraining(t *testing.T) {
	t.Parallel()
	for name, hurry := range map[string]bool{"drains on": false, "hurries": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			a := p.start("a")
			a.settles(handoff.RoleServing)
			held := p.connect()
			readName(held)
			n := p.replace(a, "n")
			a.becomes(handoff.RoleDraining)
			if hurry {
				a.kill()
				a.endsWell()
				return
			}
			a.ask()
			a.goesOn(handoff.RoleDraining)
			n.leave() // it does not come forward any more
			a.goesOn(handoff.RoleDraining)
			if !open(held) {
				t.Error("a connection was cut")
			}
			held.Close()
			a.endsWell()
		})
	}
}

// TestQuitWaitsForNobody: POST /quitquitquit is no SIGTERM.
func TestQuitWaitsForNobody(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	c, err := handoff.Dial(t.Context(), p.dir("c"), a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a.becomes(handoff.RoleHandingOff)
	a.ask() // is put off
	a.goesOn(handoff.RoleHandingOff)
	a.kill()
	a.endsWell()
	select {
	case <-c.Lost():
	case <-time.After(deadline):
		t.Error("the newcomer is not told")
	}
}

// TestOrphanServesOn: a stop was put off for a newcomer that failed. The newcomer may be started again, and
// this generation is all that the pod has, also when nobody is about to take over any more.
func TestOrphanServesOn(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	n := p.neighbour("n", handoff.RoleStarting, nil, nil) // for which a stop is put off
	a.ask()
	a.goesOn(handoff.RoleServing)
	c, err := handoff.Dial(t.Context(), n.dir, a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.becomes(handoff.RoleHandingOff)
	if err := c.Abort(handoff.AbortFailed, "its Envoy does not start"); err != nil {
		t.Fatal(err)
	}
	a.becomes(handoff.RoleServing)
	n.leave()
	a.goesOn(handoff.RoleServing)
	p.answers("a")
}

// TestWaitsWithoutLooking: a generation that serves on for a newer one is woken by what becomes of that one, and does
// not look in the hand-off directory meanwhile, where it would remove what the dead have left.
func TestWaitsWithoutLooking(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	n := p.neighbour("n", handoff.RoleStarting, nil, nil)
	a.ask()
	a.goesOn(handoff.RoleServing)
	left := filepath.Join(p.handoff, fmt.Sprintf("understudy-%d", os.Getuid()), "dead.lock")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.goesOn(handoff.RoleServing)
	if _, err := os.Stat(left); err != nil {
		t.Errorf("it looked while nothing happened: %v", err)
	}
	n.becomes(t, handoff.RoleStandby) // which might take over, for a while
	waitFor(t, "it to look", func() bool { _, err := os.Stat(left); return err != nil })
	a.endsWell()
}
