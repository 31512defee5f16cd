package main

import (
	"net/http"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

const (
	crashes = 20
	// afterCrash is the pause before the next one, in which Envoy has fetched its sockets.
	afterCrash = 300 * time.Millisecond
	lightRate  = 100 // requests a second of each kind
)

// benchUpgradeCrash kills the serving Envoy under a light load, again and again, and asks at once,
// on a connection made after the kill: it waits in the socket until the next Envoy accepts it.
func benchUpgradeCrash(t lab.T, _ settings) []result {
	p := newSlotPod(t, fewEntries)
	serveApp(t, p.Lab)
	g := p.start(t, 0, p.image)
	g.awaitRole(t, roleServing)
	light := startClients(t, p.Out, load.Config{Flows: flows(lightRate, lightRate)})
	var took []float64
	for range crashes {
		<-time.After(afterCrash)
		pid := g.agent.EnvoyPID()
		begin := time.Now()
		_ = syscall.Kill(pid, syscall.SIGKILL)
		status, _, err := p.Out.Get(target)
		took = append(took, milliseconds(time.Since(begin)))
		if err != nil || status != http.StatusOK {
			t.Fatalf("the first connection after a crash: %d, %v", status, err)
		}
		g.poll(t, func() bool { return g.agent.EnvoyPID() != pid && g.ready() })
	}
	total := light.stop().Total()
	return []result{
		measured("Envoy killed: until a new connection is served", "ms", took).against("limit", []float64{300}),
		measured("Envoy killed: the slowest of them", "ms", took).largest().against("limit", []float64{300}),
		measured("Envoy killed 20 times: connections refused", "", []float64{float64(total.Failed[load.Refused])}),
		measured("Envoy killed 20 times: requests that failed, in flight on it", "", []float64{float64(total.Failures())}),
	}
}
