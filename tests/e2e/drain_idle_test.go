package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/lab"
)

const (
	// idleTimeout is UNDERSTUDY_DRAIN_IDLE_TIMEOUT where it is on. A drain looks once a second.
	idleTimeout = "UNDERSTUDY_DRAIN_IDLE_TIMEOUT=1s"
	// heldFor is how long a test looks on at a drain that must not end: longer than one lasts that does.
	heldFor = 4 * time.Second
	// useEvery is how often a connection is used that is in use.
	useEvery = 500 * time.Millisecond
)

// kept is a kept HTTP/1.1 connection.
type kept struct {
	net.Conn
	r *bufio.Reader
}

// keep connects, and does a first request.
func keep(t *testing.T, n *lab.Namespace, addr string) *kept {
	t.Helper()
	c := dial(t, n, addr)
	k := &kept{c, bufio.NewReader(c)}
	if again, err := k.use(); err != nil || !again {
		t.Fatalf("a first request to %s: kept %v, %v", addr, again, err)
	}
	return k
}

// use does a request, and tells whether the connection is kept for another.
func (k *kept) use() (again bool, err error) {
	_ = k.SetDeadline(time.Now().Add(lab.Deadline))
	if _, err := io.WriteString(k, "GET / HTTP/1.1\r\nHost: http.example\r\n\r\n"); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(k.r, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return err == nil && !resp.Close, err
}

// isOpen tells whether the other side still has the connection.
func (k *kept) isOpen() bool {
	_ = k.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := k.r.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// mustClose waits for the other side's end of file.
func (k *kept) mustClose(t *testing.T) {
	t.Helper()
	_ = k.SetReadDeadline(time.Now().Add(lab.Deadline))
	if b, err := k.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: read %q, %v; want it closed", b, err)
	}
}

// keepHTTP2 does one request over HTTP/2, and keeps the connection.
func keepHTTP2(t *testing.T, n *lab.Namespace, addr string) {
	t.Helper()
	transport := n.HTTP2()
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport, Timeout: lab.Deadline}).Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// busy is an exchange that is not idle: check does a part of it, end its rest.
type busy struct {
	kind  string
	drain contract.Drain // what upgrade-status says of it
	open  func(*testing.T, *lab.Namespace) (check, end func() error)
}

// echo sends a byte and expects it back.
func echo(w io.Writer, r io.Reader) error {
	b := []byte{'x'}
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(r, b)
	return err
}

// busyKinds are of every kind, on the servers of serveStreams and the echo on port 9000.
func busyKinds() []busy {
	nothing := func() error { return nil }
	return []busy{
		{"TCP", contract.Drain{TCP: 1}, func(t *testing.T, n *lab.Namespace) (check, end func() error) {
			c := dial(t, n, lab.PodIP+":9000")
			return func() error { return echo(c, c) }, c.Close
		}},
		{"WebSocket", contract.Drain{Streams: 1}, func(t *testing.T, n *lab.Namespace) (check, end func() error) {
			c, r, _, err := request1(n, "GET /ws HTTP/1.1\nHost: app\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: x\nSec-WebSocket-Version: 13\n\n", http.StatusSwitchingProtocols)
			must(t, err)
			return func() error { return echo(c, r) }, c.Close
		}},
		{"gRPC", contract.Drain{Active: 1}, func(t *testing.T, n *lab.Namespace) (check, end func() error) {
			in, out, err := openGRPC(n)
			must(t, err)
			return func() error { return echo(in, out) }, func() error { return errors.Join(in.Close(), out.Close()) }
		}},
		{"long request", contract.Drain{Active: 1}, func(t *testing.T, n *lab.Namespace) (check, end func() error) {
			c := dial(t, n, lab.PodIP+":7000")
			send(t, c, "PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 1\r\n\r\n")
			return nothing, func() error {
				send(t, c, "x")
				_ = c.SetDeadline(time.Now().Add(lab.Deadline))
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %s", resp.Status)
				}
				return err
			}
		}},
	}
}

// TestIdleTimeoutOfAnUpgrade: idle connections end the drain once nothing else is left, and whatever
// else is left does not.
func TestIdleTimeoutOfAnUpgrade(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Env: []string{idleTimeout}})
	serveStreams(t, p.Lab)
	vip := ""
	images := []lab.Image{p.older, p.newer}
	p.start(t, 0, images[0], 1, 0)
	p.mustServe(t, 0, images[0])
	vip = (&pod{Lab: p.Lab}).vip(t, "http.example", dns.TypeA).String() + ":80"
	for i, b := range busyKinds() {
		old, next := i%2, (i+1)%2
		in, out, used := keep(t, p.Out, lab.PodIP+":8080"), keep(t, p.Pod, vip), keep(t, p.Out, lab.PodIP+":8080")
		keepHTTP2(t, p.Out, lab.PodIP+":8080")
		check, end := b.open(t, p.Out)
		p.slot(next).Stop(stopMargin)
		p.start(t, next, images[next], i+2, i+1)
		p.waitRole(t, old, roleDraining)

		// A client that goes on is answered, and asked to go.
		if again, err := used.use(); err != nil || again {
			t.Errorf("%s: a request in the drain: kept %v, %v", b.kind, again, err)
		}
		want := b.drain
		want.Idle += 3
		p.waitDrain(t, old, want)
		for deadline := time.Now().Add(heldFor); time.Now().Before(deadline); <-time.After(useEvery) {
			if err := errors.Join(check(), p.inRole(old, roleDraining)); err != nil {
				t.Fatalf("%s: %v", b.kind, err)
			}
		}
		if !in.isOpen() || !out.isOpen() {
			t.Errorf("%s: idle connections were closed while something else was left", b.kind)
		}
		if err := end(); err != nil {
			t.Errorf("%s: %v", b.kind, err)
		}
		in.mustClose(t)
		out.mustClose(t)
		p.waitRole(t, old, roleStandby)
	}
}

