package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/mesh/build"
)

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, code := range refusals {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			n := p.neighbour("n", handoff.RoleServing, nil, func(n *neighbour, e handoff.Event) bool {
				if e.Kind == handoff.Arrived {
					e.Newcomer.Refuse(code, "the reason")
				}
				return true
			})
			a := p.start("a")
			waitFor(t, "the attempt to be refused", func() bool { return a.lastAttempt().Result == resultRefused })
			s := a.roleStatus()
			if s.Settled || s.Role != string(handoff.RoleStarting) || !strings.Contains(s.Reason, "the reason") {
				t.Errorf("settled %v as %s: %q; want a starting generation that says why it was refused", s.Settled, s.Role, s.Reason)
			}
			n.expect(t, handoff.Arrived)
			n.expect(t, handoff.Arrived) // it asks again
			n.leave()
			if code == handoff.RefusedBusy { // the others do the same
				a.settles(handoff.RoleServing)
			}
		})
	}
}

// TestParentDies has the generation before die at each step, with its sockets on the way.
func TestParentDies(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		at      handoff.EventKind
		after   bool // it has answered
		unready bool // this one's Envoy is not done then
		alone   bool // this one goes on with the sockets
	}{
		"as it is asked":                 {at: handoff.Arrived},
		"as its sockets are wanted":      {at: handoff.WantSockets},
		"while this one's Envoy starts":  {at: handoff.WantSockets, after: true, unready: true},
		"as this one is ready":           {at: handoff.Ready, alone: true},
		"just after this one took over ": {at: handoff.Ready, after: true, alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			die := make(chan struct{}, 1)
			n := p.neighbour("n", handoff.RoleServing, nil, func(n *neighbour, e handoff.Event) bool {
				if e.Kind != tc.at {
					return false
				}
				if tc.after {
					n.agree(t, e)
				}
				die <- struct{}{}
				return true
			})
			n.listen(t, p.listen)
			early := p.connect() // waits in the socket
			a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = tc.unready }))
			<-die
			if tc.after {
				waitFor(t, "a to have the answer", func() bool { s := a.current(); return s != nil && s.Sockets.Predecessors().Len() > 0 })
			}
			n.leave()
			if tc.unready {
				waitFor(t, "a to go on alone", func() bool { return a.lastAttempt().Result == resultSuccess })
				if s := a.roleStatus(); s.Settled {
					t.Error("it counts as settled before its Envoy serves")
				}
			} else {
				a.settles(handoff.RoleServing)
				p.answers("a")
				waitFor(t, "the sockets of the generation before to be closed", func() bool { return a.current().Sockets.Predecessors().Len() == 0 })
			}
			if tc.alone && a.lastAttempt().Result != resultSuccess {
				t.Errorf("the attempt is %+v", a.lastAttempt())
			}
			if tc.alone || tc.unready {
				if name := readName(early); name != "a" {
					t.Errorf("a connection that waited in the socket got %q", name)
				}
			}
		})
	}
}

func TestParentTakesBack(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	refuse := true
	n := p.neighbour("n", handoff.RoleServing, nil, func(n *neighbour, e handoff.Event) bool {
		if e.Kind == handoff.Ready && refuse {
			refuse = false
			e.Newcomer.Refuse(handoff.RefusedUnready, "not now")
			return true
		}
		return false
	})
	n.listen(t, p.listen)
	a := p.start("a")
	waitFor(t, "the attempt to fail", func() bool { return a.lastAttempt().Result == resultFailure })
	if s := a.roleStatus(); s.Settled || !strings.Contains(s.Reason, "not now") {
		t.Errorf("settled %v, reason %q", s.Settled, s.Reason)
	}
	if a.current() != nil {
		t.Error("a failed attempt left its sidecar")
	}
	a.settles(handoff.RoleServing) // the next one
	n.expect(t, handoff.Settled)
	p.answers("a")
}

func TestEnvoyThatDiesInTheProbationHandsBack(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	n := p.neighbour("n", handoff.RoleServing, nil, nil)
	n.listen(t, p.listen)
	a := p.start("a")
	n.expect(t, handoff.Ready)
	waitFor(t, "a to accept", func() bool { s := a.current(); return s != nil && s.Accepting() })
	a.signalEnvoy(syscall.SIGKILL)
	if e := n.expect(t, handoff.Ended); !slices.Contains(n.told, handoff.Ready) || slices.Contains(n.told, handoff.Settled) || !strings.Contains(e.Err.Error(), "Envoy ended") {
		t.Errorf("the generation before is told %v: %v", n.told, e.Err)
	}
	a.settles(handoff.RoleServing) // at the next attempt
}

func TestEnvoyThatDiesOnceStillTakesOver(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	n := p.neighbour("n", handoff.RoleServing, nil, nil)
	n.listen(t, p.listen)
	early := p.connect()
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.ExitsOnce = filepath.Join(t.TempDir(), "died") }))
	a.settles(handoff.RoleServing)
	n.expect(t, handoff.Settled)
	if name := readName(early); name != "a" {
		t.Errorf("a connection that waited in the socket got %q", name)
	}
}

// TestLongStatistics: the counters of an Envoy may be more than a hand-off carries. It succeeds without.
func TestLongStatistics(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.LongStats = true }), func(c *config.Config, _ *fakeEnvoy) { c.UpgradeStats = true })
	a.settles(handoff.RoleServing)
	b := p.start("b")
	b.settles(handoff.RoleServing)
	if got := b.lastAttempt(); got.Result != resultSuccess {
		t.Errorf("the attempt is %+v", got)
	}
}

const twoEntries = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: default}
spec:
  hosts: [a.example]
  addresses: [10.1.2.3]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b, namespace: default}
spec:
  hosts: [b.example]
  addresses: [10.1.2.4]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
`

// TestNewcomerRefuses: a newcomer whose Envoy refuses what that of the generation before refuses too
// takes over; one that refuses more never does, and says why.
func TestNewcomerRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before, newcomer string
		takesOver        bool
	}{
		"nothing":            {"", "", true},
		"as the one before":  {"outbound|80||a.example", "outbound|80||a.example", true},
		"less":               {"outbound|80||a.example", "", true},
		"a cluster more":     {"", "outbound|80||a.example", false},
		"another":            {"outbound|80||a.example", "outbound|80||b.example", false},
		"a listener more":    {"", "10.1.2.3_80", false},
		"a capture listener": {"", build.InboundListener, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			if err := os.WriteFile(filepath.Join(p.cfg.ConfigDir, "entries.yaml"), []byte(twoEntries), 0o600); err != nil {
				t.Fatal(err)
			}
			refuses := func(name string) setting { return envoyThat(func(f *fakeEnvoy) { f.Refuses = name }) }
			a := p.start("a", refuses(tc.before))
			a.settles(handoff.RoleServing)
			b := p.start("b", refuses(tc.newcomer))
			if tc.takesOver {
				b.settles(handoff.RoleServing)
				return
			}
			waitFor(t, "the newcomer to say what it lacks", func() bool { return strings.Contains(b.roleStatus().Reason, tc.newcomer) })
			if s := a.roleStatus(); !s.Settled {
				t.Errorf("the generation before is not settled any more: %+v", s)
			}
		})
	}
}

// TestStoppingReasonStays: a generation before reads it.
func TestStoppingReasonStays(t *testing.T) {
	if stoppingReason != "this generation was asked to stop" {
		t.Errorf("the reason is %q", stoppingReason)
	}
}
