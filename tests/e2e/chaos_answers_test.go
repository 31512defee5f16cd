package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
	traffic "understudy.mesh/tests/load"
)

const (
	// askRate asks each port every 5 ms.
	askRate = 200
	// failingHandoffs and failingHandoffsSoak are how many there are, in the short form and in the long one.
	failingHandoffs, failingHandoffsSoak = 4, 50
)

// TestChaosAnswers asks each of the agent's ports all the time, while the Envoy of one newcomer after the
// other dies as it takes over: whichever agent accepts, it answers from the Envoy that serves.
func TestChaosAnswers(t *testing.T) {
	t.Parallel()
	random := chance(t)
	p := newChaosPod(t)
	n := failingHandoffs
	if rounds(t) >= soakRounds {
		n = failingHandoffsSoak
	}
	for i := range n {
		p.vacate(t)
		before := p.portrait(t)
		asking := lab.StartTraffic(t, p.agentsPorts()...)
		l := p.newcomer(t, p.other())
		m := momentOfAccepting(random)
		m.wait(t, l)
		if !signalEnvoy(l, syscall.SIGKILL) {
			t.Fatalf("hand-off %d, %v: there is no Envoy", i+1, m)
		}
		l.await(t, "the take-over failed|"+becameServing)
		if l.said(becameServing) { // this machine stood still for the rest of the probation: it was no hand-off that failed
			_, _ = asking.Stop()
			p.settle(t)
			continue
		}
		if code, was := l.slot.Stop(lab.Deadline); was && code < 0 {
			t.Errorf("hand-off %d, %v: SIGTERM has not ended the newcomer", i+1, m)
		}
		report, err := asking.Stop()
		must(t, err)
		nothing.check(t, fmt.Sprintf("hand-off %d, %v", i+1, m), report)
		p.settle(t)
		p.unchanged(t, before)
		if t.Failed() {
			return
		}
	}
}

// momentOfAccepting is one at which a newcomer is about to accept, or has accepted beside the generation before.
func momentOfAccepting(random *rand.Rand) moment {
	if random.IntN(4) == 0 {
		return moment{saysEnvoyServes, time.Duration(random.Int64N(int64(10 * time.Millisecond)))}
	}
	return moment{saysLetGo, time.Duration(random.Int64N(int64(probation / 2)))}
}

// agentsPorts asks those that the agent answers itself, each question on a connection, or a socket, of its own.
func (p *chaosPod) agentsPorts() []lab.TrafficSide {
	pod, admin, server := "http://"+lab.PodIP, "http://127.0.0.1:"+lab.AdminPort, lab.NameServer+":53"
	names := []string{"http.example"}
	sides := []lab.TrafficSide{{From: p.Out, Flows: []traffic.Flow{
		{Name: "15020", Kind: traffic.Probe, Target: pod + ":15020/healthz/ready", Want: "ready", Rate: askRate},
		{Name: "15021", Kind: traffic.Probe, Target: pod + ":15021/healthz/ready", Want: "ready", Rate: askRate},
		// A scrape of Envoy is not made every 5 ms.
		{Name: "15020, metrics", Kind: traffic.Probe, Target: pod + ":15020/stats/prometheus", Want: "envoy_", Rate: 5},
	}}, {From: p.Pod, Flows: []traffic.Flow{
		{Name: "15000", Kind: traffic.Probe, Target: admin + "/server_info", Want: `"LIVE"`, Rate: askRate},
		{Name: "15053", Kind: traffic.DNSUDP, Target: server, Names: names, Want: p.vip, Rate: askRate, NewSocket: true},
		{Name: "15053, TCP", Kind: traffic.DNSTCP, Target: server, Names: names, Want: p.vip, Rate: askRate, NewSocket: true},
	}}}
	for _, side := range sides {
		for i := range side.Flows {
			side.Flows[i].Workers, side.Flows[i].Timeout = chaosWorkers, traffic.Duration(chaosTimeout)
		}
	}
	return sides
}
