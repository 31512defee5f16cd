package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
)

// settle is how long after ready memory is read: Envoy has then freed what it loaded from, and
// the agent what it parsed.
const settle = 3 * time.Second

// benchStart starts the agent, and Envoy alone with the same resources in a file, in turn.
func benchStart(t lab.T, s settings) []result {
	l := lab.New(t)
	l.StartDNS(t, nil)
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "bench.yaml", entriesYAML(s.entries))
	staticConfig := filepath.Join(c.HostConfig, "static.json")
	var ready, alone, rss, anon, envoyRSS, aloneRSS []float64
	for round := range s.rounds + 1 {
		m := startAgentOnce(t, l, c, staticConfig)
		e := startEnvoyOnce(t, l, c)
		if round == 0 {
			continue // it warmed the page cache, and made the static configuration
		}
		ready, alone = append(ready, m.ready), append(alone, e.ready)
		rss, anon = append(rss, m.agent.rss), append(anon, m.agent.anon)
		envoyRSS, aloneRSS = append(envoyRSS, m.envoy.rss), append(aloneRSS, e.envoy.rss)
	}
	n := fmt.Sprintf("%d ServiceEntries: ", s.entries)
	return []result{
		measured(n+"exec to ready", "ms", ready).against("Envoy alone, same resources in a file", alone),
		measured(n+"agent's RSS", "MiB", rss),
		measured(n+"of it anonymous", "MiB", anon),
		measured(n+"its Envoy's RSS", "MiB", envoyRSS).against("Envoy alone", aloneRSS),
	}
}

// startSample is one start: milliseconds from exec to ready, and memory some time after it.
type startSample struct {
	ready        float64
	agent, envoy memory
}

// startAgentOnce runs an agent without state of an earlier one until its memory was read. The
// first time it also writes what its Envoy has loaded to staticConfig.
func startAgentOnce(t lab.T, l *lab.Lab, c *lab.Container, staticConfig string) startSample {
	_ = c.Run(t, lab.As{UID: lab.RootUID}, "sh", "-c", "rm -rf /etc/istio/proxy/* /var/lib/istio/data/*")
	begin := time.Now()
	agent := c.StartAgent(t, lab.AgentOptions{})
	poll(t, func() bool { return agent.Ready() == nil })
	sample := startSample{ready: milliseconds(time.Since(begin))}
	<-time.After(settle) // the definition of the measurement, not a synchronisation
	sample.agent, sample.envoy = memoryOf(t, agent.PID()), memoryOf(t, agent.EnvoyPID())
	if _, err := os.Stat(staticConfig); err != nil {
		writeStaticConfig(t, l, staticConfig)
	}
	agent.Signal(syscall.SIGKILL)
	agent.Wait(t, lab.Deadline)
	waitGone(t, l)
	return sample
}

// startEnvoyOnce runs Envoy alone, as the agent would: same user, same container, same number of workers.
func startEnvoyOnce(t lab.T, l *lab.Lab, c *lab.Container) startSample {
	begin := time.Now()
	cmd := c.Command(context.Background(), lab.As{UID: lab.AgentUID}, lab.EnvoyPath, "-c", lab.ConfigMount+"/static.json",
		"--concurrency", "2", "--disable-hot-restart", "-l", "warning")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start Envoy: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	poll(t, func() bool {
		select {
		case err := <-ended:
			t.Fatalf("Envoy alone ended: %v: %s", err, lastLines(log.String()))
		default:
		}
		return envoyServes(l)
	})
	sample := startSample{ready: milliseconds(time.Since(begin))}
	<-time.After(settle)
	sample.envoy = memoryOf(t, cmd.Process.Pid)
	_ = cmd.Process.Kill()
	<-ended
	return sample
}

// envoyServes is the agent's own condition for ready, and its own way to ask: LIVE, and the workers run.
func envoyServes(l *lab.Lab) bool {
	if status, _, err := l.Pod.Get("http://" + aloneAdmin + "/ready"); err != nil || status != http.StatusOK {
		return false
	}
	status, body, err := l.Pod.Get("http://" + aloneAdmin + "/stats?filter=^(server.state|listener_manager.workers_started)$")
	return err == nil && status == http.StatusOK &&
		strings.Contains(body, "server.state: 0") && strings.Contains(body, "listener_manager.workers_started: 1")
}

// poll looks every few milliseconds: the resolution of the measurement.
func poll(t lab.T, condition func() bool) {
	const (
		resolution = 5 * time.Millisecond
		patience   = 10 * time.Minute // -entries may be anything
	)
	deadline := time.After(patience)
	tick := time.NewTicker(resolution)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not ready within %v", patience)
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// waitGone waits until no process of an earlier start is left.
func waitGone(t lab.T, l *lab.Lab) {
	lab.Eventually(t, lab.Deadline, "the processes end", func() error {
		if left := l.Processes(); len(left) != 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
}
