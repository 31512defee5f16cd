package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

const testDeadline = 20 * time.Second

// checkLeaks sees that no goroutine is left when the test and the clean-ups
// registered from here on are over.
func checkLeaks(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
}

// pair is one port's sockets.
type pair struct {
	udp *net.UDPConn
	tcp *net.TCPListener
}

func bind(t *testing.T) pair {
	t.Helper()
	udp, tcp := listen(t)
	t.Cleanup(func() { udp[0].Close(); tcp[0].Close() })
	return pair{udp[0], tcp[0]}
}

func (p pair) addr() string { return p.tcp.Addr().String() }

// copy returns other descriptors of the same kernel sockets, as another
// process has them after a hand-off.
func (p pair) copy(t *testing.T) ([]*net.UDPConn, []*net.TCPListener) {
	t.Helper()
	uf, err := p.udp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer uf.Close()
	conn, err := net.FilePacketConn(uf)
	if err != nil {
		t.Fatal(err)
	}
	tf, err := p.tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer tf.Close()
	l, err := net.FileListener(tf)
	if err != nil {
		t.Fatal(err)
	}
	return []*net.UDPConn{conn.(*net.UDPConn)}, []*net.TCPListener{l.(*net.TCPListener)}
}

// closeServing waits until everything is answered.
func closeServing(t *testing.T, v *Serving) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()
	v.Close(ctx)
	if ctx.Err() != nil {
		t.Error("Close had to cut")
	}
	select {
	case err := <-v.Failed():
		t.Errorf("failed: %v", err)
	default:
	}
}

func tableServer(t testing.TB, c Config) *Server {
	t.Helper()
	s := newServer(t, c)
	s.Swap(table.New(testHosts))
	return s
}

// exchangeOn asks over an open connection, whichever transport it has.
func exchangeOn(conn net.Conn, name string) error {
	conn.SetDeadline(time.Now().Add(testDeadline))
	c := dns.Conn{Conn: conn}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		return fmt.Errorf("ask for %s: %w", name, err)
	}
	r, err := c.ReadMsg()
	if err == nil && (r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1) {
		err = fmt.Errorf("%v", r)
	}
	if err != nil {
		return fmt.Errorf("answer for %s: %w", name, err)
	}
	return nil
}

func askOnce(network, addr, name string) error {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchangeOn(conn, name)
}

func open(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(testDeadline))
	return conn
}

// Queries that wait for an upstream when the sockets go are answered, new ones
// wait in the kernel, and both also where one server holds both times.
func TestReleaseAnswersWhatWasTaken(t *testing.T) {
	checkLeaks(t)
	release := make(chan struct{})
	answer := dnstest.Zone(0, dnstest.GoodA)
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	kept := bind(t)
	s := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	before := s.Start(kept.copy(t))

	udp, tcp, silent := open(t, "udp", kept.addr()), open(t, "tcp", kept.addr()), open(t, "tcp", kept.addr())
	results := make(chan error, 3)
	go func() { results <- exchangeOn(udp, "x.example.") }()
	go func() { results <- exchangeOn(tcp, "x.example.") }()
	dnstest.WaitFor(t, "both queries", func() bool { st := s.Stats(); return st.Inflight == 2 && st.TCPOpen == 2 })
	before.Release()
	go func() { results <- askOnce("udp", kept.addr(), "aliyun.com.") }()
	if err := exchangeOn(silent, "aliyun.com."); err != nil {
		t.Errorf("a connection that had sent nothing: %v", err)
	}
	after := s.Start(kept.copy(t))
	if err := <-results; err != nil {
		t.Errorf("a datagram that came between: %v", err)
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("a query that was taken: %v", err)
		}
	}
	if err := exchangeOn(tcp, "aliyun.com."); err != nil {
		t.Errorf("an established connection: %v", err)
	}
	tcp.Close()
	silent.Close()
	closeServing(t, before)
	if err := askOnce("udp", kept.addr(), "aliyun.com."); err != nil {
		t.Errorf("after the earlier one's end: %v", err)
	}
	closeServing(t, after)
}

// A connection that nobody uses ends by itself once its listener is gone.
func TestReleaseEndsIdleConnections(t *testing.T) {
	kept := bind(t)
	v := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}}).Start(kept.copy(t))
	conn := open(t, "tcp", kept.addr())
	if err := exchangeOn(conn, "aliyun.com."); err != nil {
		t.Fatal(err)
	}
	v.Release()
	if err := exchangeOn(conn, "aliyun.com."); err != nil {
		t.Errorf("right after Release: %v", err)
	}
	closeServing(t, v)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open after Close")
	}
}

