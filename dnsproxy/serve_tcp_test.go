package dnsproxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

func dialTCP(t *testing.T, s *testServer) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func wireQuery(t testing.TB, id uint16, name string) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.Id = id
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// 300 queries at once in one write, half of them forwarded, and then the
// client's FIN: every one is answered.
func TestTCPPipelining(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "---\n"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(testHosts))
	c := dialTCP(t, s)
	const queries = 300
	var all bytes.Buffer
	for id := range uint16(queries) {
		name := "aliyun.com."
		if id%2 == 1 {
			name = fmt.Sprintf("n%d.example.", id)
		}
		dnstest.WriteFramed(&all, wireQuery(t, id, name))
	}
	go func() {
		c.Write(all.Bytes())
		c.CloseWrite()
	}()
	seen := map[uint16]bool{}
	for range queries {
		msg, err := dnstest.ReadFramed(c)
		if err != nil {
			t.Fatalf("after %d replies: %v", len(seen), err)
		}
		var r dns.Msg
		if err := r.Unpack(msg); err != nil || r.Rcode != dns.RcodeSuccess {
			t.Fatalf("%v: %v", err, r)
		}
		seen[r.Id] = true
	}
	if len(seen) != queries {
		t.Errorf("%d different replies", len(seen))
	}
	if _, err := dnstest.ReadFramed(c); err != io.EOF {
		t.Errorf("want the end of the connection, got %v", err)
	}
}

// What no client of good will sends ends the connection, or gets an answer.
func TestTCPBadMessages(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	s.Swap(table.New(testHosts))
	for name, tc := range map[string]struct {
		sent  string
		reply bool
	}{
		"too long":     {"\xff\xff", false},
		"cut in half":  {"\x00\x40abc", false}, // ended by tcpMessage
		"no question":  {"\x00\x0c\x12\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", true},
		"short header": {"\x00\x00", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialTCP(t, s)
			c.Write([]byte(tc.sent))
			if name == "short header" { // silence, and the connection goes on
				dnstest.WriteFramed(c, wireQuery(t, 1, "aliyun.com."))
				tc.reply = true
			}
			_, err := dnstest.ReadFramed(c)
			if (err == nil) != tc.reply {
				t.Errorf("got %v", err)
			}
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection stays open")
			}
		})
	}
}

// One connection more than there may be closes the one that is idle longest.
func TestTCPConnectionBound(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	s.Swap(table.New(testHosts))
	ask := func(c net.Conn) error {
		if err := dnstest.WriteFramed(c, wireQuery(t, 1, "aliyun.com.")); err != nil {
			return err
		}
		_, err := dnstest.ReadFramed(c)
		return err
	}
	var open []net.Conn
	for i := range maxConns {
		c := dialTCP(t, s)
		if err := ask(c); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		open = append(open, c)
	}
	if err := ask(open[0]); err != nil { // now the second one is idle longest
		t.Fatal(err)
	}
	if err := ask(dialTCP(t, s)); err != nil {
		t.Fatalf("one more connection: %v", err)
	}
	if _, err := dnstest.ReadFramed(open[1]); err == nil {
		t.Error("the idle connection is still open")
	}
	if err := ask(open[0]); err != nil {
		t.Errorf("a connection in use was closed: %v", err)
	}
	if st := s.Stats(); st.TCPOpen > maxConns || st.TCPCut != 1 {
		t.Errorf("open %d, cut %d", st.TCPOpen, st.TCPCut)
	}
}

// A connection that spoke a moment ago is not closed for another, which waits until one
// ends or has been silent: what it asks meanwhile is answered then.
func TestTCPBusyConnectionsStay(t *testing.T) {
	now := dnstest.NewClock()
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}, Now: now.Now})
	s.Swap(table.New(testHosts))
	query := func(c net.Conn) {
		if err := dnstest.WriteFramed(c, wireQuery(t, 1, "aliyun.com.")); err != nil {
			t.Fatal(err)
		}
	}
	answered := func(what string, c net.Conn) {
		t.Helper()
		if _, err := dnstest.ReadFramed(c); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var open []net.Conn
	for range maxConns {
		open = append(open, dialTCP(t, s))
	}
	var more []net.Conn
	for range 3 { // one is accepted and waits, the others wait in the kernel
		c := dialTCP(t, s)
		query(c)
		more = append(more, c)
	}
	for range 2 {
		for i, c := range open {
			query(c)
			answered(fmt.Sprint("busy connection ", i), c)
		}
	}
	if st := s.Stats(); st.TCPCut != 0 || st.TCPOpen != maxConns {
		t.Fatalf("cut %d, open %d", st.TCPCut, st.TCPOpen)
	}
	open[0].Close()
	answered("the first to wait", more[0])
	now.Add(connQuiet)
	answered("the second", more[1])
	answered("the third", more[2])
	if st := s.Stats(); st.TCPCut != 2 || st.TCPOpen != maxConns {
		t.Errorf("cut %d, open %d", st.TCPCut, st.TCPOpen)
	}
}

// Who was accepted and waits is served when the Serving lets go of the sockets.
func TestTCPWaiterIsServedOnRelease(t *testing.T) {
	udp, tcp := listen(t)
	addr := tcp[0].Addr().String()
	s := newServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}, Now: dnstest.NewClock().Now})
	s.Swap(table.New(testHosts))
	v := s.Start(udp, tcp)
	defer closeNow(t, v)
	for range maxConns {
		dialTCP(t, &testServer{s, addr})
	}
	dnstest.WaitFor(t, "a full house", func() bool { return s.Stats().TCPOpen == maxConns })
	c := dialTCP(t, &testServer{s, addr})
	if err := dnstest.WriteFramed(c, wireQuery(t, 1, "aliyun.com.")); err != nil {
		t.Fatal(err)
	}
	dnstest.WaitFor(t, "one who waits", func() bool { s.conns.mu.Lock(); defer s.conns.mu.Unlock(); return s.conns.freed != nil })
	v.Release()
	if _, err := dnstest.ReadFramed(c); err != nil {
		t.Error(err)
	}
}

