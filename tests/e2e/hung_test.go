package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// hungWithin is how long the verdict on an Envoy that stands still may take: 30 s, and as long
// again on a machine that is starved now and then, for which it waits.
const hungWithin = 30*time.Second + 2*lab.Deadline

func hungPod(t *testing.T, env ...string) *pod {
	t.Helper()
	p := newPod(t, podOptions{
		files: map[string]string{"one.yaml": entry("one", "one.example", 3306, "TCP", "DNS")},
		agent: lab.AgentOptions{Env: env},
	})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	// An Envoy that stands still before the agent has copies of its sockets takes them with it.
	lab.Eventually(t, lab.Deadline, "the agent has Envoy's sockets", func() error {
		got := p.c.Run(t, lab.As{UID: lab.AgentUID}, lab.AgentPath, "upgrade-status", "-o", "json")
		return contains(got.Stdout, "tcp://[::]:15001", "tcp://[::]:15006", "tcp://[::]:15090")
	})
	return p
}

// stopProcess returns when every thread of the process stands still: until the one that takes the
// signal gets a processor, the others go on, and may accept a connection.
func stopProcess(t *testing.T, pid int) {
	t.Helper()
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	eventually(t, "the process stands still", func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			return fmt.Errorf("no threads of %d: %v", pid, err)
		}
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if err != nil || !strings.Contains(string(stat), ") T ") {
				return fmt.Errorf("%s: %q, %v", thread, stat, err)
			}
		}
		return nil
	})
}

// TestHungEnvoyIsReported stops an Envoy: the pod turns unready with the reason, and is ready
// again when Envoy goes on, which nobody has ended.
func TestHungEnvoyIsReported(t *testing.T) {
	t.Parallel()
	p := hungPod(t)
	pid := p.agent.EnvoyPID()
	stopProcess(t, pid)
	stopped := time.Now()
	lab.Eventually(t, hungWithin, "the pod is unready", func() error {
		err := p.agent.Ready()
		if err == nil || !strings.Contains(err.Error(), "Envoy hangs: it has not answered for ") {
			return fmt.Errorf("readiness says: %v", err)
		}
		return nil
	})
	if took := time.Since(stopped); took < 29*time.Second {
		t.Errorf("unready after %v", took)
	}
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	p.agent.WaitReady(t)
	if now := p.agent.EnvoyPID(); now != pid {
		t.Errorf("another Envoy runs: %d, was %d", now, pid)
	}
	expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n")
}

// TestHungEnvoyIsRestarted: who connects meanwhile waits in sockets that the agent keeps.
func TestHungEnvoyIsRestarted(t *testing.T) {
	t.Parallel()
	p := hungPod(t, "UNDERSTUDY_HUNG_ENVOY=restart")
	pid := p.agent.EnvoyPID()
	lab.ServeTCP(p.Pod.Listen(t, "[::]:9000"), lab.Echo)
	stopProcess(t, pid)
	waiting := dial(t, p.Out, lab.PodIP+":9000")
	must(t, waiting.SetDeadline(time.Now().Add(hungWithin+lab.Deadline)))
	send(t, waiting, "patience")
	lab.Eventually(t, hungWithin, "another Envoy runs", func() error {
		if now := p.agent.EnvoyPID(); now == 0 || now == pid {
			return fmt.Errorf("Envoy is %d, was %d", now, pid)
		}
		return nil
	})
	p.agent.WaitReady(t)
	expect(t, waiting, "patience")
	expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n")
}
