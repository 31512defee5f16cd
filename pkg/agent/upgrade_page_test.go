package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/contract"
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
