package main

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

// benchRestart starts the agent on files from nothing, and again with the same files and volumes, as the kubelet starts a container
// again, beside a start of Istio's agent under a real istiod with the same hosts, in turn: from the first instant to ready.
func benchRestart(t lab.T, s settings) (results []result) {
	programs, err := istiod.Build(context.Background(), lab.RepoRoot(t), s.cache, func(what string) { t.Logf("%s", what) })
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, hosts := range []int{s.entries, manyTimes * s.entries} {
		results = append(results, benchRestarts(t, s, programs, hosts)...)
	}
	return results
}

func benchRestarts(t lab.T, s settings, programs istiod.Programs, hosts int) []result {
	l := lab.New(t)
	l.StartDNS(t, nil)
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "hosts.yaml", istiod.Hosts(hosts))
	p := istiod.NewPod(t, programs, 1)
	defer p.Istiod.Kill() // the next number of hosts has one of its own
	p.Istiod.Write("hosts", istiod.Hosts(hosts))
	p.StartIstiod()
	startQuickly(t, p, p.Istios) // warms the page cache, and istiod's own
	var cold, again, istios []float64
	for range s.rounds {
		istios = append(istios, startIstios(t, p).ready)
		_ = c.Run(t, lab.As{UID: lab.RootUID}, "sh", "-c", "rm -rf /etc/istio/proxy/* /var/lib/istio/data/*")
		cold = append(cold, startAndStop(t, l, c))
		again = append(again, startAndStop(t, l, c))
	}
	what := fmt.Sprintf("%d hosts, restart with the same files: exec to ready", hosts)
	return []result{
		measured(what, "ms", again).against("a start from nothing", cold),
		measured(what, "ms", again).against("Istio's agent", istios),
	}
}

// startAndStop is milliseconds to ready of an agent that is stopped as the kubelet does.
func startAndStop(t lab.T, l *lab.Lab, c *lab.Container) float64 {
	begin := time.Now()
	agent := c.StartAgent(t, lab.AgentOptions{Env: []string{"TERMINATION_DRAIN_DURATION_SECONDS=0"}})
	poll(t, func() bool { return agent.Ready() == nil })
	ready := milliseconds(time.Since(begin))
	agent.Signal(syscall.SIGTERM)
	agent.Wait(t, lab.Deadline)
	waitGone(t, l)
	return ready
}
