package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// stopMargin is what an agent may need beyond its drain time, on a busy machine, to end Envoy and
// itself. Envoy gets SIGKILL when SIGTERM does not end it, and that has a deadline of its own.
const stopMargin = lab.Deadline

// killed is the exit status of a process that a signal ended, as package os gives it.
const killed = -1

// TestStopAnyTime sends SIGTERM at random moments of the start and after it: the agent ends
// within its drain time, with status 0, or 1 if it was never ready, and leaves no process. Before main the signal is the Go
// runtime's, however long the machine takes to get there: it ends the process, which has said
// nothing yet.
func TestStopAnyTime(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.StartDNS(t, outside)
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "mesh.yaml", documents(aliyun, aliyunHTTP))
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for i := range 12 {
		a := c.StartAgent(t, lab.AgentOptions{})
		a.WaitExec(t)
		// Not a synchronisation: the moment is the input of this test.
		moment := time.Duration(random.Int64N(int64(1500 * time.Millisecond)))
		if i == 0 {
			a.WaitReady(t)
			moment = 0
		}
		<-time.After(moment)
		signal := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}[i%2]
		a.Signal(signal)
		code := a.Wait(t, lab.TerminationDrain+stopMargin)
		want := 0
		if strings.Contains(a.Log.String(), "before this agent was ever ready") {
			want = 1
		}
		if beforeMain := code == killed && a.Log.Len() == 0; code != want && !beforeMain {
			t.Errorf("%v %v after the start: exit status %d, want %d", signal, moment, code, want)
		}
		if served := strings.Contains(a.Log.String(), "role=serving"); served && want == 1 || i == 0 && !served {
			t.Errorf("%v %v after the start: it served: %v, and ends with %d", signal, moment, served, code)
		}
		if left := l.Processes(); len(left) != 0 {
			t.Errorf("%v %v after the start: it left %q", signal, moment, left)
		}
	}
}

// TestDrain watches the order of a stop: readiness goes at once, what goes out and names work
// until the end, what is open inbound is finished.
func TestDrain(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		files: map[string]string{"mesh.yaml": entry("one", "one.example", 3306, "TCP", "DNS")},
		agent: lab.AgentOptions{Env: []string{"TERMINATION_DRAIN_DURATION_SECONDS=4"}},
	})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	lab.ServeTCP(p.Pod.Listen(t, "[::]:9000"), lab.Echo)
	open := dial(t, p.Out, lab.PodIP+":9000")
	send(t, open, "before")
	expect(t, open, "before")

	p.agent.Signal(syscall.SIGTERM)
	eventually(t, "readiness goes", func() error {
		if err := p.agent.Ready(); err == nil {
			return fmt.Errorf("still ready")
		}
		return nil
	})
	select {
	case <-p.agent.Done():
		t.Fatal("the agent ended without a drain")
	default:
	}
	expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n")
	if _, err := p.Pod.Lookup("plain.example", dns.TypeA); err != nil {
		t.Errorf("forwarding during the drain: %v", err)
	}
	send(t, open, "during")
	expect(t, open, "during")
	if code := p.agent.Wait(t, 4*time.Second+stopMargin); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if left := p.Processes(); len(left) != 0 {
		t.Errorf("it left %q", left)
	}
}

// TestQuitAndDrainEndpoints asks for a stop in each of the ways that Istio knows.
func TestQuitAndDrainEndpoints(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": aliyun}})
	post := func(url string) {
		t.Helper()
		status, body, err := p.Pod.Request(http.MethodPost, url)
		if err != nil || status != http.StatusOK {
			t.Errorf("POST %s: %d %s, %v", url, status, body, err)
		}
	}
	restart := func() {
		p.agent = p.c.StartAgent(t, lab.AgentOptions{})
		p.agent.WaitReady(t)
	}
	for _, url := range []string{"http://127.0.0.1:15020/quitquitquit", "http://127.0.0.1:15000/quitquitquit", "http://[::1]:15020/quitquitquit"} {
		post(url)
		if code := p.agent.Wait(t, lab.TerminationDrain+stopMargin); code != 0 {
			t.Errorf("after %s: exit status %d", url, code)
		}
		restart()
	}
	post("http://127.0.0.1:15020/drain")
	if _, err := p.Pod.Lookup("aliyun.com", dns.TypeA); err != nil {
		t.Errorf("names after /drain: %v", err)
	}
	p.agent.Signal(syscall.SIGTERM)
	if code := p.agent.Wait(t, stopMargin); code != 0 {
		t.Errorf("SIGTERM after /drain: exit status %d", code)
	}
}

// TestAgentKilled demands that Envoy does not outlive a killed agent, and that VIPs outlive it.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": documents(aliyun, aliyunHTTP)}})
	before := p.vip(t, "aliyun.com", dns.TypeA)
	p.agent.Signal(syscall.SIGKILL)
	p.agent.Wait(t, lab.Deadline)
	eventually(t, "no process is left", func() error {
		if left := p.Processes(); len(left) != 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	p.c.Write(t, "another.yaml", entry("another", "a-host-that-sorts-first.example", 80, "HTTP", "DNS"))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReady(t)
	if after := p.vip(t, "aliyun.com", dns.TypeA); after != before {
		t.Errorf("the VIP moved from %v to %v in a restart", before, after)
	}
}

// TestPID1 runs the agent as PID 1 of a PID namespace, where orphans become its children and
// signals have no default action.
func TestPID1(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		files: map[string]string{"mesh.yaml": aliyun},
		agent: lab.AgentOptions{PID1: true},
	})
	p.vip(t, "aliyun.com", dns.TypeA)
	must(t, syscall.Kill(p.agent.EnvoyPID(), syscall.SIGKILL))
	eventually(t, "another Envoy serves", func() error { return p.agent.Ready() })
	p.agent.Signal(syscall.SIGTERM)
	if code := p.agent.Wait(t, lab.TerminationDrain+stopMargin); code != 0 {
		t.Errorf("as PID 1: exit status %d", code)
	}
	if left := p.Processes(); len(left) != 0 {
		t.Errorf("it left %q", left)
	}
}

// TestEnvoyEndsQuietly: an Envoy whose drain is over, or whose agent is stopped, does not warn of its control plane.
func TestEnvoyEndsQuietly(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	for i, image := range []lab.Image{p.newer, p.older} { // each drains once
		p.slot((i + 1) % 2).Stop(stopMargin)
		p.start(t, (i+1)%2, image, i+2, i+1)
		p.mustServe(t, (i+1)%2, image)
		p.waitRole(t, i%2, roleStandby)
	}
	p.slot(1).Stop(stopMargin)
	p.start(t, 1, p.newer, 4, 3)
	p.mustServe(t, 1, p.newer)
	if code, _ := p.slot(1).Stop(stopMargin); code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, s := range p.slots.List {
		for line := range strings.Lines(s.Log.String()) {
			if strings.Contains(line, "config stream") || strings.Contains(line, "xds-grpc") {
				t.Errorf("%s: %s", s.Name, strings.TrimSpace(line))
			}
		}
	}
}
