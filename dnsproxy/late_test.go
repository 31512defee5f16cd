package dnsproxy

import (
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// An answer that comes when its query's time is up is for the client's next one, which
// waits for it and asks nobody, and is kept.
func TestLateAnswerIsKept(t *testing.T) {
	release := make(chan struct{})
	up := dnstest.AnswersFirst(t, release)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.Impatient)}})
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("before there is an answer: %v", r)
	}
	asked := up.UDP.Load()
	again := make(chan *dns.Msg)
	go func() { again <- s.ask(t, "udp", "x.example", dns.TypeA) }()
	dnstest.WaitFor(t, "the client's next query", func() bool { return s.Stats().Inflight == 1 })
	close(release)
	if r := <-again; r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
		t.Errorf("the next query: %v", r)
	}
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("later: %v", r)
	}
	if n := up.UDP.Load(); n != asked || s.Stats().Cache.Hits != 1 {
		t.Errorf("%d questions, want %d; %d hits", n, asked, s.Stats().Cache.Hits)
	}
	if u := s.Upstreams()[0]; u.State == "failing" || u.Latency.Count != 1 {
		t.Errorf("%+v", u)
	}
}
