package dnsproxy

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A query with a long timeout asks twice, sixteen times more while the only server is
// down, and once more when it is back. However many tries there are: when the Serving is
// cut, none of them is left.
func TestRaceLeavesNobodyBehind(t *testing.T) {
	up := newFakeUpstream(t, silence)
	s, err := New(Config{
		ResolvConf: writeConf(t, nameserver(up.addr)), ForwardTimeout: time.Minute, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f := s.forwarder
	sc := new(transport)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sc.open(ctx)
	m := new(dns.Msg).SetQuestion("x.example.", dns.TypeA)
	raw, _ := m.Pack()
	q := new(query)
	if q.parse(raw, maxMessage) != answerIt {
		t.Fatal("query")
	}
	f.outage.down.Store(true) // every server fails
	done := make(chan struct{})
	go func() { f.forward(ctx, q, sc); close(done) }()
	p := f.plan()
	want := uint64(len(p.servers)*p.Attempts + maxRechecks)
	waitFor(t, "every recheck", func() bool { return s.Upstreams()[0].Requests >= want })
	f.outage.over() // another question was answered
	waitFor(t, "the question to who is back", func() bool { return s.Upstreams()[0].Requests > want })
	cancel()
	<-done
	ended := make(chan struct{})
	go func() { sc.end(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("a goroutine of the race never ends: Serving.Close would hang for ever")
	}
}
