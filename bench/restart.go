package main

import (
	"fmt"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
)

// benchRestart starts the agent on files from nothing, and again with the same files and volumes, as the kubelet starts a container
// again, beside a start of Istio's agent under a real istiod with the same hosts, in turn: from the first instant to ready.
func benchRestart(t lab.T, s settings) []result {
	return atBothSizes(t, s, func(b beside) []result { return benchRestarts(t, s, b) })
}

func benchRestarts(t lab.T, s settings, b beside) []result {
	var cold, again, istios []float64
	for range s.rounds {
		istios = append(istios, startIstios(t, b.istios).ready)
		b.clear(t)
		cold = append(cold, startAndStop(t, b))
		again = append(again, startAndStop(t, b))
	}
	what := fmt.Sprintf("%d hosts, restart with the same files: exec to ready", b.hosts)
	return []result{
		measured(what, "ms", again).against("a start from nothing", cold),
		measured(what, "ms", again).against("Istio's agent", istios),
	}
}

// startAndStop is milliseconds to ready of an agent that is stopped as the kubelet does.
func startAndStop(t lab.T, b beside) float64 {
	begin := time.Now()
	agent := b.container.StartAgent(t, lab.AgentOptions{Env: []string{"TERMINATION_DRAIN_DURATION_SECONDS=0"}})
	poll(t, func() bool { return agent.Ready() == nil })
	ready := milliseconds(time.Since(begin))
	agent.Signal(syscall.SIGTERM)
	agent.Wait(t, lab.Deadline)
	waitGone(t, b.lab)
	return ready
}
