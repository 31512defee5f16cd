package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// A name in use is asked for again before its TTL ends, in the background and
// once; one that is not is left to expire.
func TestPrefetch(t *testing.T) {
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		return dnstest.Zone(0, dnstest.NameIn(r)+" 100 IN A 192.0.2.1")(r, tcp)
	})
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Now: now.Now})
	for range prefetchHits + 1 {
		s.ask(t, "udp", "hot.example", dns.TypeA)
	}
	s.ask(t, "udp", "cold.example", dns.TypeA)
	now.Add(91 * time.Second)
	for range 5 {
		if r := s.ask(t, "udp", "hot.example", dns.TypeA); len(r.Answer) != 1 {
			t.Errorf("%v", r)
		}
	}
	s.ask(t, "udp", "cold.example", dns.TypeA)
	dnstest.WaitFor(t, "the new answer", func() bool { return s.ask(t, "udp", "hot.example", dns.TypeA).Answer[0].Header().Ttl > 90 })
	if n := up.UDP.Load(); n != 3 || s.Stats().Cache.Prefetches != 1 {
		t.Errorf("%d queries reached the upstream, want 3; %+v", n, s.Stats().Cache)
	}
	now.Add(20 * time.Second)
	s.ask(t, "udp", "hot.example", dns.TypeA)
	if n := up.UDP.Load(); n != 3 {
		t.Errorf("%d queries reached the upstream after the first TTL, want 3", n)
	}
}

// While the upstream is dead, what was once answered is answered, with RFC
// 8767's TTL; the rest fails. Once it is back its answers count again.
func TestServeStale(t *testing.T) {
	now := dnstest.NewClock()
	alive := func(r []byte, tcp bool) []byte {
		if dnstest.NameIn(r) == "no.example." {
			return dnstest.Zone(dns.RcodeNameError, "---\nexample. 60 IN SOA a. b. 1 2 3 4 60")(r, tcp)
		}
		return dnstest.Zone(0, dnstest.NameIn(r)+" 60 IN A 192.0.2.1")(r, tcp)
	}
	up := dnstest.NewUpstream(t, alive)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: shortTimeout}, Now: now.Now})
	s.ask(t, "udp", "yes.example", dns.TypeA)
	s.ask(t, "udp", "no.example", dns.TypeA)
	up.Set(dnstest.Silence)
	now.Add(61 * time.Second)
	for _, e := range s.Cache.List() {
		if !e.Stale || e.Server != up.Addr.String() || e.Type != "A" || e.RemainingSeconds != (staleFor-time.Second).Seconds() {
			t.Errorf("listed: %+v", e)
		}
	}
	for range 3 {
		yes, no := s.ask(t, "udp", "yes.example", dns.TypeA), s.ask(t, "udp", "no.example", dns.TypeA)
		if len(yes.Answer) != 1 || yes.Answer[0].Header().Ttl != staleSeconds {
			t.Errorf("known name: %v", yes)
		}
		if no.Rcode != dns.RcodeNameError || len(no.Ns) != 1 || no.Ns[0].Header().Ttl != staleSeconds {
			t.Errorf("known to be none: %v", no)
		}
	}
	if r := s.ask(t, "udp", "other.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("unknown name: %v", r)
	}
	if st := s.Stats(); st.BySource["stale"] != 6 || st.Upstreams[0].State != "failing" {
		t.Errorf("%v %+v", st.BySource, st.Upstreams)
	}

	up.Set(func(r []byte, tcp bool) []byte {
		return dnstest.Zone(0, dnstest.NameIn(r)+" 60 IN A 192.0.2.2")(r, tcp)
	})
	now.Add(recheckAfter)
	dnstest.WaitFor(t, "the new answer", func() bool {
		r := s.ask(t, "udp", "yes.example", dns.TypeA)
		return r.Answer[0].(*dns.A).A.String() == "192.0.2.2" && r.Answer[0].Header().Ttl == 60
	})
	for _, name := range []string{"no.example", "other.example"} {
		if r := s.ask(t, "udp", name, dns.TypeA); len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.2" {
			t.Errorf("%s after the end: %v", name, r)
		}
	}
}

func TestStaleHasAnEnd(t *testing.T) {
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: shortTimeout}, Now: now.Now})
	s.ask(t, "udp", "x.example", dns.TypeA)
	up.Set(dnstest.Zone(dns.RcodeServerFailure, ""))
	now.Add(staleFor)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("just before the end: %v", r)
	}
	now.Add(61 * time.Second)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("after the end: %v", r)
	}
}

// A fresh answer that may not be kept still ends the old one.
func TestStaleGoesWithFresh(t *testing.T) {
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: shortTimeout}, Now: now.Now})
	s.ask(t, "udp", "x.example", dns.TypeA)
	now.Add(61 * time.Second)
	up.Set(dnstest.Zone(0, "x.example. 0 IN A 192.0.2.7"))
	s.ask(t, "udp", "x.example", dns.TypeA)
	up.Set(dnstest.Silence)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("the answer before the last: %v", r)
	}
}

