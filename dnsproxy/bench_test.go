package dnsproxy

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
)

func packed(b *testing.B, name string) []byte {
	msg, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	return msg
}

// BenchmarkRespond is a hit from the query's bytes to the reply's.
func BenchmarkRespond(b *testing.B) {
	s := hotServer(b)
	c := chainOf(s.Server)
	for kind, name := range hotNames {
		b.Run(kind, func(b *testing.B) {
			msg, out, q := packed(b, name), make([]byte, 0, maxQuery), new(wire.Query)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, done := c.respond(q, msg, 0, out); !done {
					b.Fatal("no hit")
				}
			}
		})
	}
}

// BenchmarkUDP is a hit through the socket, client included; cpu-µs/op is the
// user and system time of both.
func BenchmarkUDP(b *testing.B) {
	s := hotServer(b)
	for kind, name := range hotNames {
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
	hosts := hotServer(b).Table().Hosts()
	b.ReportAllocs()
	for b.Loop() {
		table.New(hosts)
	}
}
