package dnsproxy

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// A lost datagram costs less than a client's patience, with one server too.
func TestLostDatagram(t *testing.T) {
	var lost atomic.Bool
	answer := dnstest.Zone(0, dnstest.GoodA)
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		if lost.CompareAndSwap(false, true) {
			return nil
		}
		return answer(r, tcp)
	})
	// With time for each try, so that the first one is overtaken and never out of time.
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: 20 * time.Second}})
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if u := s.Upstreams()[0]; u.Requests < 2 || u.Failures != 0 {
		t.Errorf("%+v", u)
	}
}

// The time for which a query was held before the first table is its client's.
func TestHeldTimeCounts(t *testing.T) {
	const hold = 2 * time.Millisecond
	s := newServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}, HoldBeforeTable: hold})
	q, err := wire.NewQuery("x.example", dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	chainOf(s).wait(t.Context(), q, found{})
	if q.Held < hold {
		t.Errorf("held for %s, want %s at least", q.Held, hold)
	}
}

// A question of ours that comes back is refused at once, and named in the log.
func TestLoopIsCut(t *testing.T) {
	log := new(dnstest.Log)
	var back atomic.Pointer[testServer]
	// The good server waits until the question has come back, for the slow
	// machine on which it is asked before.
	refused := make(chan struct{})
	var once sync.Once
	loop := dnstest.NewUpstream(t, func(request []byte, _ bool) []byte {
		defer once.Do(func() { close(refused) })
		conn, err := net.Dial("udp", back.Load().addr)
		if err != nil {
			return nil
		}
		defer conn.Close()
		conn.Write(request)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		reply := make([]byte, maxQuery)
		n, err := conn.Read(reply)
		if err != nil {
			return nil
		}
		return reply[:n]
	})
	good := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte { <-refused; return dnstest.Zone(0, dnstest.GoodA)(request, tcp) })
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(loop.Addr), dnstest.Nameserver(good.Addr))}, Log: slog.New(slog.NewTextHandler(log, nil))})
	back.Store(s)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if n := strings.Count(log.String(), "came back"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
}

// pipelined is an upstream for TCP that reads as many questions as it is told,
// and answers them in reverse, over and over; UDP it leaves unanswered.
type pipelined struct {
	listener net.Listener
	batch    int
	conns    atomic.Int64
	drop     atomic.Bool // close instead of answering
}

func newPipelined(t *testing.T, batch int) *pipelined {
	t.Helper()
	udp, tcp := listen(t)
	p := &pipelined{listener: tcp[0], batch: batch}
	var loops sync.WaitGroup
	loops.Go(func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.conns.Add(1)
			loops.Go(func() { defer conn.Close(); p.serve(conn) })
		}
	})
	t.Cleanup(func() { p.listener.Close(); udp[0].Close(); loops.Wait() })
	return p
}

func (p *pipelined) serve(conn net.Conn) {
	for {
		var batch [][]byte
		for range p.batch {
			request, err := dnstest.ReadFramed(conn)
			if err != nil || p.drop.Load() {
				return
			}
			batch = append([][]byte{request}, batch...)
		}
		for _, r := range batch {
			dnstest.WriteFramed(conn, dnstest.Zone(0, dnstest.NameIn(r)+" 60 IN A 192.0.2.1")(r, true))
		}
	}
}

// With use-vc all questions go over one connection, without waiting.
func TestPipelining(t *testing.T) {
	const batch = 10
	up := newPipelined(t, batch)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, "nameserver ["+strings.Replace(up.listener.Addr().String(), ":", "]:", 1), "options use-vc")}})
	ask := func(round int) {
		var all sync.WaitGroup
		for i := range batch {
			all.Go(func() {
				name := fmt.Sprintf("n%d-%d.example.", round, i)
				if r := s.ask(t, "udp", name, dns.TypeA); len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
					t.Errorf("%v", r)
				}
			})
		}
		all.Wait()
	}
	ask(1)
	ask(2)
	if n := up.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// A connection that the server closes is opened anew; one that it always
// closes is a failure, not a hang.
func TestStreamEnds(t *testing.T) {
	up := newPipelined(t, 1)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, "nameserver ["+strings.Replace(up.listener.Addr().String(), ":", "]:", 1), "options use-vc")}})
	ask := func(name string, want int) {
		t.Helper()
		if r := s.ask(t, "udp", name, dns.TypeA); r.Rcode != want {
			t.Errorf("%v", r)
		}
	}
	ask("a.example", dns.RcodeSuccess)
	up.drop.Store(true)
	ask("b.example", dns.RcodeServerFailure)
	up.drop.Store(false)
	ask("c.example", dns.RcodeSuccess)
	if up.conns.Load() < 3 {
		t.Errorf("%d connections", up.conns.Load())
	}
}