// A connection is not silent whose query is in the kernel.
func TestTCPUnreadQueryCounts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	now := dnstest.NewClock().Now()
	c := &tcpConn{Conn: conn, active: now}
	set := connSet{open: map[*tcpConn]struct{}{c: {}}}
	if set.quietest(now.Add(connQuiet)) != c || set.quietest(now) != nil {
		t.Error("silence is not told from speech")
	}
	client.Write([]byte{0})
	dnstest.WaitFor(t, "the query", func() bool { return unread(conn) })
	if set.quietest(now.Add(connQuiet)) != nil {
		t.Error("a connection with a query is taken for silent")
	}
}

// A hit over TCP costs no allocation once the connection is there, whether
// queries come alone or together.
func TestHitsOverTCPAllocateNothing(t *testing.T) {
	s := hotServer(t)
	c := dialTCP(t, s)
	for kind, name := range hotNames {
		for _, queries := range []int{1, 20} {
			var all bytes.Buffer
			for range queries {
				dnstest.WriteFramed(&all, wireQuery(t, 1, name))
			}
			in := make([]byte, wire.MaxMessage)
			ask := func() {
				if _, err := c.Write(all.Bytes()); err != nil {
					t.Fatal(err)
				}
				for range queries {
					if _, err := io.ReadFull(c, in[:2]); err != nil {
						t.Fatal(err)
					}
					n := int(in[0])<<8 | int(in[1])
					if _, err := io.ReadFull(c, in[:n]); err != nil || wire.RcodeOf(in[:n]) != 0 || in[7] == 0 {
						t.Fatalf("%s: reply %x, %v", kind, in[:n], err)
					}
				}
			}
			ask() // buffers grow once
			if allocs := testing.AllocsPerRun(100, ask); allocs != 0 {
				t.Errorf("%s: %v allocations for %d queries", kind, allocs, queries)
			}
		}
	}
}

// Clients that hold their connection without using it are cut: one that sends
// its query a byte at a time, and one that takes no replies. Meanwhile others
// are served although the slow ones fill every place.
func TestTCPSlowClientsAreCut(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	s.Swap(table.New(testHosts))
	query := new(bytes.Buffer)
	dnstest.WriteFramed(query, wireQuery(t, 1, "aliyun.com."))
	drips := func(c *net.TCPConn) error { // until the server ends it
		tick := time.NewTicker(tcpMessage / 8)
		defer tick.Stop()
		for at := 0; ; at++ {
			if _, err := c.Write(query.Bytes()[at:][:1]); err != nil {
				return err
			}
			if at == query.Len()-2 {
				return fmt.Errorf("the query took %d parts, and is still waited for", at)
			}
			<-tick.C
		}
	}
	takesNothing := func(c *net.TCPConn) error {
		c.SetReadBuffer(maxGathered) // or the kernel would take megabytes for it
		many := bytes.Repeat(query.Bytes(), 500)
		for {
			if _, err := c.Write(many); err != nil {
				return err
			}
		}
	}
	var conns []*net.TCPConn
	for range maxConns {
		conns = append(conns, dialTCP(t, s))
	}
	dnstest.WaitFor(t, "the slow ones", func() bool { return s.Stats().TCPOpen == maxConns })
	results := make(chan error, maxConns)
	for i, c := range conns {
		client := drips
		if i%8 == 0 {
			client = takesNothing
		}
		go func() { results <- client(c) }()
	}
	if err := askOnce("tcp", s.addr, "aliyun.com."); err != nil {
		t.Errorf("another client: %v", err)
	}
	for range maxConns {
		err := <-results
		if ne, ok := err.(net.Error); !ok || ne.Timeout() {
			t.Errorf("a slow client was not cut: %v", err)
		}
	}
	dnstest.WaitFor(t, "their end", func() bool { return s.Stats().TCPOpen == 0 })
}

// What a client does not read takes a bounded part of the kernel's memory.
func TestTCPUnreadIsBounded(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	dialTCP(t, s)
	dnstest.WaitFor(t, "the connection", func() bool { return s.Stats().TCPOpen == 1 })
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	for c := range s.conns.open {
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			size, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
			if err != nil || size > 2*tcpUnread { // the kernel doubles it, socket(7)
				t.Errorf("%d bytes, want %d at most: %v", size, 2*tcpUnread, err)
			}
		})
	}
}

// The replies to what came together go together, and nothing that is gathered
// waits for a query that never comes.
func TestTCPGathersReplies(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	s.Swap(table.New(testHosts))
	c := dialTCP(t, s)
	var all bytes.Buffer
	const queries = 3
	for id := range uint16(queries) {
		dnstest.WriteFramed(&all, wireQuery(t, id, "aliyun.com."))
	}
	all.WriteByte(0) // the beginning of another one
	if _, err := c.Write(all.Bytes()); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(tcpMessage / 2)) // before that one is given up
	for id := range uint16(queries) {
		msg, err := dnstest.ReadFramed(c)
		if err != nil || msg[1] != byte(id) {
			t.Errorf("reply %d: %x, %v", id, msg, err)
		}
	}
}
