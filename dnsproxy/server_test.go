package dnsproxy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// testServer is a running server on loopback.
type testServer struct {
	*Server
	addr string
}

// chainOf is the way of a query that no socket brought.
func chainOf(s *Server) *chain {
	c := &chain{server: s, first: s.tables}
	c.flights.Transport.Open(context.Background(), true)
	return c
}

// start runs a server until the test ends, and sees that nothing of it is left.
func start(t testing.TB, c Config) *testServer {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	udp, tcp := listen(t)
	c.Upstream.Own = append(c.Upstream.Own, tcp[0].Addr().(*net.TCPAddr).AddrPort())
	s := newServer(t, c)
	v := s.Start(udp, tcp)
	t.Cleanup(func() {
		closeNow(t, v)
		goleak.VerifyNone(t, ignore)
	})
	return &testServer{s, tcp[0].Addr().String()}
}

func listen(t testing.TB) ([]*net.UDPConn, []*net.TCPListener) {
	t.Helper()
	udp, tcp, err := Listen([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	return udp, tcp
}

func newServer(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Domain == "" {
		c.Domain = dnstest.Domain
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// closeNow waits for nobody.
func closeNow(t testing.TB, v *Serving) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	v.Close(ctx)
	select {
	case err := <-v.Failed():
		t.Errorf("failed: %v", err)
	default:
	}
}

// ask sends one query and returns the reply.
func (s *testServer) ask(t testing.TB, network, name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	for _, f := range change {
		f(m)
	}
	// The buffer is the kernel's: what the server sends must fit what the
	// query said, which the caller checks.
	c := &dns.Client{Net: network, UDPSize: 65535, Timeout: 20 * time.Second}
	conn, err := c.Dial(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reply, _, err := c.ExchangeWithConn(m, conn)
	if err != nil {
		t.Fatalf("ask %s %s %s: %v", network, name, dns.TypeToString[qtype], err)
	}
	return reply
}

var testHosts = []table.Host{
	{Name: "aliyun.com", Addrs: dnstest.IPs("240.240.1.2"), VIP: true},
	{Name: "dual.example", Addrs: dnstest.IPs("10.0.0.1", "fd00::1")},
	{Name: "v6.example", Addrs: dnstest.IPs("fd00::6")},
	{Name: "*.wild.example", Addrs: dnstest.IPs("10.0.1.1")},
	{Name: "*.deep.wild.example", Addrs: dnstest.IPs("10.0.1.2")},
	{Name: "own.wild.example", Addrs: dnstest.IPs("10.0.1.3")},
}

func TestServes(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	s.Swap(table.New(testHosts))
	for _, network := range []string{"udp", "tcp"} {
		r := s.ask(t, network, "AliYun.com", dns.TypeA)
		if r.Rcode != dns.RcodeSuccess || !r.Authoritative || !r.RecursionAvailable || len(r.Answer) != 1 {
			t.Fatalf("%s: unexpected reply:\n%v", network, r)
		}
		if got, want := r.Answer[0].String(), "AliYun.com.\t30\tIN\tA\t240.240.1.2"; got != want {
			t.Errorf("%s: got %q, want %q", network, got, want)
		}
	}
	st := s.Stats()
	if st.Requests != 2 || st.UDP != 1 || st.TCP != 1 || st.BySource["table"] != 2 || st.ByType["A"] != 2 || st.ByRcode["NOERROR"] != 2 {
		t.Errorf("counters: %+v", st)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"negative entries": {Cache: cache.Config{Entries: -1}},
		"negative bytes":   {Cache: cache.Config{Bytes: -1}},
		"negative timeout": {Upstream: upstream.Config{Timeout: -1}},
		"negative hold":    {HoldBeforeTable: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Where the UDP port is taken, the TCP half does not stay bound.
func TestListenTakenPort(t *testing.T) {
	const tries = 20 // others here take ports, too: of either kind, and at any time
	for range tries {
		taken, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		addr := taken.LocalAddr().(*net.UDPAddr).AddrPort()
		_, _, err = Listen([]netip.AddrPort{addr})
		if err == nil {
			t.Fatal("bound a taken port")
		}
		tcp, free := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		if free != nil {
			continue
		}
		tcp.Close()
		if strings.Contains(err.Error(), "/udp") { // it had the TCP half
			return
		}
	}
	t.Fatal("Listen leaves its TCP socket open")
}
