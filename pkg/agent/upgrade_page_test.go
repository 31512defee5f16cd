package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/overview"
)

// TestUpgradePageIsCheap asks a thousand times while one look lasts, and again and again: nobody makes the agent ask the
// others more often than it wants.
func TestUpgradePageIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		p := newUpgradePage(func(ctx context.Context) contract.UpgradeStatus {
			looks++
			select {
			case <-time.After(lookTimeout): // a generation that does not answer
			case <-ctx.Done():
				t.Error("the look ended with the request that began it")
			}
			return contract.UpgradeStatus{HandoffDir: fmt.Sprint(looks)}
		})
		first, leave := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, leave)
		var asking sync.WaitGroup
		for i := range 1000 {
			ctx := first
			if i > 0 {
				synctest.Wait()
				ctx = t.Context()
			}
			asking.Go(func() {
				w := httptest.NewRecorder()
				p.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, contract.UpgradePath, nil))
				if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Type") != "application/json" {
					t.Errorf("%d, %v", w.Code, w.Header())
				}
			})
		}
		asking.Wait()
		if looks != 1 {
			t.Errorf("%d looks for a thousand requests at once", looks)
		}
		time.Sleep(upgradePageAge + 1)
		if got := p.latest(t.Context()); got.HandoffDir != "2" {
			t.Errorf("after %s it still answers what it saw in look %s", upgradePageAge, got.HandoffDir)
		}
	})
}

// TestUpgradePage: what anybody is told at the status port is what the command prints, but for the sockets.
func TestUpgradePage(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.neighbour("n", handoff.RoleDraining, nil, nil)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	waitFor(t, "Envoy's version", func() bool { return a.self().EnvoyVersion != "" && len(a.self().Sockets) > 0 })
	url := fmt.Sprintf("http://127.0.0.1:%d%s", p.cfg.StatusPort, contract.UpgradePath)
	var got contract.UpgradeStatus
	waitFor(t, "the page to have caught up", func() bool { // it may have seen the agent just before
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		got = contract.UpgradeStatus{}
		if err != nil || json.Unmarshal(body, &got) != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return len(got.Generations) == 2 && got.Generations[0].EnvoyVersion != ""
	})
	want := a.upgradeStatus(t.Context())
	for i := range want.Generations {
		want.Generations[i].Sockets = nil
	}
	if diff := cmp.Diff(want, got); diff != "" || got.Generations[0].Role != "serving" || got.Generations[1].Role != "draining" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOverviewPage: a browser gets HTML that it may run and fetch nothing for, with what the JSON says as well.
func TestOverviewPage(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	for path, want := range map[string][]string{
		"/debug/":     {"<!DOCTYPE html>", "<td>envoy</td><td>done</td>", "serving, ready", p.cfg.ConfigDir},
		overview.Path: {`"ready": true`, `"directory": "` + p.cfg.ConfigDir + `"`},
	} {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", p.cfg.StatusPort, path))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d, %v, %v", path, resp.StatusCode, resp.Header, err)
		}
		for _, w := range want {
			if !strings.Contains(string(body), w) {
				t.Errorf("%s lacks %s:\n%s", path, w, body)
			}
		}
		if policy := resp.Header.Get("Content-Security-Policy"); path == "/debug/" && !strings.HasPrefix(policy, "default-src 'none'") {
			t.Errorf("policy %q", policy)
		}
	}
}

// TestSteps: each side of a hand-off tells its steps, in turn, to the end of the drain.
func TestSteps(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	a := p.start("a")
	a.settles(handoff.RoleServing)
	b := p.start("b")
	b.settles(handoff.RoleServing)
	for _, tc := range []struct {
		who  *member
		want []string
	}{
		{a, []string{"arrived", "gave it", "let go of the listeners", "success", "drained, and Envoy has ended"}},
		{b, []string{"asked generation " + a.me.ID, "got ", "in force", "serves; ", "success", "the generation before has drained"}},
	} {
		waitFor(t, "the last step", func() bool {
			s := tc.who.self().LastAttempt.Steps
			return len(s) == len(tc.want)
		})
		for i, s := range tc.who.self().LastAttempt.Steps {
			if !strings.Contains(s.What, tc.want[i]) || s.At.IsZero() {
				t.Errorf("%s: step %d is %q at %s, want %q", tc.who.name, i, s.What, s.At, tc.want[i])
			}
		}
	}
}
