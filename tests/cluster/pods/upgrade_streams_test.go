package pods

import (
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/load"
)

// TestStreamsOutliveUpgrades holds streams that never end by themselves, and opens others all the time: each lasts at least
// for the drain of the generation that has it, and whoever is cut then goes on by the one that serves.
func TestStreamsOutliveUpgrades(t *testing.T) {
	const drain, workers = 10 * time.Second, 4
	ns := shared.Namespace(t, "streams")
	applyMesh(t, ns)
	p := newTwoSlots(t, ns, "nginx", podOptions{drain: drain})
	ip := ns.Pod(t, p.name).IP
	short := p.startTraffic(t)
	long := ns.Load(t, cluster.FromNode(),
		load.Flow{Name: "h2", Kind: load.H2Stream, Target: "http://" + ip + load.EchoPath, Rate: 20, Workers: workers},
		load.Flow{Name: "tcp", Kind: load.TCPStream, Target: ip + ":9000", Rate: 20, Workers: workers})
	var begun []time.Time
	for _, image := range []string{cluster.ProxyV2, cluster.ProxyV1} {
		begun = append(begun, time.Now())
		p.upgrade(t, image)
	}
	short.mustNotFail(t)
	report := long.Stop(t)
	t.Logf("long streams:\n%v", report)
	for _, f := range report.Flows {
		// Each stream was cut once by each drain, and never before it.
		if len(f.Failures) != len(begun)*workers {
			t.Errorf("%s: %d streams were cut, want %d in each of %d drains", f.Name, len(f.Failures), workers, len(begun))
			continue
		}
		for i, failure := range f.Failures {
			if after := failure.Time.Sub(begun[i/workers]); after < drain {
				t.Errorf("%s: cut %v after the upgrade began, before the drain of %v was over: %v", f.Name, after, drain, failure)
			}
		}
	}
}
