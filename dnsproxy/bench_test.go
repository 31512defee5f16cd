package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func benchServer(b *testing.B) *testServer {
	up := newFakeUpstream(b, zone(0, "hot.example. 3600 IN A 192.0.2.1"))
	s := start(b, Config{ResolvConf: writeConf(b, nameserver(up.addr))})
	hosts := make([]Host, 0, 10000)
	for i := range 10000 {
		hosts = append(hosts, Host{Name: fmt.Sprintf("svc-%d.mesh.example", i), VIP: true,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{240, 240, byte(i >> 8), byte(i)})}})
	}
	s.Swap(NewTable(hosts, testSearch, 0))
	s.ask(b, "udp", "hot.example", dns.TypeA)
	return s
}

func packed(b *testing.B, name string) []byte {
	msg, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	return msg
}

var benchNames = map[string]string{
	"table":  "svc-4711.mesh.example.",
	"search": "svc-4711.mesh.example.default.svc.cluster.local.",
	"cache":  "hot.example.",
}

// BenchmarkRespond is a hit from the query's bytes to the reply's.
func BenchmarkRespond(b *testing.B) {
	s := benchServer(b)
	for kind, name := range benchNames {
		b.Run(kind, func(b *testing.B) {
			msg, out, q := packed(b, name), make([]byte, 0, maxQuery), new(query)
			b.ReportAllocs()
			for b.Loop() {
				if _, done := s.respond(q, msg, 0, out); !done {
					b.Fatal("no hit")
				}
			}
		})
	}
}

// BenchmarkUDP is a hit through the socket, client included; cpu-µs/op is the
// user and system time of both.
func BenchmarkUDP(b *testing.B) {
	s := benchServer(b)
	for kind, name := range benchNames {
		b.Run(kind, func(b *testing.B) {
			conn, err := net.Dial("udp", s.addr)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			msg, in := packed(b, name), make([]byte, maxQuery)
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				conn.Write(msg)
				if _, err := conn.Read(in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkNewTable(b *testing.B) {
	hosts := benchServer(b).Table().Hosts()
	b.ReportAllocs()
	for b.Loop() {
		NewTable(hosts, testSearch, 0)
	}
}
