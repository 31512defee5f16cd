package dnsproxy

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

// testCache is a cache before a forwarder, with the flights of those who ask it.
type testCache struct {
	*cache
	via *flights
}

// startCache makes one for the time of a test, and sees that nothing of it is left.
func startCache(t testing.TB, c cacheConfig, u upstreamConfig) *testCache {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Log = slog.New(slog.DiscardHandler)
	u.Log, u.Now = c.Log, c.Now
	h, err := newCache(c, newForwarder(u))
	if err != nil {
		t.Fatal(err)
	}
	s := &testCache{h, new(flights)}
	ctx, cancel := context.WithCancel(context.Background())
	s.via.transport.open(ctx, true)
	t.Cleanup(func() {
		cancel()
		s.via.transport.end()
		goleak.VerifyNone(t, ignore)
	})
	return s
}

// ask returns what a client is answered.
func (s *testCache) ask(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	q := new(query)
	if q.parse(question(t, name, qtype), 0) != answerIt {
		t.Fatalf("%s is no query", name)
	}
	a, ok := s.fast(q, nil, s.via)
	if !ok {
		a = s.serve(t.Context(), q, s.via)
	}
	m := new(dns.Msg)
	if err := m.Unpack(finish(q, a.msg)); err != nil {
		t.Fatal(err)
	}
	return m
}
