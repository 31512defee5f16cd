package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// serveByHand returns a Serving whose only socket the test reads itself.
func serveByHand(t testing.TB, s *Server, addr string) (*Serving, *udpBatch) {
	t.Helper()
	udp, tcp, err := Listen([]netip.AddrPort{netip.MustParseAddrPort(addr)})
	if err != nil {
		t.Fatal(err)
	}
	tcp[0].Close()
	v := s.Start(nil, nil)
	t.Cleanup(func() {
		closeNow(t, v)
		udp[0].Close()
	})
	b, err := newUDPBatch(udp[0])
	if err != nil {
		t.Fatal(err)
	}
	return v, b
}

// hotServer answers svc-4711.mesh.example from its table and hot.example from
// its cache.
func hotServer(t testing.TB) *testServer {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "hot.example. 3600 IN A 192.0.2.1"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	hosts := append(manyHosts(10_000), table.Host{Name: "many.mesh.example", Addrs: dnstest.IPs("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1")},
		table.Host{Name: "*.wild.example", Addrs: dnstest.IPs("10.0.1.1")})
	s.Swap(table.New(hosts))
	s.ask(t, "udp", "hot.example", dns.TypeA)
	return s
}

// manyHosts returns n hosts svc-<i>.mesh.example, each with a VIP.
func manyHosts(n int) []table.Host {
	hosts := make([]table.Host, n)
	for i := range hosts {
		hosts[i] = table.Host{Name: fmt.Sprintf("svc-%d.mesh.example", i), VIP: true,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{240, byte(i >> 16), byte(i >> 8), byte(i)})}}
	}
	return hosts
}

// hotNames are hits, by what answers them.
var hotNames = map[string]string{
	"table":           "svc-4711.mesh.example.",
	"addresses":       "many.mesh.example.",
	"search domain":   "svc-4711.mesh.example.default.svc.cluster.local.",
	"wildcard":        "a.b.wild.example.",
	"wildcard search": "a.b.wild.example.default.svc.cluster.local.",
	"cache":           "hot.example.",
}

// A hit costs no allocation from the socket's bytes to the socket's bytes, with
// EDNS0 and without, in batches of one and of many.
func TestHitsOverUDPAllocateNothing(t *testing.T) {
	s := hotServer(t)
	v, b := serveByHand(t, s.Server, "127.0.0.1:0")
	client := open(t, "udp", b.conn.LocalAddr().String())
	q, in := new(wire.Query), make([]byte, wire.MaxMessage)
	for kind, name := range hotNames {
		for _, change := range []func(*dns.Msg){func(*dns.Msg) {}, dnstest.EDNS(1232, true)} {
			m := new(dns.Msg).SetQuestion(name, dns.TypeA)
			change(m)
			msg, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if kind == "cache" {
				s.ask(t, "udp", name, dns.TypeA, change)
			}
			allocs := testing.AllocsPerRun(100, func() {
				const queries = 5
				for range queries {
					if _, err := client.Write(msg); err != nil {
						t.Fatal(err)
					}
				}
				for taken := 0; taken < queries; {
					n, err := v.serveBatch(b, q)
					if err != nil {
						t.Fatal(err)
					}
					taken += n
				}
				for range queries {
					if n, err := client.Read(in); err != nil || wire.RcodeOf(in[:n]) != 0 || in[7] == 0 {
						t.Fatalf("%s: reply %x, %v", kind, in[:n], err)
					}
				}
			})
			if allocs != 0 {
				t.Errorf("%s: %v allocations for 5 queries", kind, allocs)
			}
		}
	}
	if st := s.Stats(); st.Inflight != 0 || st.BySource["failure"] != 0 {
		t.Errorf("not all were hits: %+v", st)
	}
}

// A batch has hits, queries that wait, refusals and what gets no answer, from
// different clients: each client gets its own reply.
func TestBatchOfEverything(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "slow.example. 0 IN A 192.0.2.1"))
	s := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	v, b := serveByHand(t, s, "127.0.0.1:0")
	var clients []net.Conn
	for i := range uint16(batchSize) {
		conn := open(t, "udp", b.conn.LocalAddr().String())
		clients = append(clients, conn)
		msg := wireQuery(t, i, []string{"aliyun.com.", "slow.example.", "dual.example."}[i%3])
		switch i {
		case 5:
			msg = msg[:11] // no answer
		case 6:
			msg[2] |= 5 << 3 // UPDATE
		}
		if _, err := conn.Write(msg); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := v.serveBatch(b, new(wire.Query)); n != batchSize || err != nil {
		t.Fatalf("took %d of %d queries, %v", n, batchSize, err)
	}
	for i, conn := range clients {
		if i == 5 {
			continue
		}
		r, err := (&dns.Conn{Conn: conn}).ReadMsg()
		want := dns.RcodeSuccess
		if i == 6 {
			want = dns.RcodeNotImplemented
		}
		if err != nil || int(r.Id) != i || r.Rcode != want || want == 0 && len(r.Answer) != 1 {
			t.Errorf("client %d: %v, %v", i, r, err)
		}
	}
	clients[5].SetReadDeadline(time.Now())
	if n, err := clients[5].Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes for a message without a header", n)
	}
}

// A socket on every address answers from the one that was asked, at once and
// after a wait; the kernel would choose another one.
func TestRepliesComeFromTheAddressAsked(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "slow.example. 0 IN A 192.0.2.1"))
	s := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	for _, tc := range []struct{ bound, asked string }{
		{"0.0.0.0", "127.0.0.1"}, {"0.0.0.0", "127.0.0.53"}, {"[::]", "[::1]"}, {"[::]", "127.0.0.53"},
	} {
		t.Run(tc.bound+" "+tc.asked, func(t *testing.T) {
			udp, tcp, err := Listen([]netip.AddrPort{netip.MustParseAddrPort(tc.bound + ":0")})
			if err != nil {
				t.Fatal(err)
			}
			v := s.Start(udp, tcp)
			defer closeNow(t, v)
			port := tcp[0].Addr().(*net.TCPAddr).Port
			// Connected: what comes from elsewhere is not for it.
			conn := open(t, "udp", fmt.Sprintf("%s:%d", tc.asked, port))
			for _, name := range []string{"aliyun.com.", "slow.example."} {
				if err := exchangeOn(conn, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A reply that cannot be sent costs the others of its batch nothing.
func TestFlushGoesOnBehindAnError(t *testing.T) {
	s := tableServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	v, b := serveByHand(t, s, "127.0.0.1:0")
	var clients []net.Conn
	for range 3 {
		conn := open(t, "udp", b.conn.LocalAddr().String())
		clients = append(clients, conn)
		conn.Write(wireQuery(t, 1, "aliyun.com."))
	}
	n, err := b.receive()
	if n != 3 || err != nil {
		t.Fatal(n, err)
	}
	q := new(wire.Query)
	for i := range n {
		reply, _, _ := v.respond(q, b.query(i), 0, b.room(i))
		b.add(i, reply)
	}
	b.peers[1].Port = 0 // nobody can be sent to there
	if lost, err := b.flush(); lost != 1 || err == nil {
		t.Errorf("lost %d, %v", lost, err)
	}
	for i, conn := range clients {
		conn.SetReadDeadline(time.Now().Add(testDeadline))
		if i == 1 {
			conn.SetReadDeadline(time.Now())
		}
		if _, err := conn.Read(make([]byte, 512)); (err == nil) != (i != 1) {
			t.Errorf("client %d: %v", i, err)
		}
	}
}
