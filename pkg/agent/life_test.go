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
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
)

func TestTakeOverAndComeBack(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(hotrestart.RoleServing)
	p.answers("a")
	first := weak.Make(a.current())

	b := p.start("b")
	b.settles(hotrestart.RoleServing)
	p.becomesServedBy("b")
	p.answers("b")
	a.settles(hotrestart.RoleStandby)
	waitFor(t, "the standby's memory to be given back", func() bool {
		runtime.GC()
		return first.Value() == nil
	})
	waitFor(t, "b to know that a has drained", func() bool { return b.roleStatus().Drained })

	b.kill()
	a.settles(hotrestart.RoleServing)
	p.answers("a")
	a.ask()
	if err := a.ends(); err != nil {
		t.Errorf("a stop that was asked for: %v", err)
	}
	for _, dir := range []string{p.cfg.ConfigPath, a.dir.Path()} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v; want nothing to be left", dir, left, err)
		}
	}
}

func TestStandsByForANewerOne(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	newer := func(i *hotrestart.Identity) { i.Version, i.Alt = "3", "2" }
	n := p.neighbour("n1", hotrestart.RoleStarting, newer, nil)
	a := p.start("a", withVersion("1", "3"))
	a.becomes(hotrestart.RoleStandby)
	if s := a.roleStatus(); s.Settled || !strings.Contains(s.Reason, "n1") {
		t.Errorf("settled %v, reason %q: the generation that it stands by for does not serve yet", s.Settled, s.Reason)
	}
	n.becomes(t, hotrestart.RoleServing)
	a.settles(hotrestart.RoleStandby)
	_, err := hotrestart.Dial(t.Context(), p.dir("c"), a.me.ID)
	if refused := new(hotrestart.RefusedError); !errors.As(err, &refused) || refused.Code != hotrestart.RefusedMoved {
		t.Errorf("a newcomer got %v, want to be sent on", err)
	}
	if err := a.Drain(t.Context()); err == nil {
		t.Error("a standby has nothing to drain")
	}

	next := p.neighbour("n2", hotrestart.RoleServing, newer, nil) // n1 was replaced
	n.leave()
	waitFor(t, "a to follow n2", func() bool { s, _ := a.successor(); return s == "n2" })
	a.settles(hotrestart.RoleStandby)
	next.leave()
	a.settles(hotrestart.RoleServing)
	p.answers("a")
}

// TestTakesOverFromOneThatLeaves: a standby relieves the newer generation that is asked to stop.
func TestTakesOverFromOneThatLeaves(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	newer := func(i *hotrestart.Identity) { i.Started = time.Now().Add(time.Hour) }
	seen := make(chan struct{})
	n := p.neighbour("n", hotrestart.RoleServing, newer, func(_ *neighbour, e hotrestart.Event) bool {
		if e.Kind == hotrestart.Arrived {
			select {
			case <-seen:
			case <-t.Context().Done():
			}
		}
		return false
	})
	n.listen(t, p.listen)
	a := p.start("a")
	a.settles(hotrestart.RoleStandby)
	before := a.self().Since
	if err := n.server.SetReport(hotrestart.Report{Role: hotrestart.RoleServing, Leaving: true}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a to be starting since then", func() bool { return a.role() == hotrestart.RoleStarting && a.self().Since.After(before) })
	close(seen)
	a.settles(hotrestart.RoleServing)
	n.expect(t, hotrestart.Settled)
	a.entered(hotrestart.RoleStarting, hotrestart.RoleStandby, hotrestart.RoleStarting, hotrestart.RoleServing)
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
				if a.role() == hotrestart.RoleStandby {
					serves, stands = b, a
				} else {
					serves, stands = a, b
				}
				return serves.role() == hotrestart.RoleServing && stands.role() == hotrestart.RoleStandby
			})
			if tc.first != "" && serves.name != tc.first {
				t.Errorf("%s serves, want %s", serves.name, tc.first)
			}
			stands.settles(hotrestart.RoleStandby)
			p.becomesServedBy(serves.name)
		})
	}
}

