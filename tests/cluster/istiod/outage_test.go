package istiod_test

import (
	"fmt"
	"testing"
	"time"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

const (
	// updates are Envoy's counters of what a control plane has told it.
	updates = `^(cluster_manager\.cds|listener_manager\.lds)\.update_(success|rejected|failure)$`
	// streams are those of Envoy to its control plane, by what says that there was one all the time.
	streams = `^(control_plane\.connected_state|cluster\.xds-grpc.*\.(upstream_rq_total|upstream_cx_total))$`
)

// TestIstiodIsKilled: under load nothing fails while istiod is killed and comes back, Envoy keeps its stream and is told nothing
// that it knows, and what was changed or deleted meanwhile arrives once istiod is back.
func TestIstiodIsKilled(t *testing.T) { killIstiod(t, 300, 400, 4, 3) }

func TestLongIstiodIsKilled(t *testing.T) {
	if !*long {
		t.Skip("minutes: -long")
	}
	killIstiod(t, 1000, 2000, 20, 3)
}

// killIstiod kills istiod so many times, with a change during as many of the outages as is said.
func killIstiod(t *testing.T, hosts int, rate float64, kills, changes int) {
	p := inMesh(t, 1, map[string]string{"hosts": istiod.Hosts(hosts), "gone": istiod.Entry("gone-0.mesh.test", "TCP", "198.51.100.80")})
	start(t, p, 0, p.Ours)
	traffic := startTraffic(t, p, rate)
	vip(t, p, "gone-0.mesh.test")
	before := p.EnvoyStats(t, streams)
	if before["control_plane.connected_state"] != 1 {
		t.Fatalf("Envoy's stream before any outage: %v", before)
	}
	known := p.EnvoyStats(t, updates)
	for n := range kills {
		p.Istiod.Kill()
		lab.Eventually(t, lab.Deadline, "the agent has lost istiod", func() error { return connected(t, p, 0) })
		changed := n < changes
		if changed {
			p.Istiod.Write("gone", istiod.Entry(fmt.Sprintf("gone-%d.mesh.test", n+1), "TCP", "198.51.100.80"))
		}
		if got := p.EnvoyStats(t, streams); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("outage %d: Envoy's streams are %v, before it %v", n, got, before)
		}
		suppressed := metric(t, p, "xds_suppressed_total")
		p.Istiod.Start()
		back := time.Now()
		lab.Eventually(t, lab.SettleWithin, "the agent has found istiod", func() error { return connected(t, p, 1) })
		found := time.Now()
		if changed {
			lab.Eventually(t, lab.Deadline, "what was deleted is gone, and what was added is there", func() error {
				if addr, err := lookup(p, fmt.Sprintf("gone-%d.mesh.test", n)); err == nil {
					return fmt.Errorf("the deleted host has %v", addr)
				}
				_, err := lookup(p, fmt.Sprintf("gone-%d.mesh.test", n+1))
				return err
			})
			t.Logf("outage %d: istiod was ready; %v later there was a stream, and %v after that the change was in force",
				n, found.Sub(back).Round(time.Millisecond), time.Since(found).Round(time.Millisecond))
		}
		lab.Eventually(t, lab.Deadline, "istiod has said everything again", func() error {
			if got := metric(t, p, "xds_suppressed_total") - suppressed; got < float64(hosts) {
				return fmt.Errorf("%v resources were known", got)
			}
			return nil
		})
		now := p.EnvoyStats(t, updates)
		if !changed && fmt.Sprint(now) != fmt.Sprint(known) {
			t.Errorf("outage %d, in which nothing changed: Envoy was told %v times, before it %v", n, now, known)
		}
		if changed && fmt.Sprint(now) == fmt.Sprint(known) {
			t.Errorf("outage %d: Envoy was not told of the change: %v", n, now)
		}
		known = now
	}
	if got := p.EnvoyStats(t, streams); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("Envoy's streams are %v in the end, at first %v", got, before)
	}
	mustLoseNothing(t, traffic)
}

// connected is nil if the agent says so of its stream to istiod.
func connected(t *testing.T, p *istiod.Pod, want float64) error {
	t.Helper()
	if got := metric(t, p, "istiod_connected"); got != want {
		return fmt.Errorf("istiod_connected is %v", got)
	}
	return nil
}

// TestLongOutage counts how often the agent calls an istiod that is away.
func TestLongOutage(t *testing.T) {
	if !*long {
		t.Skip("minutes: -long")
	}
	p := newPod(t, 1, map[string]string{"hosts": istiod.Hosts(10)})
	start(t, p, 0, p.Ours)
	p.Istiod.Kill()
	<-time.After(time.Minute) // the definition of what is counted
	calls := metric(t, p, "istiod_connection_failures")
	t.Logf("%v calls in a minute", calls)
	if calls == 0 || calls > 12 {
		t.Errorf("%v calls in a minute of outage, want at most 12", calls)
	}
}
