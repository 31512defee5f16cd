package upstream

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"understudy.mesh/dnsproxy/internal/wire"
)

// testForwarder is a forwarder with the transport of those who ask it.
type testForwarder struct {
	*Forwarder
	via *Transport
}

// startForwarder makes one for the time of a test, and sees that nothing of it is left.
func startForwarder(t testing.TB, c Config) *testForwarder {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &testForwarder{New(c), new(Transport)}
	f.via.Open(ctx, true)
	t.Cleanup(func() {
		cancel()
		f.via.End()
		goleak.VerifyNone(t, ignore)
	})
	return f
}

// answer asks for the A records of a name, as the cache would.
func (f *testForwarder) answer(t testing.TB, name string) wire.Answer {
	t.Helper()
	q, err := wire.NewQuery(name, dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	return f.Serve(t.Context(), q, f.via)
}

// ask returns what is answered.
func (f *testForwarder) ask(t testing.TB, name string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(f.answer(t, name).Msg); err != nil {
		t.Fatal(err)
	}
	return m
}
