package istiod

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// TestConnectionAge: istiod sends each connection away after a while (GOAWAY), so that agents spread over its replicas. Envoy's stream
// stays, and gets what is different.
func TestConnectionAge(t *testing.T) {
	f := startFake(t, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 200 * time.Millisecond, MaxConnectionAgeGrace: 100 * time.Millisecond}))
	a := newAgent(t, f, nil)
	e := a.envoy()
	e.asks(clusterType)
	s := f.stream()
	s.asked("Cluster node")
	s.give(clusterType, "a=0")
	e.gets("Cluster +a", "")
	s.asked("Cluster ack n1")
	for range 3 {
		<-s.gone
		s = f.stream()
		s.asked("Cluster node held:a")
	}
	if a.relay.Stats().Streams != 1 {
		t.Errorf("Envoy has had %d streams, want one", a.relay.Stats().Streams)
	}
}

// cable stands between an agent and istiod, and can go dead without either noticing.
type cable struct {
	net.Listener
	dead  atomic.Bool
	conns sync.WaitGroup
}

// startCable returns one to addr; cut ends it.
func startCable(t *testing.T, addr string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &cable{Listener: l}
	w.conns.Go(func() {
		for {
			agent, err := l.Accept()
			if err != nil {
				return
			}
			istiod, err := net.Dial("tcp", addr)
			if err != nil {
				agent.Close()
				continue
			}
			dead := new(atomic.Bool) // this connection, for good
			for _, way := range [][2]net.Conn{{agent, istiod}, {istiod, agent}} {
				w.conns.Go(func() {
					defer agent.Close()
					defer istiod.Close()
					w.carry(way[0], way[1], dead)
				})
			}
		}
	})
	t.Cleanup(func() { l.Close(); w.conns.Wait() })
	return w
}

// carry passes on what comes, unless the cable was dead when something did.
func (w *cable) carry(from, to net.Conn, dead *atomic.Bool) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if w.dead.Load() {
			dead.Store(true)
		}
		if dead.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// TestDeadConnection: a connection on which nothing arrives any more, and which nobody has closed, is given up for another one. It
// takes the ten seconds that are the shortest interval of gRPC's.
func TestDeadConnection(t *testing.T) {
	t.Parallel()
	f := startFake(t)
	w := startCable(t, f.addr)
	a := newAgent(t, f, func(i *Istiod) {
		i.c.Dial.Address, i.c.Dial.KeepaliveTime, i.c.Dial.KeepaliveTimeout = w.Addr().String(), 10*time.Second, time.Second
	})
	t.Cleanup(func() { a.stop() }) // before the cable's end waits for its connections
	a.envoy().asks(clusterType)
	f.stream().asked("Cluster node")
	w.dead.Store(true)
	lost := time.After(2 * deadline)
	for a.now().Connected {
		select {
		case <-lost:
			t.Fatal("the agent takes a dead connection for a living one")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if why := a.now().LastError; !strings.Contains(why, "keepalive") {
		t.Errorf("the reason is %q", why)
	}
	w.dead.Store(false)
	f.stream().asked("Cluster node")
}
