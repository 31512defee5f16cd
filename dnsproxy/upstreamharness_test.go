package dnsproxy

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

// testForwarder is a forwarder with the transport of those who ask it.
type testForwarder struct {
	*forwarder
	via *transport
}

// startForwarder makes one for the time of a test, and sees that nothing of it is left.
func startForwarder(t testing.TB, c upstreamConfig) *testForwarder {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &testForwarder{newForwarder(c), new(transport)}
	f.via.open(ctx, true)
	t.Cleanup(func() {
		cancel()
		f.via.end()
		goleak.VerifyNone(t, ignore)
	})
	return f
}

// answer asks for the A records of a name, as the cache would.
func (f *testForwarder) answer(t testing.TB, name string) answer {
	t.Helper()
	q, err := newQuery(name, dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	return f.serve(t.Context(), q, f.via)
}

// ask returns what is answered.
func (f *testForwarder) ask(t testing.TB, name string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(f.answer(t, name).msg); err != nil {
		t.Fatal(err)
	}
	return m
}
