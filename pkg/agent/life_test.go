package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"weak"

	"understudy.mesh/hotrestart"
	hotenvoy "understudy.mesh/hotrestart/envoy"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/overview"
)

func TestTakeOverAndComeBack(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	p.answers("a")
	first := weak.Make(a.current())

	b := p.start("b")
	b.settles(handoff.RoleServing)
	p.becomesServedBy("b")
	p.answers("b")
	a.settles(handoff.RoleStandby)
	waitFor(t, "the standby's memory to be given back", func() bool {
		runtime.GC()
		return first.Value() == nil
	})
	waitFor(t, "b to know that a has drained", func() bool { return b.roleStatus().Drained })

	b.kill()
	a.settles(handoff.RoleServing)
	p.answers("a")
	a.ask()
	if err := a.ends(); err != nil {
		t.Errorf("a stop that was asked for: %v", err)
	}
	for _, dir := range []string{p.cfg.ConfigPath, filepath.Join(p.cfg.HandoffDir, fmt.Sprintf("understudy-%d", os.Geteuid()))} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v; want nothing to be left", dir, left, err)
		}
	}
}

func TestStandsByForANewerOne(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	newer := func(i *handoff.Identity) { i.Version, i.Alt = "3", "2" }
	n := p.neighbour("n1", handoff.RoleStarting, newer, nil)
	a := p.start("a", withVersion("1", "3"))
	a.becomes(handoff.RoleStandby)
	if s := a.roleStatus(); s.Settled || !strings.Contains(s.Reason, "n1") {
		t.Errorf("settled %v, reason %q: the generation that it stands by for does not serve yet", s.Settled, s.Reason)
	}
	n.becomes(t, handoff.RoleServing)
	a.settles(handoff.RoleStandby)
	_, err := handoff.Dial(t.Context(), p.dir("c"), a.me.ID)
	if refused := new(handoff.RefusedError); !errors.As(err, &refused) || refused.Code != handoff.RefusedMoved {
		t.Errorf("a newcomer got %v, want to be sent on", err)
	}
	if err := a.drainEnvoy(t.Context()); err == nil {
		t.Error("a standby has nothing to drain")
	}

	next := p.neighbour("n2", handoff.RoleServing, newer, nil) // n1 was replaced
	n.leave()
	waitFor(t, "a to follow n2", func() bool { s, _ := a.successor(); return s == "n2" })
	a.settles(handoff.RoleStandby)
	next.leave()
	a.settles(handoff.RoleServing)
	p.answers("a")
}

// TestTakesOverFromOneThatLeaves: a standby relieves the newer generation that is asked to stop.
func TestTakesOverFromOneThatLeaves(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	newer := func(i *handoff.Identity) { i.Started = time.Now().Add(time.Hour) }
	seen := make(chan struct{})
	n := p.neighbour("n", handoff.RoleServing, newer, func(_ *neighbour, e handoff.Event) bool {
		if e.Kind == handoff.Arrived {
			select {
			case <-seen:
			case <-t.Context().Done():
			}
		}
		return false
	})
	n.listen(t, p.listen)
	a := p.start("a")
	a.settles(handoff.RoleStandby)
	before := a.self().Since
	if err := n.server.SetReport(handoff.Report{Role: handoff.RoleServing, Leaving: true}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a to be starting since then", func() bool { return a.role() == handoff.RoleStarting && a.self().Since.After(before) })
	close(seen)
	a.settles(handoff.RoleServing)
	n.expect(t, handoff.Settled)
	a.entered(handoff.RoleStarting, handoff.RoleStandby, handoff.RoleStarting, handoff.RoleServing)
}

func TestOfTwoThatStartAtOnceOneServes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		a, b  []setting
		first string // who has to serve; "" is either
	}{
		"by start":       {},
		"by version":     {[]setting{withVersion("2", "1")}, []setting{withVersion("1", "2")}, "a"},
		"by force":       {[]setting{withForce}, nil, "a"},
		"force, version": {[]setting{withForce, withVersion("1", "2")}, []setting{withVersion("2", "1")}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			a, b := p.start("a", tc.a...), p.start("b", tc.b...)
			serves, stands := a, b
			waitFor(t, "one to serve and the other to stand by", func() bool {
				if a.role() == handoff.RoleStandby {
					serves, stands = b, a
				} else {
					serves, stands = a, b
				}
				return serves.role() == handoff.RoleServing && stands.role() == handoff.RoleStandby
			})
			if tc.first != "" && serves.name != tc.first {
				t.Errorf("%s serves, want %s", serves.name, tc.first)
			}
			stands.settles(handoff.RoleStandby)
			p.becomesServedBy(serves.name)
		})
	}
}

