package dnsproxy

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestCacheBounds(t *testing.T) {
	up := newFakeUpstream(t, func(request []byte, tcp bool) []byte {
		var m dns.Msg
		if m.Unpack(request) != nil {
			return nil
		}
		return zone(0, m.Question[0].Name+" 60 IN A 192.0.2.1")(request, tcp)
	})
	for name, c := range map[string]cacheConfig{"entries": {Entries: 5}, "bytes": {Bytes: 5 * 340}} {
		t.Run(name, func(t *testing.T) {
			s := startCache(t, c, upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr))})
			for i := range 30 {
				s.ask(t, fmt.Sprintf("n%d.example", i%20), dns.TypeA)
			}
			cache := s.use()
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
	var s flights
	f, first := s.join("k")
	if !first {
		t.Fatal("not the first")
	}
	if same, first := s.join("k"); first || same != f {
		t.Error("a second flight for one key")
	}
	msg := []byte{1}
	s.land("k", f, answer{msg: msg})
	msg[0] = 2
	<-f.landed
	if f.answer.msg[0] != 1 {
		t.Error("the leader's message is the followers'")
	}
	if _, first := s.join("k"); !first {
		t.Error("it is in the air still")
	}
}

// A slow upstream costs one client the response timer, and its answer is kept.
func TestSlowUpstreamIsNotWaitedFor(t *testing.T) {
	now, release := newClock(), make(chan struct{})
	up := newFakeUpstream(t, zone(0, goodA))
	s := startCache(t, cacheConfig{Now: now.Now}, upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr))})
	s.staleAfter = 20 * time.Millisecond
	s.ask(t, "x.example", dns.TypeA)
	now.add(61 * time.Second)
	late := zone(0, "x.example. 60 IN A 192.0.2.9")
	up.set(func(r []byte, tcp bool) []byte { <-release; return late(r, tcp) })
	for range 2 {
		if r := s.ask(t, "x.example", dns.TypeA); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("%v", r)
		}
	}
	close(release)
	waitFor(t, "the late answer", func() bool {
		return s.ask(t, "x.example", dns.TypeA).Answer[0].(*dns.A).A.String() == "192.0.2.9"
	})
}

// A question that was sent while all servers were dead, and fails after one has
// come back, says nothing about the time since.
func TestFailureOfBeforeTheEndIsVoid(t *testing.T) {
	for name, back := range map[string]bool{"a server came back": true, "no server came back": false} {
		t.Run(name, func(t *testing.T) {
			now := newClock()
			var o *outage
			up := newFakeUpstream(t, func(request []byte, tcp bool) []byte {
				now.add(time.Millisecond)
				if back {
					o.over()
				}
				return zone(dns.RcodeServerFailure, "")(request, tcp)
			})
			log := slog.New(slog.DiscardHandler)
			next := newForwarder(upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr), asksOnce), Now: now.Now, Log: log})
			o = next.outage
			h, err := newCache(cacheConfig{Now: now.Now, Log: log}, next)
			if err != nil {
				t.Fatal(err)
			}
			q, err := newQuery("x.example", dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			via := new(flights)
			via.transport.open(t.Context(), true)
			defer via.transport.end()
			if a := h.fetch(t.Context(), q, via, "key"); rcodeOf(a.msg) != rcodeServFail {
				t.Fatalf("%x", a.msg)
			}
			if _, f := h.find([]byte("key")); o.holds(f.at, f.keep) == back {
				t.Errorf("kept: %t", !back)
			}
		})
	}
}

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
	s := startCache(t, cacheConfig{Now: now.Now}, upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr), asksOnce)})
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
			if ttl := s.ask(t, "x.example", dns.TypeA).Answer[0].Header().Ttl; ttl != step.ttl {
				t.Errorf("%+v: TTL %d", step, ttl)
			}
		}
		waitFor(t, "the questions in the background", func() bool { return len(s.renewals) == 0 })
		if n := up.udp.Load(); n != int64(step.asked) || s.use().Prefetches != uint64(step.before) {
			t.Fatalf("%+v: %d questions, %+v", step, n, s.use())
		}
	}
	// A TTL that is zero from the start is not a rest, even right behind one.
	for range 2 {
		now.add(time.Second)
		ends.Store(now.Now().Unix())
		s.ask(t, "x.example", dns.TypeA)
	}
	if n := up.udp.Load(); n != 7 {
		t.Errorf("%d questions, want 7", n)
	}
}

func FuzzUpstreamAnswer(f *testing.F) {
	q, err := newQuery("x.example", dns.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	request := buildRequest(q, true)
	request[0], request[1] = 1, 2
	f.Add(zone(0, goodA)(request, false))
	f.Add(zone(3, "---\nexample. 60 IN SOA a. b. 1 2 3 4 5")(request, false))
	f.Add(refusesEDNS(nil, 1)(request, false))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if !isReply(reply, request) {
			return
		}
		msg, err := canonical(reply, q)
		if err != nil {
			return
		}
		now := time.Now()
		clock, log := func() time.Time { return now }, slog.New(slog.DiscardHandler)
		h, err := newCache(cacheConfig{Entries: 10, Now: clock, Log: log}, newForwarder(upstreamConfig{Now: clock, Log: log}))
		if err != nil {
			t.Fatal(err)
		}
		key := appendKey(nil, q)
		h.put(string(key), answer{msg: bytes.Clone(msg), source: SourceUpstream})
		now = now.Add(time.Second)
		for _, m := range [][]byte{msg, given(h, key)} {
			if m == nil {
				continue
			}
			var parsed dns.Msg
			if err := parsed.Unpack(finish(q, m)); err != nil || len(parsed.Question) != 1 || parsed.Question[0].Name != "x.example." {
				t.Fatalf("%v: %v", err, parsed)
			}
		}
	})
}

// given is what h has for key, nil when nothing.
func given(h *cache, key []byte) []byte {
	e, _ := h.find(key)
	if e == nil {
		return nil
	}
	return e.append(nil, e.age(h.now())).msg
}
