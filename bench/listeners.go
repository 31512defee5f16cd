package main

import (
	"context"
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
func benchListeners(t lab.T, s settings) (results []result) {
	programs, err := istiod.Build(context.Background(), lab.RepoRoot(t), s.cache, func(what string) { t.Logf("%s", what) })
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, hosts := range []int{s.entries, manyTimes * s.entries} {
		results = append(results, benchShapes(t, s, programs, hosts)...)
	}
	return results
}

// shapeSample is one start.
type shapeSample struct {
	startSample
	cpu               float64 // of Envoy, until it is ready
	change, changeCPU float64 // until a host that comes has a name, and what that takes Envoy
}

func benchShapes(t lab.T, s settings, programs istiod.Programs, hosts int) []result {
	l := lab.New(t)
	l.StartDNS(t, nil)
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "hosts.yaml", istiod.Hosts(hosts))
	p := istiod.NewPod(t, programs, 1)
	defer p.Istiod.Kill() // the next number of hosts has one of its own
	p.Istiod.Write("hosts", istiod.Hosts(hosts))
	p.StartIstiod()
	startQuickly(t, p, p.Istios) // warms the page cache, and istiod's own
	var shared, each, istios []shapeSample
	for range s.rounds {
		istios = append(istios, startIstios(t, p))
		each = append(each, startShape(t, l, c, "each"))
		shared = append(shared, startShape(t, l, c, "shared"))
	}
	n, of := fmt.Sprintf("%d hosts, shared listeners: ", hosts), func(samples []shapeSample, value func(shapeSample) float64) (out []float64) {
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

func startShape(t lab.T, l *lab.Lab, c *lab.Container, shape string) (sample shapeSample) {
	_ = c.Run(t, lab.As{UID: lab.RootUID}, "sh", "-c", "rm -rf /etc/istio/proxy/* /var/lib/istio/data/*")
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