func TestHandOffOfAColdStartIsNotSettled(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	waitFor(t, "a to start its Envoy", func() bool { return a.current() != nil })
	c, err := hotrestart.Dial(t.Context(), p.dir("c"), a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.becomes(hotrestart.RoleHandingOff)
	if s := a.roleStatus(); s.Settled || s.Reason == "" {
		t.Errorf("settled %v, %q: it has never served", s.Settled, s.Reason)
	}
	if err := c.Abort(hotrestart.AbortFailed, "changed my mind"); err != nil {
		t.Fatal(err)
	}
	a.becomes(hotrestart.RoleStarting)
}

// TestServesBesideItsDrain: the successor of a generation dies while that one drains, and
// it is taken over from once more before the first drain is over.
func TestServesBesideItsDrain(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(hotrestart.RoleServing)
	held := p.connect()
	if name := readName(held); name != "a" {
		t.Fatalf("served by %q", name)
	}
	first := p.replace(a, "b")
	a.becomes(hotrestart.RoleDraining)
	waitFor(t, "the drain to be counted", func() bool { return a.self().Connections == 1 })
	first.leave()
	a.settles(hotrestart.RoleServing)
	p.answers("a")
	if !open(held) {
		t.Error("the connection of the first Envoy was cut")
	}
	second := p.replace(a, "c")
	a.becomes(hotrestart.RoleDraining)
	time.Sleep(3 * time.Second) // the second drain is over, the first is not
	if role := a.role(); role != hotrestart.RoleDraining || !open(held) {
		t.Errorf("%s, and the connection is open: %v; want it to be drained on", role, open(held))
	}
	held.Close()
	a.settles(hotrestart.RoleStandby)
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
	const deadline = 5 * time.Second // 3 s after the probation
	a := p.start("a", func(c *config.Config, _ *fakeEnvoy) { c.UpgradeDrainDuration = deadline })
	a.settles(hotrestart.RoleServing)
	held := p.connect()
	readName(held)
	p.replace(a, "b")
	a.becomes(hotrestart.RoleDraining)
	if !open(held) {
		t.Error("cut before the deadline")
	}
	a.settles(hotrestart.RoleStandby)
	if open(held) {
		t.Error("still open after the deadline")
	}
}

func TestRoleIsToldHoweverLongTheRest(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(hotrestart.RoleServing)
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
	if err := a.current().sockets.Refresh(t.Context(), func(context.Context) (*hotrestart.Sockets, error) { return many, nil }); err != nil {
		t.Fatal(err)
	}
	c, err := hotrestart.Dial(t.Context(), p.dir("c"), a.me.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a.becomes(hotrestart.RoleHandingOff)
	d := p.dir("d")
	waitFor(t, "others to see the role", func() bool {
		found, err := d.Look(t.Context())
		return err == nil && len(found) == 1 && found[0].Report.Role == hotrestart.RoleHandingOff
	})
}

// TestOthersAreToldWhatIsLearnedOfEnvoy: a cold start serves before its Envoy has said what it has.
func TestOthersAreToldWhatIsLearnedOfEnvoy(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Slow = true }))
	a.settles(hotrestart.RoleServing)
	if err := syscall.Kill(a.current().supervisor.Current().PID(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
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
	a.settles(hotrestart.RoleServing)
	waitFor(t, "the agent to hold Envoy's socket", func() bool {
		return slices.Contains(a.current().sockets.Names(), hotrestart.EnvoySocketName("tcp://"+p.listen, 0))
	})
	i := a.current().supervisor.Current()
	i.Kill()
	<-i.Done()
	if name := readName(p.connect()); name != "a" {
		t.Errorf("a connection that was made meanwhile got %q", name)
	}
}

// TestLeftoversOfTheKilled: an agent that was killed cannot clean up after itself.
func TestLeftoversOfTheKilled(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	memory, err := hotrestart.CreateSharedMemory(hotrestart.SharedMemoryDir, hotrestart.Version{Version: 11, Size: 104})
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	path := func(base uint32) string {
		return fmt.Sprintf("%s/envoy_shared_memory_%d", hotrestart.SharedMemoryDir, 10*uint64(base))
	}
	content, err := os.ReadFile(path(memory.Base()))
	if err != nil {
		t.Fatal(err)
	}
	base, err := hotrestart.NewBaseID()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path(base), content, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path(base))
	dead := filepath.Join(p.cfg.ConfigPath, "gen-dead")
	if err := errors.Join(os.MkdirAll(dead, 0o700), os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	p.start("a").settles(hotrestart.RoleServing)
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
	newer := func(i *hotrestart.Identity) { i.Started = time.Now().Add(time.Hour) }
	n := p.neighbour("n", hotrestart.RoleServing, newer, nil)
	a := p.start("a")
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		a.controlHandler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	for _, want := range []struct {
		role             hotrestart.Role
		ofSidecar        int
		role1, upgrade   string // part of what these paths answer
		generations, own int    // how many upgrade-status shows, how many sockets of its own
	}{
		{hotrestart.RoleStandby, http.StatusServiceUnavailable, `"role": "standby"`, `"id": "n"`, 2, 0},
		{hotrestart.RoleServing, http.StatusOK, `"role": "serving"`, `"envoy": "9.9.9"`, 1, 6},
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
		var u control.UpgradeStatus
		if err := json.Unmarshal([]byte(body), &u); err != nil || len(u.Generations) != want.generations || !strings.Contains(body, want.upgrade) {
			t.Errorf("%s, %s: %v: %s", want.role, control.UpgradePath, err, body)
		}
		n.leave()
	}
	info := fmt.Sprintf(`istio_agent_generation_info{agent="test",envoy="9.9.9",generation="%s",role="serving"} 1`, a.me.ID)
	if code, body := get(control.StatusPrefix + "/metrics"); code != http.StatusOK || !strings.Contains(body, info) {
		t.Errorf("metrics: %d, want a line %s in: %s", code, info, body)
	}
}
