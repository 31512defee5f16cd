package main

import (
	"fmt"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

// benchListeners starts the agent on files with shared listeners, with one for each VIP and port, and Istio's agent under a real
// istiod with the same hosts, in turn: from the first instant to ready, what the two processes take then, and one change of
// the many.
func benchListeners(t lab.T, s settings) []result {
	return atBothSizes(t, s, func(b beside) []result { return benchShapes(t, s, b) })
}

// shapeSample is one start.
type shapeSample struct {
	startSample
	cpu               float64 // of Envoy, until it is ready
	change, changeCPU float64 // until a host that comes has a name, and what that takes Envoy
}

func benchShapes(t lab.T, s settings, b beside) []result {
	var shared, each, istios []shapeSample
	for range s.rounds {
		istios = append(istios, startIstios(t, b.istios))
		each = append(each, startShape(t, b, "each"))
		shared = append(shared, startShape(t, b, "shared"))
	}
	n, of := fmt.Sprintf("%d hosts, shared listeners: ", b.hosts), func(samples []shapeSample, value func(shapeSample) float64) (out []float64) {
		for _, s := range samples {
			out = append(out, value(s))
		}
		return out
	}
	var results []result
	for _, m := range []struct {
		what, unit string
		value      func(shapeSample) float64
		ofIstios   bool
	}{
		{"exec to ready", "ms", func(s shapeSample) float64 { return s.ready }, true},
		{"Envoy's processor time until then", "ms", func(s shapeSample) float64 { return s.cpu }, true},
		{"Envoy's RSS", "MiB", func(s shapeSample) float64 { return s.envoy.rss }, true},
		{"agent's RSS", "MiB", func(s shapeSample) float64 { return s.agent.rss }, true},
		{"of it anonymous", "MiB", func(s shapeSample) float64 { return s.agent.anon }, true},
		{"a host comes: until it has a name", "ms", func(s shapeSample) float64 { return s.change }, false},
		{"a host comes: Envoy's processor time", "ms", func(s shapeSample) float64 { return s.changeCPU }, false},
	} {
		results = append(results, measured(n+m.what, m.unit, of(shared, m.value)).against("a listener for each VIP and port", of(each, m.value)))
		if m.ofIstios {
			results = append(results, measured(n+m.what, m.unit, of(shared, m.value)).against("Istio's agent", of(istios, m.value)))
		}
	}
	return results
}

func startShape(t lab.T, b beside, shape string) (sample shapeSample) {
	l, c := b.lab, b.container
	b.clear(t)
	c.Remove(t, "one.yaml")
	begin := time.Now()
	agent := c.StartAgent(t, lab.AgentOptions{Env: []string{"UNDERSTUDY_LISTENERS=" + shape}})
	poll(t, func() bool { return agent.Ready() == nil })
	sample.ready = milliseconds(time.Since(begin))
	envoy := agent.EnvoyPID()
	sample.cpu = milliseconds(cpuTime(t, envoy))
	<-time.After(settle)
	sample.agent, sample.envoy = memoryOf(t, agent.PID()), memoryOf(t, envoy)
	before := cpuTime(t, envoy)
	const host = "one.mesh.test"
	c.Write(t, "one.yaml", istiod.Entry(host, "HTTP", "198.51.100.80"))
	begin = time.Now()
	poll(t, func() bool {
		m, err := l.Pod.Exchange("udp", "127.0.0.1:"+lab.DNSPort, host, dns.TypeA)
		return err == nil && len(m.Answer) == 1
	})
	sample.change = milliseconds(time.Since(begin))
	<-time.After(settle)
	sample.changeCPU = milliseconds(cpuTime(t, envoy) - before)
	agent.Signal(syscall.SIGKILL)
	agent.Wait(t, lab.Deadline)
	waitGone(t, l)
	return sample
}

// startIstios is one start of Istio's agent.
func startIstios(t lab.T, p *istiod.Pod) (sample shapeSample) {
	agent, begin := startCold(t, p, p.Istios)
	poll(t, func() bool { return agent.Ready() == nil })
	sample.ready = milliseconds(time.Since(begin))
	envoy := 0 // processes come and go while one looks
	poll(t, func() bool { envoy = agent.EnvoyPID(); return envoy != 0 })
	sample.cpu = milliseconds(cpuTime(t, envoy))
	<-time.After(settle)
	sample.agent, sample.envoy = memoryOf(t, agent.PID()), memoryOf(t, envoy)
	p.Slots.List[0].Kill()
	waitGone(t, p.Lab)
	return sample
}
