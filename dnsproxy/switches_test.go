package dnsproxy

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
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
			now := newClock()
			up := newFakeUpstream(t, func(r []byte, tcp bool) []byte { return zone(0, nameIn(r)+" 10 IN A 192.0.2.1")(r, tcp) })
			s := start(t, Config{
				ResolvConf: writeConf(t, nameserver(up.addr)), ForwardTimeout: shortTimeout, Now: now.Now,
				Stale: tc.stale, ClusterDomain: "Cluster.Local.",
			})
			names := map[string]time.Duration{"a.example": tc.outside, "a.b.svc.cluster.local": tc.inside, "notcluster.local": tc.other}
			for name := range names {
				s.ask(t, "udp", name, dns.TypeA)
			}
			up.set(silence)
			for _, at := range []time.Duration{5 * time.Second, clusterStaleFor - time.Second, staleFor - time.Second, staleFor} {
				now.add(10*time.Second + at)
				for name, longest := range names {
					want := dns.RcodeServerFailure
					if at < longest {
						want = dns.RcodeSuccess
					}
					if r := s.ask(t, "udp", name, dns.TypeA); r.Rcode != want {
						t.Errorf("%s, %v after its end: %s, want %s", name, at, dns.RcodeToString[r.Rcode], dns.RcodeToString[want])
					}
				}
				now.add(-10*time.Second - at)
			}
		})
	}
}

func TestCacheOff(t *testing.T) {
	up := newFakeUpstream(t, zone(0, goodA))
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), asksOnce), NoCache: true})
	for i := range 3 {
		s.ask(t, "udp", "x.example", dns.TypeA)
		if n := up.udp.Load(); n != int64(i+1) || s.Stats().Cache.Entries != 0 {
			t.Errorf("%d questions for %d, %d kept", n, i+1, s.Stats().Cache.Entries)
		}
	}
	up.set(zone(dns.RcodeServerFailure, ""))
	for range 2 {
		s.ask(t, "udp", "bad.example", dns.TypeA)
	}
	if n := up.udp.Load(); n != 5 {
		t.Errorf("%d questions for 5: a failure is kept", n)
	}
}

func TestPrefetchOff(t *testing.T) {
	now := newClock()
	up := newFakeUpstream(t, zone(0, goodA))
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), asksOnce), Now: now.Now, NoPrefetch: true})
	s.ask(t, "udp", "x.example", dns.TypeA)
	now.add(59 * time.Second)
	for range 2 * prefetchHits {
		s.ask(t, "udp", "x.example", dns.TypeA)
	}
	if st := s.Stats(); st.Cache.Prefetches != 0 || up.udp.Load() != 1 {
		t.Errorf("%d prefetches, %d questions", st.Cache.Prefetches, up.udp.Load())
	}
}

func TestFlush(t *testing.T) {
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte {
		if strings.HasPrefix(nameIn(r), "bad") {
			return zone(dns.RcodeServerFailure, "")(r, tcp)
		}
		return zone(0, nameIn(r)+" 60 IN A 192.0.2.1")(r, tcp)
	})
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr))})
	fill := func() {
		for _, name := range []string{"a.example", "b.example", "bad.example"} {
			s.ask(t, "udp", name, dns.TypeA)
		}
	}
	fill()
	if n := s.Flush(func(name string) bool { return name != "a.example." }); n != 2 {
		t.Errorf("%d flushed, want 2", n)
	}
	if list := s.Cached(); len(list) != 1 || list[0].Name != "a.example." {
		t.Errorf("left: %+v", list)
	}
	fill()
	if n := s.Flush(nil); n != 3 || s.Stats().Cache.Entries != 0 || s.Stats().Cache.Bytes != 0 {
		t.Errorf("%d flushed, want 3; %+v", n, s.Stats().Cache)
	}
}