// Close cuts what is not done in time: a query over UDP is told so, and one
// that another Serving waits for goes on.
func TestCloseCuts(t *testing.T) {
	checkLeaks(t)
	release := make(chan struct{})
	answer := dnstest.Zone(0, dnstest.GoodA)
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	first, second := bind(t), bind(t)
	s := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	cut, goesOn := s.Start(first.copy(t)), s.Start(second.copy(t))
	results := make(chan error, 1)
	udp, tcp := open(t, "udp", first.addr()), open(t, "tcp", first.addr())
	for _, conn := range []net.Conn{udp, tcp} {
		c := dns.Conn{Conn: conn}
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("x.example.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	dnstest.WaitFor(t, "the first queries", func() bool { return s.Stats().Inflight == 2 })
	go func() { results <- askOnce("udp", second.addr(), "x.example.") }()
	dnstest.WaitFor(t, "all queries", func() bool { return s.Stats().Inflight == 3 })

	closeNow(t, cut)
	if n := s.Stats().Inflight; n != 1 {
		t.Errorf("%d queries wait after Close, want that of the other", n)
	}
	told := dns.Conn{Conn: udp}
	if r, err := told.ReadMsg(); err != nil || r.Rcode != dns.RcodeServerFailure {
		t.Errorf("the query that was cut: %v, %v", r, err)
	}
	if _, err := io.Copy(io.Discard, tcp); errors.Is(err, os.ErrDeadlineExceeded) { // its query may be told, too
		t.Error("the connection is open after Close")
	}
	close(release)
	if err := <-results; err != nil {
		t.Errorf("the other Serving's query: %v", err)
	}
	closeServing(t, goesOn)
	closeNow(t, cut) // again: nothing happens
}

// A socket that breaks is reported once, and the others go on.
func TestFailedReportsBrokenSocket(t *testing.T) {
	checkLeaks(t)
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			udp, tcp := listen(t)
			s, broken, other := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}}), "udp", "tcp"
			if network == "tcp" {
				broken, other = "tcp", "udp"
				tcp[0].Close()
			} else {
				udp[0].Close()
			}
			v := s.Start(udp, tcp)
			select {
			case err := <-v.Failed():
				if !strings.Contains(err.Error(), "dns") || !strings.Contains(err.Error(), tcp[0].Addr().String()) {
					t.Errorf("%s: error %v", broken, err)
				}
			case <-time.After(testDeadline):
				t.Error("nobody heard of it")
			}
			if err := askOnce(other, tcp[0].Addr().String(), "aliyun.com."); err != nil {
				t.Errorf("the other socket: %v", err)
			}
			closeServing(t, v)
		})
	}
}

// Two agents hand one pair of sockets to and fro under load: no query is lost,
// from the table or forwarded, over UDP, over new and over kept connections.
func TestSwitchLosesNothing(t *testing.T) {
	checkLeaks(t)
	const switches = 50
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "x.example. 0 IN A 192.0.2.1")) // never cached
	kept := bind(t)
	c := Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}}
	servers := []*Server{tableServer(t, c), tableServer(t, c)}
	serving := servers[0].Start(kept.copy(t))

	var done atomic.Bool
	answered := make(chan struct{})
	var load, closing sync.WaitGroup
	ask := func(exchange func(name string) error) {
		load.Go(func() {
			for i := 0; !done.Load(); i++ {
				if err := exchange([]string{"aliyun.com.", "x.example."}[i%2]); err != nil {
					t.Error(err)
					return
				}
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		})
	}
	const clients = 3 // of each kind
	for range clients {
		conn := open(t, "udp", kept.addr())
		ask(func(name string) error { return exchangeOn(conn, name) })
		ask(func(name string) error { return askOnce("udp", kept.addr(), name) })
		ask(func(name string) error { return askOnce("tcp", kept.addr(), name) })
	}
	for i := range switches {
		for range 4 * clients { // each switch happens under load
			select {
			case <-answered:
			case <-time.After(testDeadline):
				t.Fatal("no answers")
			}
		}
		old := serving
		if i%2 == 0 { // nobody reads for a moment, or both do
			old.Release()
		}
		serving = servers[(i+1)%2].Start(kept.copy(t))
		closing.Go(func() { closeServing(t, old) })
	}
	done.Store(true)
	load.Wait()
	closing.Wait()
	closeServing(t, serving)
}

// The caller's own descriptors are as they were: still bound, not blocking, and
// without a deadline.
func TestReleaseLeavesCopiesAlone(t *testing.T) {
	kept := bind(t)
	v := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}}).Start(kept.copy(t))
	closeServing(t, v)
	conn := open(t, "udp", kept.addr())
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, _, err := kept.udp.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	open(t, "tcp", kept.addr())
	c, err := kept.tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