// waitDrain waits until both generations say that a slot's drain waits for just that.
func (p *slotPod) waitDrain(t *testing.T, slot int, want contract.Drain) {
	t.Helper()
	eventually(t, fmt.Sprintf("the drain waits for %+v", want), func() error {
		for i := range p.slots.List {
			all, _, err := p.upgradeStatus(i)
			if err != nil {
				return err
			}
			j := slices.IndexFunc(all.Generations, func(g contract.GenerationStatus) bool { return g.Role == roleDraining })
			if j < 0 {
				return fmt.Errorf("%s knows of none that drains: %+v", p.slot(i).Name, all)
			}
			if got := all.Generations[j]; got.Drain == nil || *got.Drain != want {
				return fmt.Errorf("%s: %+v of %d connections", p.slot(i).Name, got.Drain, got.Connections)
			}
		}
		return nil
	})
}

// TestIdleConnectionsAreWaitedFor without the setting.
func TestIdleConnectionsAreWaitedFor(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	idle := keep(t, p.Out, lab.PodIP+":8080")
	p.start(t, 1, p.newer, 2, 1)
	p.waitRole(t, 0, roleDraining)
	p.waitDrain(t, 0, contract.Drain{Idle: 1})
	// Not a synchronisation: what must not happen has no event.
	<-time.After(heldFor)
	if err := p.inRole(0, roleDraining); err != nil || !idle.isOpen() {
		t.Errorf("an idle connection is open: %v, %v", idle.isOpen(), err)
	}
	must(t, idle.Close())
	p.waitRole(t, 0, roleStandby)
}

// TestIdleTimeoutOfAStop: in a drain that lasts until no connection is left, those are waited for that are used.
func TestIdleTimeoutOfAStop(t *testing.T) {
	t.Parallel()
	p, inbound, outbound := newIdlePod(t, "EXIT_ON_ZERO_ACTIVE_CONNECTIONS=true", "MINIMUM_DRAIN_DURATION=1s", idleTimeout)
	p.agent.Signal(syscall.SIGTERM)
	for deadline := time.Now().Add(2 * heldFor); time.Now().Before(deadline); <-time.After(useEvery) {
		if again, err := outbound.use(); err != nil || !again {
			t.Fatalf("a connection that is used all the time: kept %v, %v", again, err)
		}
	}
	if !inbound.isOpen() {
		t.Error("an idle connection was closed while another was used")
	}
	outbound.mustClose(t)
	inbound.mustClose(t)
	if code := p.agent.Wait(t, stopMargin); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestIdleTimeoutLeavesADrainTime: terminationDrainDuration is the time in which others learn that the pod goes, and
// the application ends; whether connections are idle is of no consequence.
func TestIdleTimeoutLeavesADrainTime(t *testing.T) {
	t.Parallel()
	const drain = 2 * heldFor
	p, inbound, _ := newIdlePod(t, fmt.Sprintf("TERMINATION_DRAIN_DURATION_SECONDS=%d", drain/time.Second), idleTimeout)
	began := time.Now()
	p.agent.Signal(syscall.SIGTERM)
	inbound.mustClose(t)
	if after := time.Since(began); after < drain {
		t.Errorf("an idle connection was closed after %v, want it open for %v", after, drain)
	}
	if code := p.agent.Wait(t, stopMargin); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// newIdlePod is a pod with a kept connection each way.
func newIdlePod(t *testing.T, env ...string) (p *pod, inbound, outbound *kept) {
	t.Helper()
	p = newPod(t, podOptions{
		files: map[string]string{"mesh.yaml": entry("http", "http.example", 80, "HTTP", "DNS")},
		agent: lab.AgentOptions{Env: env},
	})
	for _, addr := range []string{"198.51.100.11:80", "[2001:db8::11]:80"} {
		lab.ServeHTTP(t, p.Out.Listen(t, addr), "http")
	}
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	return p, keep(t, p.Out, lab.PodIP+":8080"), keep(t, p.Pod, p.vip(t, "http.example", dns.TypeA).String()+":80")
}