func TestHandOffOfAColdStartIsNotSettled(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	waitFor(t, "a to start its Envoy", func() bool { return a.current() != nil })
	c, err := handoff.Dial(t.Context(), p.dir("c"), a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.becomes(handoff.RoleHandingOff)
	if s := a.roleStatus(); s.Settled || s.Reason == "" {
		t.Errorf("settled %v, %q: it has never served", s.Settled, s.Reason)
	}
	if err := c.Abort(handoff.AbortFailed, "changed my mind"); err != nil {
		t.Fatal(err)
	}
	a.becomes(handoff.RoleStarting)
}

// TestServesBesideItsDrain: the successor of a generation dies while that one drains, and
// it is taken over from once more before the first drain is over.
func TestServesBesideItsDrain(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	held := p.connect()
	if name := readName(held); name != "a" {
		t.Fatalf("served by %q", name)
	}
	first := p.replace(a, "b")
	a.becomes(handoff.RoleDraining)
	waitFor(t, "the drain to be counted", func() bool { return a.self().Connections == 1 })
	first.leave()
	a.settles(handoff.RoleServing)
	p.answers("a")
	if !open(held) {
		t.Error("the connection of the first Envoy was cut")
	}
	drained := a.current().Done() // of the second Envoy, which has no connection
	second := p.replace(a, "c")
	<-drained
	a.goesOn(handoff.RoleDraining) // for the first one
	if role := a.role(); role != handoff.RoleDraining || !open(held) {
		t.Errorf("%s, and the connection is open: %v; want it to be drained on", role, open(held))
	}
	held.Close()
	a.settles(handoff.RoleStandby)
	if left := a.self().Connections; left != 0 {
		t.Errorf("%d connections are left", left)
	}
	a.ask()
	if err := a.ends(); err != nil {
		t.Error(err)
	}
	second.leave()
}

func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	began := time.Now()
	const deadline = 5 * time.Second // 3 s after the probation
	a := p.start("a", func(c *config.Config, _ *fakeEnvoy) { c.UpgradeDrainDuration = deadline })
	a.settles(handoff.RoleServing)
	held := p.connect()
	readName(held)
	p.replace(a, "b")
	a.becomes(handoff.RoleDraining)
	if !open(held) && time.Since(began) < deadline { // else the machine stood still for so long
		t.Error("cut before the deadline")
	}
	a.settles(handoff.RoleStandby)
	if open(held) {
		t.Error("still open after the deadline")
	}
}

func TestRoleIsToldHoweverLongTheRest(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	many := new(hotrestart.Sockets)
	for i := range 300 { // as an Envoy with many listeners and workers has
		f, err := os.Open(os.DevNull)
		if err == nil {
			err = many.Add(hotrestart.Socket{Name: fmt.Sprintf("%0200d", i), File: f})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.current().Sockets.Refresh(t.Context(), func(context.Context) (*hotrestart.Sockets, error) { return many, nil }); err != nil {
		t.Fatal(err)
	}
	c, err := handoff.Dial(t.Context(), p.dir("c"), a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a.becomes(handoff.RoleHandingOff)
	d := p.dir("d")
	waitFor(t, "others to see the role", func() bool {
		found, err := d.Look(t.Context())
		return err == nil && len(found) == 1 && found[0].Report.Role == handoff.RoleHandingOff
	})
}

// TestServesOnceEnvoyAccepts: an Envoy that is live, and whose workers do not run yet, is waited for; others are told what is learned of
// it afterwards.
func TestServesOnceEnvoyAccepts(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Slow = true }))
	waitFor(t, "the agent to say what it waits for", func() bool {
		s := a.current()
		if s == nil {
			return false
		}
		ready, pending := s.Ready.Check()
		return !ready && strings.Contains(fmt.Sprint(pending), "workers have not yet started")
	})
	a.signalEnvoy(syscall.SIGUSR1)
	a.settles(handoff.RoleServing)
	d := p.dir("d")
	waitFor(t, "others to be told Envoy's version and socket", func() bool {
		found, err := d.Look(t.Context())
		if err != nil || len(found) != 1 {
			return false
		}
		told := neighbourStatus(found[0])
		return told.EnvoyVersion == "9.9.9" && slices.Contains(told.Sockets, hotrestart.EnvoySocketName("tcp://"+p.listen, 0))
	})
}

