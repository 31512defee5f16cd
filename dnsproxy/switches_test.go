package dnsproxy

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// How long old answers are given is the operator's, and short for the cluster's names.
func TestStaleTime(t *testing.T) {
	for name, tc := range map[string]struct {
		stale                  time.Duration
		outside, inside, other time.Duration // the longest
	}{
		"default": {0, staleFor, clusterStaleFor, staleFor},
		"short":   {10 * time.Second, 10 * time.Second, 10 * time.Second, 10 * time.Second},
		"off":     {-1, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			now := dnstest.NewClock()
			up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
				return dnstest.Zone(0, dnstest.NameIn(r)+" 10 IN A 192.0.2.1")(r, tcp)
			})
			s := start(t, Config{
				Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: shortTimeout},
				Cache:    cache.Config{Stale: tc.stale, ClusterDomain: "Cluster.Local."},
				Now:      now.Now,
			})
			names := map[string]time.Duration{"a.example": tc.outside, "a.b.svc.cluster.local": tc.inside, "notcluster.local": tc.other}
			for name := range names {
				s.ask(t, "udp", name, dns.TypeA)
			}
			up.Set(dnstest.Silence)
			for _, at := range []time.Duration{5 * time.Second, clusterStaleFor - time.Second, staleFor - time.Second, staleFor} {
				now.Add(10*time.Second + at)
				for name, longest := range names {
					want := dns.RcodeServerFailure
					if at < longest {
						want = dns.RcodeSuccess
					}
					if r := s.ask(t, "udp", name, dns.TypeA); r.Rcode != want {
						t.Errorf("%s, %v after its end: %s, want %s", name, at, dns.RcodeToString[r.Rcode], dns.RcodeToString[want])
					}
				}
				now.Add(-10*time.Second - at)
			}
		})
	}
}

func TestCacheOff(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Cache: cache.Config{Off: true}})
	for i := range 3 {
		s.ask(t, "udp", "x.example", dns.TypeA)
		if n := up.UDP.Load(); n != int64(i+1) || s.Stats().Cache.Entries != 0 {
			t.Errorf("%d questions for %d, %d kept", n, i+1, s.Stats().Cache.Entries)
		}
	}
	up.Set(dnstest.Zone(dns.RcodeServerFailure, ""))
	for range 2 {
		s.ask(t, "udp", "bad.example", dns.TypeA)
	}
	if n := up.UDP.Load(); n != 5 {
		t.Errorf("%d questions for 5: a failure is kept", n)
	}
}

func TestPrefetchOff(t *testing.T) {
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Cache: cache.Config{NoPrefetch: true}, Now: now.Now})
	s.ask(t, "udp", "x.example", dns.TypeA)
	now.Add(59 * time.Second)
	for range 2 * prefetchHits {
		s.ask(t, "udp", "x.example", dns.TypeA)
	}
	if st := s.Stats(); st.Cache.Prefetches != 0 || up.UDP.Load() != 1 {
		t.Errorf("%d prefetches, %d questions", st.Cache.Prefetches, up.UDP.Load())
	}
}

func TestFlush(t *testing.T) {
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		if strings.HasPrefix(dnstest.NameIn(r), "bad") {
			return dnstest.Zone(dns.RcodeServerFailure, "")(r, tcp)
		}
		return dnstest.Zone(0, dnstest.NameIn(r)+" 60 IN A 192.0.2.1")(r, tcp)
	})
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	fill := func() {
		for _, name := range []string{"a.example", "b.example", "bad.example"} {
			s.ask(t, "udp", name, dns.TypeA)
		}
	}
	fill()
	if n := s.Cache.Flush(func(name string) bool { return name != "a.example." }); n != 2 {
		t.Errorf("%d flushed, want 2", n)
	}
	if list := s.Cache.List(); len(list) != 1 || list[0].Name != "a.example." {
		t.Errorf("left: %+v", list)
	}
	fill()
	if n := s.Cache.Flush(nil); n != 3 || s.Stats().Cache.Entries != 0 || s.Stats().Cache.Bytes != 0 {
		t.Errorf("%d flushed, want 3; %+v", n, s.Stats().Cache)
	}
}
