package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/tests/lab"
)

// deadEnvoy answers the helper runs that the contract allows, and dies when it should serve.
const deadEnvoy = `#!/bin/sh
case "$*" in
*--hot-restart-version*) echo 11.104; exit 0;;
*--version*) echo "envoy version: 0123456789abcdef/1.40.0/Clean/RELEASE/BoringSSL"; exit 0;;
*"--mode validate"*) exit 0;;
esac
echo "no luck today" >&2
exit 7
`

// deathsBeforeServing is after how many deaths in a row the agent gives up.
const deathsBeforeServing = 5

// deathsInALoop of an Envoy that served, within a minute, turn the pod unready.
const deathsInALoop = 3

// TestEnvoyNeverServes demands five tries and then an exit with the reason.
func TestEnvoyNeverServes(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	fake := filepath.Join(l.Dir, "dead-envoy")
	must(t, os.WriteFile(fake, []byte(deadEnvoy), 0o755))
	a := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: fake}).StartAgent(t, lab.AgentOptions{})
	code := a.Wait(t, 2*lab.Deadline)
	if n := strings.Count(a.Log.String(), "no luck today"); n != deathsBeforeServing {
		t.Errorf("Envoy was started %d times, want %d", n, deathsBeforeServing)
	}
	// The agent ends as Envoy did: with its status.
	if code != 7 {
		t.Errorf("exit status %d, want Envoy's 7", code)
	}
}

// TestEnvoyKilled kills an Envoy that served, more often than five times: it is started again
// each time, the agent stays, and traffic flows again. The third time the pod turns unready.
func TestEnvoyKilled(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"one.yaml": entry("one", "one.example", 3306, "TCP", "DNS")}})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSEGV, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGKILL} {
		old := p.agent.EnvoyPID()
		if old == 0 {
			t.Fatal("the agent has no Envoy")
		}
		must(t, syscall.Kill(old, signal))
		eventually(t, "another Envoy runs", func() error {
			if now := p.agent.EnvoyPID(); now != 0 && now != old {
				return nil
			}
			return fmt.Errorf("none after %d", old)
		})
		if i < deathsInALoop-1 {
			p.agent.WaitReady(t)
		} else {
			eventually(t, "readiness names nothing but the crash loop", func() error {
				err := p.agent.Ready()
				if err == nil || !strings.Contains(err.Error(), "crash-loop") || strings.Contains(err.Error(), "envoy:") {
					return fmt.Errorf("after %d deaths readiness says %v", i+1, err)
				}
				return nil
			})
		}
		expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n")
	}
	status, body, err := p.Pod.Get("http://127.0.0.1:15020/stats/prometheus")
	if err != nil || contains(body, "istio_agent_envoy_restarts_total") != nil {
		t.Errorf("no istio_agent_envoy_restarts_total in the metrics (%d, %v)", status, err)
	}
}