// Failures are kept for a second, then two, then four, then five.
func TestFailuresAreKept(t *testing.T) {
	for name, reply := range map[string]func([]byte, bool) []byte{
		"servfail": dnstest.Zone(dns.RcodeServerFailure, ""), "refused": dnstest.Zone(dns.RcodeRefused, ""),
	} {
		t.Run(name, func(t *testing.T) {
			now := dnstest.NewClock()
			up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
			s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Now: now.Now})
			s.ask(t, "udp", "x.example", dns.TypeAAAA) // it speaks EDNS, and means what follows
			before := up.UDP.Load()
			up.Set(reply)
			for i, keep := range []int{1, 2, 4, 5, 5} {
				for range keep {
					if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode == dns.RcodeSuccess {
						t.Errorf("%v", r)
					}
					if n := up.UDP.Load() - before; n != int64(i+1) {
						t.Fatalf("failure %d: %d queries reached the upstream", i+1, n)
					}
					now.Add(time.Second)
				}
			}
			if n := s.Stats().Cache.Failures; n != 12 {
				t.Errorf("%d answers from kept failures, want 12", n)
			}
			up.Set(dnstest.Zone(0, dnstest.GoodA))
			if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
				t.Errorf("%v", r)
			}
			if list := s.Cache.List(); len(list) != 1 || list[0].Failure {
				t.Errorf("kept after the success: %+v", list)
			}
		})
	}
}

// What is not in the cache is answered soon after the upstream is back, for
// clients that go on asking, though failures were kept.
func TestOutageEnds(t *testing.T) {
	alive := func(r []byte, tcp bool) []byte { return dnstest.Zone(0, dnstest.NameIn(r)+" 1 IN A 192.0.2.1")(r, tcp) }
	up := dnstest.NewUpstream(t, alive)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: shortTimeout}})
	s.ask(t, "udp", "known.example", dns.TypeA)
	up.Set(dnstest.Silence)
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		r := s.ask(t, "udp", "known.example", dns.TypeA)
		if r.Rcode != dns.RcodeSuccess {
			t.Fatalf("known name in the outage: %v", r)
		}
		if r := s.ask(t, "udp", "new.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
			t.Fatalf("new name in the outage: %v", r)
		}
	}
	up.Set(alive)
	began := time.Now()
	dnstest.WaitFor(t, "the first success", func() bool { return s.ask(t, "udp", "new.example", dns.TypeA).Rcode == dns.RcodeSuccess })
	t.Logf("first success after %s", time.Since(began))
}

// An application with ndots:5 and the three search domains of a pod looks 100
// outside names up in a loop: the cluster's DNS servers hardly notice.
func TestClusterLoad(t *testing.T) {
	const names, passes, mostPerLookup = 100, 500, 0.05
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		name := dnstest.NameIn(r)
		if dns.IsSubDomain("cluster.local.", name) {
			return dnstest.Zone(dns.RcodeNameError, "---\ncluster.local. 30 IN SOA ns. root. 1 2 3 4 30")(r, tcp)
		}
		if binary.BigEndian.Uint16(r[wire.HeaderLen+len(name)+1:]) == dns.TypeAAAA {
			return dnstest.Zone(0, "---\nexample.com. 30 IN SOA ns. root. 1 2 3 4 30")(r, tcp)
		}
		return dnstest.Zone(0, name+" 30 IN A 192.0.2.1")(r, tcp)
	})
	s := newServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Now: now.Now})
	s.Swap(table.New([]table.Host{{Name: "mesh.example", Addrs: dnstest.IPs("240.240.0.1")}}))
	look := lookups(t, s)
	for range passes {
		for i := range names {
			look(fmt.Sprintf("host-%d.example.com", i))
			look("mesh.example")
			now.Add(time.Millisecond) // 1,000 lookups a second: a busy application
		}
	}
	queries := up.UDP.Load() + up.TCP.Load()
	per := float64(queries) / (names * passes)
	t.Logf("%d queries reached the upstream, %.3f for each lookup", queries, per)
	if per > mostPerLookup || queries == 0 {
		t.Errorf("want %.2f at most", mostPerLookup)
	}
	if u := s.Stats().Upstreams; len(u) != 1 || u[0].Server != netip.AddrPort(up.Addr) {
		t.Errorf("%+v", u)
	}
}

// lookups returns a resolver as glibc is with ndots:5: it asks for A and AAAA
// with each search domain, until a name exists, and at last as it is.
func lookups(t *testing.T, s *Server) func(name string) {
	q, out := new(wire.Query), make([]byte, 0, maxQuery)
	c := chainOf(s)
	t.Cleanup(c.flights.Transport.End)
	domains := append([]string{""}, dnstest.Search...)
	packed := map[string][][2][]byte{}
	return func(name string) {
		if packed[name] == nil {
			for i := range domains {
				full := strings.TrimSuffix(name+"."+domains[(i+1)%len(domains)], ".")
				packed[name] = append(packed[name], [2][]byte{dnstest.Question(t, full, dns.TypeA), dnstest.Question(t, full, dns.TypeAAAA)})
			}
		}
		for _, both := range packed[name] {
			exists := false
			for _, msg := range both {
				reply, f, done := c.respond(q, msg, 0, out)
				if !done {
					reply = c.wait(t.Context(), q, f)
				}
				switch wire.RcodeOf(reply) {
				case wire.RcodeSuccess:
					exists = true
				case wire.RcodeServFail:
					t.Fatalf("%s: SERVFAIL", name)
				}
			}
			if exists {
				return
			}
		}
		t.Fatalf("%s: no such name", name)
	}
}
