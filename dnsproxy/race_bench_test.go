package dnsproxy

import (
	"fmt"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// BenchmarkCold is a query that goes to the upstream and comes back, 100 at a
// time, without the client's socket; the upstream is in this process, too.
func BenchmarkCold(b *testing.B) {
	answer := dnstest.Zone(0, "cold-0000000.example. 60 IN A 192.0.2.1")
	canned := answer(dnstest.Question(b, "cold-0000000.example", dns.TypeA, dnstest.EDNS(wire.OwnUDPSize, false)), false)
	up := dnstest.NewUpstream(b, func(request []byte, _ bool) []byte {
		reply := append([]byte(nil), canned...)
		copy(reply, request[:2])
		copy(reply[wire.HeaderLen:], request[wire.HeaderLen:wire.HeaderLen+22])
		return reply
	})
	s := newServer(b, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(b, dnstest.Nameserver(up.Addr))}})
	own := chainOf(s)
	defer own.flights.Transport.End()
	var loops sync.WaitGroup
	const concurrent = 100
	slots := make(chan struct{}, concurrent)
	b.ReportAllocs()
	before := cpu()
	for i := 0; b.Loop(); i++ {
		q := new(wire.Query)
		q.Parse(dnstest.Question(b, fmt.Sprintf("cold-%07d.example", i), dns.TypeA), 0)
		slots <- struct{}{}
		loops.Go(func() {
			defer func() { <-slots }()
			if code := wire.RcodeOf(own.wait(b.Context(), q, found{})); code != wire.RcodeSuccess {
				b.Errorf("rcode %d", code)
			}
		})
	}
	loops.Wait()
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}
