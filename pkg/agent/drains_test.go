package agent

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
)

func TestDrainDeadlineOfWhatCameLast(t *testing.T) {
	letGo := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	settled := letGo.Add(2 * time.Second)
	for drain, want := range map[time.Duration]time.Duration{ // since settled
		time.Minute:            58 * time.Second,
		4 * time.Second:        2 * time.Second,
		3 * time.Second:        2 * time.Second,
		2 * time.Second:        2 * time.Second,
		500 * time.Millisecond: 500 * time.Millisecond,
		0:                      0,
	} {
		a := &Agent{cfg: &config.Config{UpgradeDrainDuration: drain}, loop: loop{handOff: handOff{released: letGo}}}
		if got := a.drainDeadline(settled).Sub(settled); got != want {
			t.Errorf("--upgradeDrainDuration %v: what was accepted last has %v, want %v", drain, got, want)
		}
	}
}

// TestCountersAreCarriedOnce: whatever the Envoy before counts, until its last connection has ended, the
// next one goes on from it, and counts nothing twice.
func TestCountersAreCarriedOnce(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.cfg.UpgradeStats = true
	asked := filepath.Join(t.TempDir(), "asked")
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Asked = asked }))
	a.settles(handoff.RoleServing)
	held := p.connect()
	readName(held)
	b := p.start("b")
	b.settles(handoff.RoleServing)
	counted := func() string {
		data, err := os.ReadFile(asked)
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	carried := func() string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/carried", p.cfg.AdminPort))
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return string(body)
	}
	waitFor(t, "b to go on from what a had counted as it let go", func() bool { return carried() == "1" })
	waitFor(t, "b to go on from what a counted since", func() bool { return carried() != "1" })
	since := carried()
	held.Close()
	waitFor(t, "a to have drained", func() bool { return b.roleStatus().Drained })
	if got, want := carried(), counted(); got != want || want == since {
		t.Errorf("after the drain b has counted %s for a, which counted %s", got, want)
	}
}
