package cache

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// testCache is a cache before a forwarder, with the flights of those who ask it.
type testCache struct {
	*Cache
	via *Flights
}

// startCache makes one for the time of a test, and sees that nothing of it is left.
func startCache(t testing.TB, c Config, u upstream.Config) *testCache {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Log = slog.New(slog.DiscardHandler)
	u.Log, u.Now = c.Log, c.Now
	h, err := New(c, upstream.New(u))
	if err != nil {
		t.Fatal(err)
	}
	s := &testCache{h, new(Flights)}
	ctx, cancel := context.WithCancel(context.Background())
	s.via.Transport.Open(ctx, true)
	t.Cleanup(func() {
		cancel()
		s.via.Transport.End()
		goleak.VerifyNone(t, ignore)
	})
	return s
}

// ask returns what a client is answered.
func (s *testCache) ask(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	q := new(wire.Query)
	if q.Parse(dnstest.Question(t, name, qtype), 0) != wire.AnswerIt {
		t.Fatalf("%s is no query", name)
	}
	a, miss, ok := s.Fast(q, nil, s.via)
	if !ok {
		a = s.Serve(t.Context(), q, miss, s.via)
	}
	m := new(dns.Msg)
	if err := m.Unpack(wire.Finish(q, a.Msg)); err != nil {
		t.Fatal(err)
	}
	return m
}
