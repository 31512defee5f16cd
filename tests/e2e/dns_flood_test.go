package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

const (
	// floodTime is short for every day; FLOOD_TIME=30s is the soak.
	floodTime    = 4 * time.Second
	floodTimeEnv = "FLOOD_TIME"
	// floodPorts is how many source ports the flood comes from, and floodSenders from how many threads.
	floodPorts   = 64
	floodSenders = 2
	// newNames is how often a name that nobody has asked for before is asked for, among those of the mesh.
	newNames = 10
	// floodMemory is what the agent may grow by: 1,024 queries that wait, and what a garbage-collected
	// heap takes for them.
	floodMemory = 48 << 10 // KiB
)

// TestDNSFlood holds the agent to a fifth of a core and asks far more than it can answer, from many
// ports, for names of the mesh and for ever new ones outside, while slow clients hold all of its TCP
// connections. What it answers is right, its memory stays within bounds, others get their answers
// over TCP, and once the flood ends it is as before.
func TestDNSFlood(t *testing.T) {
	duration := floodTime
	if text := os.Getenv(floodTimeEnv); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		must(t, err)
	}
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": aliyun}})
	vip := p.vip(t, "aliyun.com", dns.TypeA).String()
	slowed := slowFifth(t, p.agent.PID())
	before := residentKiB(t, p.agent.PID())

	f := &flood{t: t, p: p, vip: vip}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	slow := holdConnections(t, p)
	for sender := range floodSenders {
		var conns []net.Conn
		for range floodPorts / floodSenders {
			conn, err := p.Pod.Dial(ctx, "udp", "127.0.0.1:"+lab.DNSPort)
			must(t, err)
			t.Cleanup(func() { _ = conn.Close() })
			conns = append(conns, conn)
			f.wait.Go(func() { f.receive(ctx, conn) })
		}
		f.wait.Go(func() { f.send(ctx, sender, conns) })
	}
	f.wait.Go(func() { f.watchMemory(ctx) })
	f.wait.Go(func() { f.askOverTCP(ctx) })
	f.wait.Wait()
	sent, answered := f.sent.Load(), f.answered.Load()
	t.Logf("%v: %d queries, %d answers, %d of them refusals; %d answers over TCP; memory %d KiB before, %d at most",
		duration, sent, answered, f.refused.Load(), f.overTCP.Load(), before, f.memory.Load())

	t.Logf("answers again after %v", f.recovers(t))
	if slowed && sent < 2*answered { // the kernel has dropped the others, of the queries or of the answers
		t.Errorf("%d of %d queries were answered: that was no flood", answered, sent)
	}
	if answered == 0 || f.overTCP.Load() == 0 {
		t.Error("somebody got no answer at all")
	}
	if grown := f.memory.Load() - before; grown > floodMemory {
		t.Errorf("the agent grew by %d KiB, want at most %d", grown, floodMemory)
	}
	for _, c := range slow {
		_ = c.SetReadDeadline(time.Now().Add(lab.Deadline))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that sent half a query is still open: %v", err)
		}
	}
}

// slowFifth gives a process a fifth of a core until the test ends. Most containers, CI's
// included, have their control groups read-only; the flood is one all the same.
func slowFifth(t *testing.T, pid int) bool {
	t.Helper()
	procs, err := lab.CPULimit(t, 20)
	if err == nil {
		err = lab.Join(procs, pid)
	}
	if err != nil {
		t.Logf("the agent has all of the machine: %v", err)
	}
	return err == nil
}

// holdConnections opens as many connections as the agent takes, and sends half a query on each.
func holdConnections(t *testing.T, p *pod) (held []net.Conn) {
	t.Helper()
	const most = 64
	for range most {
		c := dial(t, p.Pod, "127.0.0.1:"+lab.DNSPort)
		send(t, c, "\x00\x20\x12\x34")
		held = append(held, c)
	}
	return held
}

// flood counts what it sends and what comes back.
type flood struct {
	t    *testing.T
	p    *pod
	vip  string
	wait sync.WaitGroup

	sent, answered, refused, overTCP, memory atomic.Int64
}

// send asks as fast as it can, from one port after the other.
func (f *flood) send(ctx context.Context, sender int, conns []net.Conn) {
	mesh, err := new(dns.Msg).SetQuestion("aliyun.com.", dns.TypeA).Pack()
	for n := 0; ctx.Err() == nil && err == nil; n++ {
		msg := mesh
		if n%newNames == 0 {
			msg, err = new(dns.Msg).SetQuestion(fmt.Sprintf("n%d-%d.flood.example.", sender, n), dns.TypeA).Pack()
		}
		if _, refused := conns[n%len(conns)].Write(msg); refused == nil {
			f.sent.Add(1)
		}
	}
	if err != nil {
		f.t.Errorf("pack a query: %v", err)
	}
}

// receive checks every answer until the flood is over.
func (f *flood) receive(ctx context.Context, conn net.Conn) {
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	for buf := make([]byte, 4096); ; {
		n, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		m := new(dns.Msg)
		if err == nil {
			err = m.Unpack(buf[:n])
		}
		if err != nil || !m.Response || len(m.Question) != 1 {
			f.t.Errorf("what came back is no answer: %v, %v", err, m)
			return
		}
		f.answered.Add(1)
		mesh := m.Question[0].Name == "aliyun.com."
		switch {
		case mesh && m.Rcode == dns.RcodeSuccess && len(m.Answer) == 1 && m.Answer[0].(*dns.A).A.String() == f.vip:
		case !mesh && m.Rcode == dns.RcodeNameError:
		case !mesh && m.Rcode == dns.RcodeServerFailure: // "too many at once"
			f.refused.Add(1)
		default:
			f.t.Errorf("a wrong answer: %v", m)
			return
		}
	}
}

func (f *flood) watchMemory(ctx context.Context) {
	const often = 100 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for ctx.Err() == nil {
		f.memory.Store(max(f.memory.Load(), residentKiB(f.t, f.p.agent.PID())))
		<-tick.C
	}
}

// askOverTCP asks for a mesh name and for one outside, each over a connection of its own.
func (f *flood) askOverTCP(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		name := []string{"aliyun.com", "plain.example"}[i%2]
		m, err := f.p.Pod.Exchange("tcp", "127.0.0.1:"+lab.DNSPort, name, dns.TypeA)
		if err != nil || name == "aliyun.com" && (m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1) {
			f.t.Errorf("%s over TCP in the flood: %v, %v", name, m, err)
			return
		}
		f.overTCP.Add(1)
	}
}

// recovers returns how long it takes until a name of the mesh is answered. The first query may meet the
// last of the flood in the socket and be dropped there.
func (f *flood) recovers(t *testing.T) time.Duration {
	const again = 200 * time.Millisecond
	start := time.Now()
	eventually(t, "an answer after the flood", func() error {
		c, err := f.p.Pod.Dial(t.Context(), "udp", "127.0.0.1:"+lab.DNSPort)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(again))
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("aliyun.com.", dns.TypeA)); err != nil {
			return err
		}
		_, err = conn.ReadMsg()
		return err
	})
	return time.Since(start)
}

// residentKiB is a process's resident memory.
func residentKiB(t *testing.T, pid int) (kib int64) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Errorf("read the agent's memory: %v", err)
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, _ = fmt.Sscan(rest, &kib)
	return kib
}
