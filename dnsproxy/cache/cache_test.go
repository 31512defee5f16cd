package cache

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

func TestCacheBounds(t *testing.T) {
	up := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
		var m dns.Msg
		if m.Unpack(request) != nil {
			return nil
		}
		return dnstest.Zone(0, m.Question[0].Name+" 60 IN A 192.0.2.1")(request, tcp)
	})
	for name, c := range map[string]Config{"entries": {Entries: 5}, "bytes": {Bytes: 5 * 340}} {
		t.Run(name, func(t *testing.T) {
			s := startCache(t, c, upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))})
			for i := range 30 {
				s.ask(t, fmt.Sprintf("n%d.example", i%20), dns.TypeA)
			}
			cache := s.Stats()
			if cache.Entries == 0 || cache.Entries > 5 || cache.Bytes > s.maxBytes {
				t.Errorf("%+v", cache)
			}
			var sum int64
			for _, e := range s.lru.Values() {
				sum += e.size()
			}
			if sum != cache.Bytes {
				t.Errorf("counted %d bytes, the entries have %d", cache.Bytes, sum)
			}
		})
	}
}

// Who leads a flight has an answer of its own: what it does to it, nobody else sees.
func TestFlightsShareNothing(t *testing.T) {
	var s Flights
	f, first := s.join("k")
	if !first {
		t.Fatal("not the first")
	}
	if same, first := s.join("k"); first || same != f {
		t.Error("a second flight for one key")
	}
	msg := []byte{1}
	s.land("k", f, wire.Answer{Msg: msg})
	msg[0] = 2
	<-f.landed
	if f.answer.Msg[0] != 1 {
		t.Error("the leader's message is the followers'")
	}
	if _, first := s.join("k"); !first {
		t.Error("it is in the air still")
	}
}

// A slow upstream costs one client the response timer, and its answer is kept.
func TestSlowUpstreamIsNotWaitedFor(t *testing.T) {
	now, release := dnstest.NewClock(), make(chan struct{})
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := startCache(t, Config{Now: now.Now}, upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))})
	s.staleAfter = 20 * time.Millisecond
	s.ask(t, "x.example", dns.TypeA)
	now.Add(61 * time.Second)
	late := dnstest.Zone(0, "x.example. 60 IN A 192.0.2.9")
	up.Set(func(r []byte, tcp bool) []byte { <-release; return late(r, tcp) })
	for range 2 {
		if r := s.ask(t, "x.example", dns.TypeA); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("%v", r)
		}
	}
	close(release)
	dnstest.WaitFor(t, "the late answer", func() bool {
		return s.ask(t, "x.example", dns.TypeA).Answer[0].(*dns.A).A.String() == "192.0.2.9"
	})
}

// A question that was sent while all servers were dead, and fails after one has
// come back, says nothing about the time since.
func TestFailureOfBeforeTheEndIsVoid(t *testing.T) {
	for name, back := range map[string]bool{"a server came back": true, "no server came back": false} {
		t.Run(name, func(t *testing.T) {
			now := dnstest.NewClock()
			var next *upstream.Forwarder
			var conf string
			var up *dnstest.Upstream
			up = dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
				now.Add(time.Millisecond)
				if back { // a resolv.conf that was written anew ends an outage as well
					anew := dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)
					if err := os.Rename(anew, conf); err != nil {
						t.Error(err)
					}
					now.Add(2 * time.Second)
					next.Look()
				}
				return dnstest.Zone(dns.RcodeServerFailure, "")(request, tcp)
			})
			log := slog.New(slog.DiscardHandler)
			conf = dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)
			next = upstream.New(upstream.Config{ResolvConf: conf, Now: now.Now, Log: log})
			h, err := New(Config{Now: now.Now, Log: log}, next)
			if err != nil {
				t.Fatal(err)
			}
			q, err := wire.NewQuery("x.example", dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			via := new(Flights)
			via.Transport.Open(t.Context(), true)
			defer via.Transport.End()
			if a := h.fetch(t.Context(), q, Miss{}, via, "key"); wire.RcodeOf(a.Msg) != wire.RcodeServFail {
				t.Fatalf("%x", a.Msg)
			}
			if kept := h.find([]byte("key")).failure != nil; kept == back {
				t.Errorf("kept: %t", !back)
			}
		})
	}
}