func TestNobodyIsRefusedWhileEnvoyRestarts(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	waitFor(t, "the agent to hold Envoy's socket", func() bool {
		return slices.Contains(a.current().Sockets.Names(), hotrestart.EnvoySocketName("tcp://"+p.listen, 0))
	})
	i := a.current().Envoy.Current()
	a.signalEnvoy(syscall.SIGKILL)
	<-i.Done()
	if name := readName(p.connect()); name != "a" {
		t.Errorf("a connection that was made meanwhile got %q", name)
	}
}

// TestLeftoversOfTheKilled: an agent that was killed cannot clean up after itself.
func TestLeftoversOfTheKilled(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	memory, err := hotenvoy.CreateSharedMemory(hotenvoy.SharedMemoryDir, hotenvoy.Version{Version: 11, Size: 104})
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	path := func(base uint32) string {
		return fmt.Sprintf("%s/envoy_shared_memory_%d", hotenvoy.SharedMemoryDir, 10*uint64(base))
	}
	content, err := os.ReadFile(path(memory.Base()))
	if err != nil {
		t.Fatal(err)
	}
	base := memory.Base() ^ 1 // another one
	if err := os.WriteFile(path(base), content, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path(base))
	dead := filepath.Join(p.cfg.ConfigPath, "gen-dead")
	if err := errors.Join(os.MkdirAll(dead, 0o700), os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	p.start("a").settles(handoff.RoleServing)
	for _, left := range []string{path(base), dead} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", left, err)
		}
	}
	if _, err := os.Stat(path(memory.Base())); err != nil {
		t.Errorf("what belongs to a living agent: %v", err)
	}
}

// TestControlByRole: commands of the container are answered in every role.
func TestControlByRole(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	newer := func(i *handoff.Identity) { i.Started = time.Now().Add(time.Hour) }
	n := p.neighbour("n", handoff.RoleServing, newer, nil)
	a := p.start("a")
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		a.controlHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	for _, want := range []struct {
		role             handoff.Role
		ofSidecar        int
		role1, upgrade   string // part of what these paths answer
		generations, own int    // how many upgrade-status shows, how many sockets of its own
	}{
		{handoff.RoleStandby, http.StatusServiceUnavailable, `"role": "standby"`, `"id": "n"`, 2, 0},
		{handoff.RoleServing, http.StatusOK, `"role": "serving"`, `"envoy": "9.9.9"`, 1, 6},
	} {
		a.settles(want.role)
		waitFor(t, "Envoy's version and sockets", func() bool {
			return want.own == 0 || len(a.self().Sockets) >= want.own && a.self().EnvoyVersion != ""
		})
		for _, path := range []string{control.StatusPrefix + "/healthz/ready", control.AdminPrefix + "/server_info"} {
			if code, body := get(path); code != want.ofSidecar || code != http.StatusOK && !strings.Contains(body, string(want.role)) {
				t.Errorf("%s, %s: %d %q", want.role, path, code, body)
			}
		}
		if _, body := get(control.RolePath); !strings.Contains(body, want.role1) || !strings.Contains(body, `"settled": true`) {
			t.Errorf("%s, %s: %s", want.role, control.RolePath, body)
		}
		_, body := get(control.UpgradePath)
		var u contract.UpgradeStatus
		if err := json.Unmarshal([]byte(body), &u); err != nil || len(u.Generations) != want.generations || !strings.Contains(body, want.upgrade) {
			t.Errorf("%s, %s: %v: %s", want.role, control.UpgradePath, err, body)
		}
		_, body = get(overview.Path)
		var o overview.Overview
		if err := json.Unmarshal([]byte(body), &o); err != nil || o.Upgrade.Generations[0].Role != string(want.role) || (o.Sidecar != nil) != (want.own > 0) {
			t.Errorf("%s, %s: %v: %s", want.role, overview.Path, err, body)
		}
		n.leave()
	}
	info := fmt.Sprintf(`istio_agent_generation_info{agent="test",envoy="9.9.9",generation="%s",role="serving"} 1`, a.me.ID)
	if code, body := get(control.StatusPrefix + "/metrics"); code != http.StatusOK || !strings.Contains(body, info) {
		t.Errorf("metrics: %d, want a line %s in: %s", code, info, body)
	}
	for _, want := range []string{"istio_agent_ready 1\n", "istio_agent_ready 0\n"} {
		if _, body := get(control.StatusPrefix + "/metrics"); !strings.Contains(body, want) {
			t.Errorf("metrics lack %q", want)
		}
		a.current().Ready.Fail("test", errors.New("not any more"))
	}
}
