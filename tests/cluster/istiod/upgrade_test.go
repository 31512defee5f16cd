package istiod_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

const (
	// twoStreams is how long istiod may have two streams of one pod: it tells only the first of them what concerns the pod itself.
	twoStreams = 10 * time.Second
	// drain is how long an old generation keeps connections: the load's live shorter.
	drain = "10s"
	// manyUpgrades are those of the long form, in each state of istiod.
	manyUpgrades = 10
)

// pushes are istiod's own counts of what it has sent, which an upgrade may raise by one each, and of what its authority has signed.
var pushes = []string{`pilot_xds_pushes{type="cds"}`, `pilot_xds_pushes{type="eds"}`, `pilot_xds_pushes{type="lds"}`, `pilot_xds_pushes{type="rds"}`, `pilot_xds_pushes{type="nds"}`}

const signed = "citadel_server_csr_count"

// TestUpgradeUnderLoad upgrades hot while istiod is there, away, and killed as the newcomer has called it: nothing fails, the
// newcomer gets everything once, asks for no certificate, and the two generations' streams overlap for a moment only.
func TestUpgradeUnderLoad(t *testing.T) { upgradeUnderLoad(t, 300, 400, 1) }

func TestLongUpgradeUnderLoad(t *testing.T) {
	if !*long {
		t.Skip("minutes: -long")
	}
	upgradeUnderLoad(t, 1000, 2000, manyUpgrades)
}

func upgradeUnderLoad(t *testing.T, hosts int, rate float64, rounds int) {
	u := upgrades{t: t, p: inMesh(t, 2, map[string]string{"hosts": istiod.Hosts(hosts)}, "UNDERSTUDY_UPGRADE_DRAIN_DURATION="+drain)}
	u.next()
	traffic := startTraffic(t, u.p, rate)
	overlap := watchStreams(t, u.p)
	for n := range rounds {
		var before map[string]float64
		lab.Eventually(t, lab.SettleWithin, "istiod has said everything to the generation that serves", func() error {
			before = u.counts()
			for _, name := range pushes {
				if before[name] == 0 {
					return fmt.Errorf("%s is 0", name)
				}
			}
			return nil
		})
		if n == 0 && before[signed] != 1 {
			t.Errorf("istiod's authority has signed %v certificates for the first generation, want 1", before[signed])
		}
		u.next()
		after := u.counts()
		for _, name := range pushes {
			if sent := after[name] - before[name]; sent != 1 {
				t.Errorf("istiod has pushed %s %v times in an upgrade, want once", name, sent)
			}
		}
		if after[signed] != before[signed] {
			t.Errorf("istiod's authority has signed %v certificates for an upgrade", after[signed]-before[signed])
		}

		u.p.Istiod.Kill()
		u.next()
		u.p.Istiod.Start()
		lab.Eventually(t, lab.SettleWithin, "the newcomer has found istiod", func() error { return connected(t, u.p, 1) })

		u.killedWithTwo()
		u.p.Istiod.Start()
		lab.Eventually(t, lab.SettleWithin, "the newcomer has found istiod", func() error { return connected(t, u.p, 1) })
	}
	if both := overlap(); both > twoStreams {
		t.Errorf("istiod had two streams of the pod for %v, want %v at most", both, twoStreams)
	} else {
		t.Logf("istiod had two streams of the pod for %v at most", both)
	}
	mustLoseNothing(t, traffic)
}

// upgrades are generations that follow each other in the two slots of a pod.
type upgrades struct {
	t       *testing.T
	p       *istiod.Pod
	version int // of the generation that serves; 0: none does
}

func (u *upgrades) slot(version int) *lab.Slot { return u.p.Slots.List[version%2] }

// begin starts the next generation.
func (u *upgrades) begin() {
	u.t.Helper()
	err := u.slot(u.version+1).Start(u.p.Ours, fmt.Sprintf("%s=%d", lab.VersionEnv, u.version+1), fmt.Sprintf("%s=%d", lab.VersionAltEnv, u.version))
	if err != nil {
		u.t.Fatal(err)
	}
}

// finish waits until it serves alone.
func (u *upgrades) finish() {
	u.t.Helper()
	u.version++
	u.slot(u.version).WaitRole(u.t, lab.RoleServing)
	if u.version > 1 {
		u.slot(u.version-1).WaitRole(u.t, lab.RoleStandby)
		u.slot(u.version - 1).Kill()
	}
	u.slot(u.version).Agent().WaitReady(u.t)
}

func (u *upgrades) next() {
	u.t.Helper()
	u.begin()
	u.finish()
}

// killedWithTwo is an upgrade in the middle of which istiod is killed: when it has a stream of both generations.
func (u *upgrades) killedWithTwo() {
	u.t.Helper()
	u.begin()
	lab.Eventually(u.t, lab.SettleWithin, "istiod has a stream of both generations", func() error {
		n, err := u.p.Istiod.Connected()
		if err == nil && n != 2 {
			err = fmt.Errorf("it has %d", n)
		}
		return err
	})
	u.p.Istiod.Kill()
	u.finish()
}

func (u *upgrades) counts() map[string]float64 {
	u.t.Helper()
	counts := make(map[string]float64)
	for _, name := range append(pushes, signed) {
		n, err := u.p.Istiod.Metric(name)
		if err != nil {
			u.t.Fatal(err)
		}
		counts[name] = n
	}
	return counts
}

// watchStreams looks how many streams of the pod istiod has, until the function that it returns is called, which says how long
// there were two without a break at most.
func watchStreams(t *testing.T, p *istiod.Pod) (longest func() time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var most time.Duration
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var since time.Time // zero: there are not two
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if n, err := p.Istiod.Connected(); err != nil || n < 2 {
					since = time.Time{}
				} else if since.IsZero() {
					since = now
				} else {
					most = max(most, now.Sub(since))
				}
			}
		}
	})
	t.Cleanup(cancel)
	return func() time.Duration { cancel(); wg.Wait(); return most }
}
