package dnsproxy

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// impatient is a resolv.conf line for tests of time that is up: after 1.8 s.
const impatient = "options timeout:1 attempts:2"

// answersFirst is a server that answers the first question that it gets, when that channel
// is closed, and no other.
func answersFirst(t *testing.T, release <-chan struct{}) *fakeUpstream {
	t.Helper()
	var asked atomic.Int64
	answer := zone(0, goodA)
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte {
		if asked.Add(1) > 1 {
			return nil
		}
		<-release
		return answer(r, tcp)
	})
	up.apart.Store(true)
	return up
}

// The answer to the first try counts after another was begun, as it does in the
// resolvers of applications, which have one socket for all their tries.
func TestSlowAnswerIsDelivered(t *testing.T) {
	release := make(chan struct{})
	up := answersFirst(t, release)
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), "options timeout:10 attempts:2")})
	p := s.forwarder.plan()
	time.AfterFunc(s.forwarder.tryTime(&p)+100*time.Millisecond, func() { close(release) })
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if u := s.Upstreams()[0]; u.Failures != 0 || u.Requests != 2 {
		t.Errorf("%+v", u)
	}
}

// An answer that comes when its query's time is up is for the client's next one, which
// waits for it and asks nobody, and is kept.
func TestLateAnswerIsKept(t *testing.T) {
	release := make(chan struct{})
	up := answersFirst(t, release)
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), impatient)})
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("before there is an answer: %v", r)
	}
	asked := up.udp.Load()
	again := make(chan *dns.Msg)
	go func() { again <- s.ask(t, "udp", "x.example", dns.TypeA) }()
	waitFor(t, "the client's next query", func() bool { return s.Stats().Inflight == 1 })
	close(release)
	if r := <-again; r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 {
		t.Errorf("the next query: %v", r)
	}
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("later: %v", r)
	}
	if n := up.udp.Load(); n != asked || s.Stats().Cache.Hits != 1 {
		t.Errorf("%d questions, want %d; %d hits", n, asked, s.Stats().Cache.Hits)
	}
	if u := s.Upstreams()[0]; u.State == failing.String() || u.Latency.Count != 1 {
		t.Errorf("%+v", u)
	}
}

// While a race goes on for servers that fail, it is this one that finds them back, for
// nobody else asks its question.
func TestLateRaceFindsServersBack(t *testing.T) {
	var back atomic.Bool
	answer := zone(0, goodA)
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte {
		if !back.Load() {
			return nil
		}
		return answer(r, tcp)
	})
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), impatient)})
	s.ask(t, "udp", "x.example", dns.TypeA)
	if len(s.forwarder.late) != 1 {
		t.Fatal("no race goes on")
	}
	asked := s.Upstreams()[0].Requests
	back.Store(true)
	waitFor(t, "the answer", func() bool { return s.Stats().Cache.Entries == 1 })
	if n := s.Upstreams()[0].Requests; n == asked {
		t.Error("the answer is to an old question")
	}
}

// Who may recheck and finds the question on its way leaves that to the next.
func TestRecheckIsReturned(t *testing.T) {
	o := newOutage(newClock().Now)
	o.down.Store(true)
	if !o.recheck() || o.recheck() {
		t.Fatal("want one recheck at a time")
	}
	o.returned()
	if !o.recheck() {
		t.Error("a recheck that was returned is not due")
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

// There is no waiting for servers that never answer: neither for more than some at one
// time, nor for one that has long failed, nor when the Serving ends.
func TestLateIsBounded(t *testing.T) {
	up := newFakeUpstream(t, silence)
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), impatient)})
	for range maxLate {
		s.forwarder.late <- struct{}{}
	}
	s.ask(t, "udp", "full.example", dns.TypeA)
	for range maxLate {
		<-s.forwarder.late
	}
	if u := s.Upstreams()[0]; u.State != failing.String() {
		t.Fatalf("%+v", u)
	}
	s.ask(t, "udp", "failing.example", dns.TypeA)
	if n := len(s.forwarder.late); n != 0 {
		t.Errorf("%d races go on for a server that fails", n)
	}
	s.forwarder.known[up.addr].done(time.Now(), time.Millisecond, nil)
	s.ask(t, "udp", "slow.example", dns.TypeA)
	if n := len(s.forwarder.late); n != 1 {
		t.Errorf("%d races go on for a server that may be slow, want 1", n)
	}
}