// An upstream that is a cache answers with what is left of its TTL. To ask it
// before the end gains nothing, which is found out once; and in its last second,
// in which what is left is zero, not every query is asked of it.
func TestUpstreamThatIsACache(t *testing.T) {
	now := dnstest.NewClock()
	var ends atomic.Int64 // Unix time
	ends.Store(now.Now().Unix())
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		left := ends.Load() - now.Now().Unix()
		if left < 0 {
			left = 100
			ends.Store(now.Now().Unix() + left)
		}
		return dnstest.Zone(0, fmt.Sprintf("x.example. %d IN A 192.0.2.1", left))(r, tcp)
	})
	now.Add(time.Second)
	s := startCache(t, Config{Now: now.Now}, upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)})
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
		now.Add(step.after)
		for range hotHits + 1 {
			if ttl := s.ask(t, "x.example", dns.TypeA).Answer[0].Header().Ttl; ttl != step.ttl {
				t.Errorf("%+v: TTL %d", step, ttl)
			}
		}
		dnstest.WaitFor(t, "the questions in the background", func() bool { return len(s.renewals) == 0 })
		if n := up.UDP.Load(); n != int64(step.asked) || s.Stats().Prefetches != uint64(step.before) {
			t.Fatalf("%+v: %d questions, %+v", step, n, s.Stats())
		}
	}
	// A TTL that is zero from the start is not a rest, even right behind one.
	for range 2 {
		now.Add(time.Second)
		ends.Store(now.Now().Unix())
		s.ask(t, "x.example", dns.TypeA)
	}
	if n := up.UDP.Load(); n != 7 {
		t.Errorf("%d questions, want 7", n)
	}
}

func FuzzUpstreamAnswer(f *testing.F) {
	q, err := wire.NewQuery("x.example", dns.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	request := wire.NewRequest(q, true)
	request[0], request[1] = 1, 2
	f.Add(dnstest.Zone(0, dnstest.GoodA)(request, false))
	f.Add(dnstest.Zone(3, "---\nexample. 60 IN SOA a. b. 1 2 3 4 5")(request, false))
	f.Add(dnstest.RefusesEDNS(nil, 1)(request, false))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if !wire.IsReply(reply, request) {
			return
		}
		msg, err := wire.Canonical(reply, q)
		if err != nil {
			return
		}
		now := time.Now()
		clock, log := func() time.Time { return now }, slog.New(slog.DiscardHandler)
		h, err := New(Config{Entries: 10, Now: clock, Log: log}, upstream.New(upstream.Config{Now: clock, Log: log}))
		if err != nil {
			t.Fatal(err)
		}
		key := appendKey(nil, q)
		h.put(string(key), wire.Answer{Msg: bytes.Clone(msg), Source: wire.SourceUpstream})
		now = now.Add(time.Second)
		for _, m := range [][]byte{msg, given(h, key)} {
			if m == nil {
				continue
			}
			var parsed dns.Msg
			if err := parsed.Unpack(wire.Finish(q, m)); err != nil || len(parsed.Question) != 1 || parsed.Question[0].Name != "x.example." {
				t.Fatalf("%v: %v", err, parsed)
			}
		}
	})
}

// given is what h has for key, nil when nothing.
func given(h *Cache, key []byte) []byte {
	e := h.find(key).entry
	if e == nil {
		return nil
	}
	return e.append(nil, e.age(h.now())).Msg
}

// What Fast did not find, Serve does not look for again, unless something was kept since.
func TestMissIsLookedUpOnce(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	for name, counted := range map[string]bool{"nothing was kept since": false, "another flight has landed": true} {
		t.Run(name, func(t *testing.T) {
			s := startCache(t, Config{}, upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)})
			s.ask(t, "x.example", dns.TypeA)
			kept := s.lru.Values()[0]
			s.lru.Purge()
			q, err := wire.NewQuery("x.example", dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			_, m, ok := s.Fast(q, nil, s.via)
			if ok {
				t.Fatal("no miss")
			}
			if counted {
				s.keep(kept)
			} else { // behind the cache's back
				s.lru.Add(maphash.String(s.seed, kept.key), kept)
			}
			want := wire.SourceUpstream
			if counted {
				want = wire.SourceCache
			}
			if a := s.Serve(t.Context(), q, m, s.via); a.Source != want {
				t.Errorf("answered by %s, want %s", a.Source, want)
			}
		})
	}
}
