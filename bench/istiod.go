package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

const (
	// pushSettle is how long after a push what it has cost is read: what it was made of is freed by then.
	pushSettle = 30 * time.Second
	// watchEvery is between two looks at a memory whose peak is sought.
	watchEvery = 5 * time.Millisecond
	// restartLimit is how long a container may take to serve again while istiod and its authority are away.
	restartLimit = 3000
)

// benchIstiod starts our agent and Istio's own under one real istiod, in turn, each with a certificate signed over TLS: from its
// first instant to ready, what the push has cost, and what it costs again when istiod comes back and says the same.
func benchIstiod(t lab.T, s settings) (results []result) {
	programs, err := istiod.Build(context.Background(), lab.RepoRoot(t), s.cache, func(what string) { t.Logf("%s", what) })
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, hosts := range []int{s.entries, manyTimes * s.entries} {
		results = append(results, benchHosts(t, s, programs, hosts)...)
	}
	return results
}

func benchHosts(t lab.T, s settings, programs istiod.Programs, hosts int) []result {
	p := istiod.NewPod(t, programs, 1)
	defer p.Istiod.Kill() // the next number of hosts has one of its own
	p.Istiod.Write("hosts", istiod.Hosts(hosts))
	p.StartIstiod()
	var ours, theirs []pushSample
	var ready, theirReady, restarts []float64
	startQuickly(t, p, p.Istios) // warms the page cache, and istiod's own
	for range s.rounds {
		theirReady, ready = append(theirReady, startQuickly(t, p, p.Istios)), append(ready, startQuickly(t, p, p.Ours))
		theirs, ours = append(theirs, measurePush(t, p, p.Istios)), append(ours, measurePush(t, p, p.Ours))
		restarts = append(restarts, restartAlone(t, p))
	}
	n := fmt.Sprintf("%d hosts under istiod: ", hosts)
	const peer = "Istio's agent"
	results := []result{measured(n+"exec to ready, with a CSR", "ms", ready).against(peer, theirReady)}
	for _, m := range []struct {
		what, unit string
		of         func(pushSample) float64
	}{
		{"anonymous memory 30 s later", "MiB", func(s pushSample) float64 { return s.settled.anon }},
		{"RSS 30 s later", "MiB", func(s pushSample) float64 { return s.settled.rss }},
		{"peak of the anonymous memory", "MiB", func(s pushSample) float64 { return s.peak }},
		{"processor time", "ms", func(s pushSample) float64 { return s.cpu }},
		{"processor time when istiod comes back", "ms", func(s pushSample) float64 { return s.again }},
		{"peak of the anonymous memory then", "MiB", func(s pushSample) float64 { return s.againPeak }},
		{"Envoy's processor time then", "ms", func(s pushSample) float64 { return s.envoyAgain }},
		{"processor time of both then", "ms", func(s pushSample) float64 { return s.again + s.envoyAgain }},
	} {
		results = append(results, measured(n+m.what, m.unit, samplesOf(ours, m.of)).against(peer, samplesOf(theirs, m.of)))
	}
	return append(results, measured(n+"container restart without istiod and its authority", "ms", restarts).against("limit", []float64{restartLimit}))
}

func samplesOf(samples []pushSample, of func(pushSample) float64) (values []float64) {
	for _, s := range samples {
		values = append(values, of(s))
	}
	return values
}

// startCold runs an image that finds nothing of an earlier one.
func startCold(t lab.T, p *istiod.Pod, image lab.Image) (agent *lab.Agent, executed time.Time) {
	p.Slots.List[0].Kill()
	waitGone(t, p.Lab)
	clearVolumes(t, p.Slots)
	if err := p.Slots.List[0].Start(image); err != nil {
		t.Fatalf("%v", err)
	}
	return p.Slots.List[0].Agent(), time.Now()
}

// startQuickly is milliseconds from a cold start's first instant to ready.
func startQuickly(t lab.T, p *istiod.Pod, image lab.Image) float64 {
	agent, begin := startCold(t, p, image)
	poll(t, func() bool { return agent.Ready() == nil })
	return milliseconds(time.Since(begin))
}

// pushSample is what a start under istiod has taken, and another stream of istiod's later.
type pushSample struct {
	settled          memory
	peak, cpu        float64
	again, againPeak float64
	envoyAgain       float64
}

// measurePush asks for nothing meanwhile: who answers is not the same with both agents, and takes processor time.
func measurePush(t lab.T, p *istiod.Pod, image lab.Image) (s pushSample) {
	agent, _ := startCold(t, p, image)
	peak := watchAnonymous(t, agent.PID())
	<-time.After(2 * pushSettle) // the definition of the measurement: the push takes less than half of it
	s.peak, s.settled, s.cpu = peak(), memoryOf(t, agent.PID()), milliseconds(cpuTime(t, agent.PID()))
	if err := agent.Ready(); err != nil {
		t.Fatalf("not ready within %v: %v", 2*pushSettle, err)
	}
	envoy := 0 // processes come and go while one looks
	poll(t, func() bool { envoy = agent.EnvoyPID(); return envoy != 0 })
	before := milliseconds(cpuTime(t, envoy))
	p.Istiod.Kill()
	peak = watchAnonymous(t, agent.PID())
	p.Istiod.Start()
	lab.Eventually(t, pushSettle, "the agent has found istiod again", func() error {
		n, err := p.Istiod.Connected()
		if err == nil && n == 0 {
			err = fmt.Errorf("no proxy is connected")
		}
		return err
	})
	<-time.After(pushSettle)
	s.againPeak, s.again = peak(), milliseconds(cpuTime(t, agent.PID()))-s.cpu
	s.envoyAgain = milliseconds(cpuTime(t, envoy)) - before
	return s
}

// restartAlone starts the slot's container again, which serves by what it has on its volumes.
func restartAlone(t lab.T, p *istiod.Pod) float64 {
	slot := p.Slots.List[0]
	p.Istiod.Kill()
	defer p.Istiod.Start()
	slot.Kill()
	waitGone(t, p.Lab)
	if err := slot.Start(p.Ours); err != nil {
		t.Fatalf("%v", err)
	}
	begin := time.Now()
	agent := slot.Agent()
	poll(t, func() bool { return agent.Ready() == nil })
	return milliseconds(time.Since(begin))
}

// watchAnonymous looks at a process's anonymous memory until the function that it returns is called, which says how large it was.
func watchAnonymous(t lab.T, pid int) (stop func() float64) {
	ended, largest := make(chan struct{}), make(chan float64, 1)
	go func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		most := 0.0
		for {
			select {
			case <-tick.C:
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
					most = max(most, memoryOf(t, pid).anon)
				}
			case <-ended:
				largest <- most
				return
			}
		}
	}()
	return func() float64 { close(ended); return <-largest }
}
