package dnsproxy

import (
	"fmt"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkCold is a query that goes to the upstream and comes back, 100 at a
// time, without the client's socket; the upstream is in this process, too.
func BenchmarkCold(b *testing.B) {
	answer := zone(0, "cold-0000000.example. 60 IN A 192.0.2.1")
	canned := answer(question(b, "cold-0000000.example", dns.TypeA, edns(ownUDPSize, false)), false)
	up := newFakeUpstream(b, func(request []byte, _ bool) []byte {
		reply := append([]byte(nil), canned...)
		copy(reply, request[:2])
		copy(reply[headerLen:], request[headerLen:headerLen+22])
		return reply
	})
	s := newServer(b, Config{ResolvConf: writeConf(b, nameserver(up.addr))})
	own := chainOf(s)
	defer own.flights.transport.end()
	var loops sync.WaitGroup
	const concurrent = 100
	slots := make(chan struct{}, concurrent)
	b.ReportAllocs()
	before := cpu()
	for i := 0; b.Loop(); i++ {
		q := new(query)
		q.parse(question(b, fmt.Sprintf("cold-%07d.example", i), dns.TypeA), 0)
		slots <- struct{}{}
		loops.Go(func() {
			defer func() { <-slots }()
			if code := rcodeOf(own.wait(b.Context(), q)); code != rcodeSuccess {
				b.Errorf("rcode %d", code)
			}
		})
	}
	loops.Wait()
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}
