package dnsproxy

import (
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// What may be kept, for how long, and what TTL is served meanwhile.
func TestCacheTTL(t *testing.T) {
	const soa = "example. 300 IN SOA a. b. 1 2 3 4 60"
	for name, tc := range map[string]struct {
		rcode int
		text  string
		life  int // seconds; 0: never kept
	}{
		"one record":          {0, "x.example. 60 IN A 192.0.2.1", 60},
		"the least of two":    {0, "x.example. 60 IN CNAME y.example.\ny.example. 20 IN A 192.0.2.1", 20},
		"authority counts":    {0, "x.example. 60 IN A 192.0.2.1\n---\nexample. 10 IN NS ns.example.", 10},
		"ttl zero":            {0, "x.example. 0 IN A 192.0.2.1", 0},
		"top bit set":         {0, "x.example. 4294967295 IN A 192.0.2.1", 0},
		"nxdomain, minimum":   {3, "---\n" + soa, 60},
		"nxdomain, soa's ttl": {3, "---\nexample. 30 IN SOA a. b. 1 2 3 4 60", 30},
		"nxdomain, no soa":    {3, "", 0},
		"nodata":              {0, "---\n" + soa, 60},
		"nodata after cname":  {0, "x.example. 40 IN CNAME y.example.\n---\n" + soa, 40},
		"nodata, no soa":      {0, "", 0},
		"referral":            {0, "---\nexample. 300 IN NS ns.example.", 0},
		"servfail":            {2, "", 0},
		"refused":             {5, "---\n" + soa, 0},
		"a day at most":       {0, "x.example. 900000 IN A 192.0.2.1", 86400},
		"negative, 3 hours":   {3, "---\nexample. 900000 IN SOA a. b. 1 2 3 4 900000", 3 * 3600},
	} {
		t.Run(name, func(t *testing.T) {
			now := dnstest.NewClock()
			up := dnstest.NewUpstream(t, dnstest.Zone(tc.rcode, tc.text))
			s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Now: now.Now})
			least := func(m *dns.Msg) uint32 {
				ttl := ^uint32(0)
				for _, rr := range append(m.Answer, m.Ns...) {
					ttl = min(ttl, rr.Header().Ttl)
				}
				return ttl
			}
			first := s.ask(t, "udp", "x.example", dns.TypeA)
			if tc.life == 0 {
				now.Add(failureKept)
			}
			again := s.ask(t, "udp", "X.EXAMPLE", dns.TypeA)
			if tc.life == 0 {
				if n := up.UDP.Load(); n < 2 {
					t.Errorf("kept, though it must not be")
				}
				return
			}
			if n := up.UDP.Load(); n != 1 {
				t.Fatalf("%d queries reached the upstream, want 1", n)
			}
			if again.Question[0].Name != "X.EXAMPLE." || again.Authoritative || again.Rcode != first.Rcode {
				t.Errorf("cached reply: %v", again)
			}
			before := least(again)
			now.Add(time.Duration(tc.life)*time.Second - 500*time.Millisecond)
			last := s.ask(t, "udp", "x.example", dns.TypeA)
			if n := up.UDP.Load(); n != 1 {
				t.Errorf("asked again before the TTL ended")
			}
			if got, want := least(last), before-uint32(tc.life)+1; got != want {
				t.Errorf("TTL %d at the end, want %d", got, want)
			}
			now.Add(time.Second)
			s.ask(t, "udp", "x.example", dns.TypeA)
			if n := up.UDP.Load(); n != 2 {
				t.Errorf("%d queries after the TTL ended, want 2", n)
			}
		})
	}
}

func TestCacheKey(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}})
	variants := []func(*dns.Msg){
		func(*dns.Msg) {},
		dnstest.EDNS(1232, true),
		func(m *dns.Msg) { m.CheckingDisabled = true },
		func(m *dns.Msg) { m.RecursionDesired = false },
		func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY },
	}
	for i, change := range variants {
		for range 2 {
			s.ask(t, "udp", "x.example", dns.TypeA, change)
		}
		if n := up.UDP.Load(); n != int64(i+1) {
			t.Errorf("variant %d: %d queries reached the upstream, want %d", i, n, i+1)
		}
	}
}

func TestSingleFlight(t *testing.T) {
	const clients = 20
	release := make(chan struct{})
	answer := dnstest.Zone(0, dnstest.GoodA)
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}})
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			if r := s.ask(t, "udp", "x.example", dns.TypeA); len(r.Answer) != 1 {
				t.Errorf("%v", r)
			}
		})
	}
	dnstest.WaitFor(t, "all clients", func() bool { return s.Stats().Inflight == clients })
	close(release)
	all.Wait()
	if n := up.UDP.Load(); n != 1 {
		t.Errorf("%d queries reached the upstream, want 1", n)
	}
}

// A hit costs no allocation from the query's bytes to the reply's.
func TestHitsDoNotAllocate(t *testing.T) {
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		if dnstest.NameIn(r) == "none.example." {
			return dnstest.Zone(dns.RcodeNameError, "---\nexample. 60 IN SOA a. b. 1 2 3 4 60")(r, tcp)
		}
		return dnstest.Zone(0, dnstest.GoodA)(r, tcp)
	})
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(testHosts))
	s.ask(t, "udp", "x.example", dns.TypeA)
	s.ask(t, "udp", "none.example", dns.TypeA)
	c := chainOf(s.Server)
	for name, qtype := range map[string]uint16{
		"aliyun.com.": dns.TypeA, "a.wild.example.default.svc.cluster.local.": dns.TypeA, "x.example.": dns.TypeA,
		"2.1.240.240.in-addr.arpa.": dns.TypePTR, "none.example.": dns.TypeAAAA,
		"localhost.": dns.TypeA, "x.localhost.cluster.local.": dns.TypeAAAA,
	} {
		msg, err := new(dns.Msg).SetQuestion(name, qtype).Pack()
		if err != nil {
			t.Fatal(err)
		}
		q, out := new(wire.Query), make([]byte, 0, maxQuery)
		if n := testing.AllocsPerRun(100, func() {
			if _, _, done := c.respond(q, msg, 0, out); !done {
				t.Errorf("%s is no hit", name)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
