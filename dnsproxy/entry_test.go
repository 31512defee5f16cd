package dnsproxy

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// An upstream that is a cache answers with what is left of its TTL. To ask it
// before the end gains nothing, which is found out once; and in its last second,
// in which what is left is zero, not every query is asked of it.
func TestUpstreamThatIsACache(t *testing.T) {
	now := newClock()
	var ends atomic.Int64 // Unix time
	ends.Store(now.Now().Unix())
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte {
		left := ends.Load() - now.Now().Unix()
		if left < 0 {
			left = 100
			ends.Store(now.Now().Unix() + left)
		}
		return zone(0, fmt.Sprintf("x.example. %d IN A 192.0.2.1", left))(r, tcp)
	})
	now.add(time.Second)
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), asksOnce), Now: now.Now})
	for _, step := range []struct {
		after         time.Duration
		ttl           uint32
		asked, before int // what the upstream was asked in all, and of it before an end
	}{
		{0, 100, 1, 0},
		{91 * time.Second, 9, 2, 1},
		{8 * time.Second, 1, 2, 1},
		{time.Second, 0, 3, 1},
		{time.Second, 100, 4, 1},
		{91 * time.Second, 9, 4, 1},
		{9 * time.Second, 0, 5, 1},
	} {
		now.add(step.after)
		for range hotHits + 1 {
			if ttl := s.ask(t, "udp", "x.example", dns.TypeA).Answer[0].Header().Ttl; ttl != step.ttl {
				t.Errorf("%+v: TTL %d", step, ttl)
			}
		}
		waitFor(t, "the questions in the background", func() bool { return len(s.cache.renewals) == 0 })
		if n := up.udp.Load(); n != int64(step.asked) || s.Stats().Cache.Prefetches != uint64(step.before) {
			t.Fatalf("%+v: %d questions, %+v", step, n, s.Stats().Cache)
		}
	}
	// A TTL that is zero from the start is not a rest, even right behind one.
	for range 2 {
		now.add(time.Second)
		ends.Store(now.Now().Unix())
		s.ask(t, "udp", "x.example", dns.TypeA)
	}
	if n := up.udp.Load(); n != 7 {
		t.Errorf("%d questions, want 7", n)
	}
}
