package dnsproxy

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A server that says nothing is not waited for: the next one is asked as well,
// and after some of that it is the first to be asked.
func TestHedge(t *testing.T) {
	dead, good := newFakeUpstream(t, silence), newFakeUpstream(t, zone(0, "---\n"))
	s := startForwarder(t, upstreamConfig{
		ResolvConf: writeConf(t, nameserver(dead.addr), nameserver(good.addr)),
		Timeout:    time.Minute, // no try is over before the test is
	})
	if first := s.plan().servers[0].addr; first != dead.addr {
		t.Errorf("%s is asked first, not the file's first", first)
	}
	for i := range overtakenAfter {
		if r := s.ask(t, fmt.Sprintf("n%d.example", i)); r.Rcode != dns.RcodeSuccess {
			t.Errorf("%v", r)
		}
	}
	for _, u := range s.upstreams() {
		switch u.Server {
		case dead.addr:
			// Its time was never up: what shows that nobody waited for it.
			if u.Failures != 0 || u.Overtaken != overtakenAfter || u.State != slow.String() {
				t.Errorf("dead: %+v", u)
			}
		case good.addr:
			if u.Hedges < overtakenAfter || u.State == failing.String() {
				t.Errorf("good: %+v", u)
			}
		}
	}
	if first := s.plan().servers[0].addr; first != good.addr {
		t.Errorf("%s is asked first, which is dead", first)
	}
}

// A server that is overtaken is listened to, to learn how long it takes: one
// that is merely slower than the next is waited for then.
func TestOvertakenServerIsHeard(t *testing.T) {
	answer, release := zone(0, "---\n"), make(chan struct{})
	slower := newFakeUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	other := newFakeUpstream(t, answer)
	s := startForwarder(t, upstreamConfig{
		ResolvConf: writeConf(t, nameserver(slower.addr), nameserver(other.addr)),
		Timeout:    time.Minute, // no try is over before the test is
	})
	for i := range 2 {
		s.ask(t, fmt.Sprintf("n%d.example", i))
	}
	close(release)
	// The first try is watched; one is enough.
	waitFor(t, "the answer that came too late", func() bool { return upstreamOf(s, slower.addr).Latency.Count == 1 })
	u := upstreamOf(s, slower.addr)
	if u.RTT < firstPatience || u.Patience <= firstPatience || u.Overtaken != 2 || u.Failures != 0 {
		t.Errorf("%+v", u)
	}
}

func upstreamOf(s *testForwarder, addr netip.AddrPort) UpstreamStats {
	for _, u := range s.upstreams() {
		if u.Server == addr {
			return u
		}
	}
	return UpstreamStats{}
}

// To be overtaken is to be slow, which says nothing about whether any server
// answers; what is slow is tried again, and is as before when it is in time.
func TestOvertaken(t *testing.T) {
	now := newClock()
	u := &upstream{log: slog.New(slog.DiscardHandler)}
	for i := range 3 * overtakenAfter {
		if watch := u.overtaken(now.Now(), errBudget); watch != (i == 0) {
			t.Errorf("%d: watch %t", i, watch)
		}
	}
	if u.health() != slow || (plan{servers: []*upstream{u}}).failing() {
		t.Errorf("it is %s", u.health())
	}
	if !u.due(now.Now()) {
		t.Error("it is not tried again")
	}
	const rtt = 400 * time.Millisecond
	u.done(now.Now(), rtt, nil)
	u.unwatch()
	if u.health() != healthy || u.due(now.Now()) || u.patience() <= rtt {
		t.Errorf("after an answer in time: %s, patience %s", u.health(), u.patience())
	}
	if !u.overtaken(now.Now(), errBudget) {
		t.Error("the next one is not watched")
	}
	now.add(time.Second)
	for range failingAfter {
		u.done(now.Now(), 0, errBudget)
	}
	for range overtakenAfter {
		u.overtaken(now.Now(), errBudget)
	}
	if u.health() != failing {
		t.Errorf("what fails is %s when it is overtaken", u.health())
	}
}

func TestBudget(t *testing.T) {
	for name, tc := range map[string]struct {
		options     string
		timeout     time.Duration // DNS_FORWARD_TIMEOUT
		servers     int
		budget, try time.Duration
	}{
		"default":        {"", DefaultForwardTimeout, 1, 4800 * time.Millisecond, 2400 * time.Millisecond},
		"impatient":      {"options timeout:1 attempts:2", DefaultForwardTimeout, 1, 1800 * time.Millisecond, 900 * time.Millisecond},
		"many attempts":  {"options timeout:2 attempts:5", DefaultForwardTimeout, 1, 4800 * time.Millisecond, 2 * time.Second},
		"one attempt":    {"options attempts:1", DefaultForwardTimeout, 1, 4800 * time.Millisecond, 4800 * time.Millisecond},
		"one of three":   {"options attempts:1", DefaultForwardTimeout, 3, 4800 * time.Millisecond, 2400 * time.Millisecond},
		"patient file":   {"options timeout:30", DefaultForwardTimeout, 1, 29800 * time.Millisecond, 5 * time.Second},
		"patient agent":  {"", 20 * time.Second, 1, 19800 * time.Millisecond, 9900 * time.Millisecond},
		"impatient both": {"options timeout:3", time.Second, 2, 4800 * time.Millisecond, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			f := &forwarder{timeout: tc.timeout}
			p := plan{ResolvConf: parseResolvConf([]byte(tc.options)), servers: make([]*upstream, tc.servers)}
			if b, try := f.budget(&p), f.tryTime(&p); b != tc.budget || try != tc.try {
				t.Errorf("budget %s, try %s; want %s, %s", b, try, tc.budget, tc.try)
			}
		})
	}
}

// A query with a long timeout asks twice, sixteen times more while the only server is
// down, and once more when it is back. However many tries there are: when the Serving is
// cut, none of them is left.
func TestRaceLeavesNobodyBehind(t *testing.T) {
	up := newFakeUpstream(t, silence)
	f := newForwarder(upstreamConfig{
		ResolvConf: writeConf(t, nameserver(up.addr)), Timeout: time.Minute, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	sc := new(transport)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sc.open(ctx, true)
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
	waitFor(t, "every recheck", func() bool { return f.upstreams()[0].Requests >= want })
	f.outage.over() // another question was answered
	waitFor(t, "the question to who is back", func() bool { return f.upstreams()[0].Requests > want })
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

// Without hedging a server has all the time of a try.
func TestHedgeOff(t *testing.T) {
	slow, next := newFakeUpstream(t, silence), newFakeUpstream(t, zone(0, goodA))
	s := startForwarder(t, upstreamConfig{ResolvConf: writeConf(t, nameserver(slow.addr), nameserver(next.addr)), NoHedge: true})
	p := s.plan()
	r := newRace(s.forwarder, &p, new(query), new(transport))
	if got := r.patience(p.servers[0]); got != r.tryTime || got < time.Second {
		t.Errorf("the next server is asked after %v, a try has %v", got, r.tryTime)
	}
	if r := s.ask(t, "x.example"); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
}

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
	s := startForwarder(t, upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr), "options timeout:10 attempts:2")})
	p := s.plan()
	time.AfterFunc(s.tryTime(&p)+100*time.Millisecond, func() { close(release) })
	if r := s.ask(t, "x.example"); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if u := s.upstreams()[0]; u.Failures != 0 || u.Requests != 2 {
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
	s := startForwarder(t, upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr), impatient)})
	a := s.answer(t, "x.example")
	if len(s.late) != 1 || a.late == nil {
		t.Fatal("no race goes on")
	}
	asked := s.upstreams()[0].Requests
	back.Store(true)
	if late := <-a.late; !good(late) {
		t.Errorf("%x", late.msg)
	}
	if n := s.upstreams()[0].Requests; n == asked {
		t.Error("the answer is to an old question")
	}
}

// There is no waiting for servers that never answer: neither for more than some at one
// time, nor for one that has long failed, nor when the Serving ends.
func TestLateIsBounded(t *testing.T) {
	up := newFakeUpstream(t, silence)
	s := startForwarder(t, upstreamConfig{ResolvConf: writeConf(t, nameserver(up.addr), impatient)})
	for range maxLate {
		s.late <- struct{}{}
	}
	s.ask(t, "full.example")
	for range maxLate {
		<-s.late
	}
	if u := s.upstreams()[0]; u.State != failing.String() {
		t.Fatalf("%+v", u)
	}
	s.ask(t, "failing.example")
	if n := len(s.late); n != 0 {
		t.Errorf("%d races go on for a server that fails", n)
	}
	s.known[up.addr].done(time.Now(), time.Millisecond, nil)
	s.ask(t, "slow.example")
	if n := len(s.late); n != 1 {
		t.Errorf("%d races go on for a server that may be slow, want 1", n)
	}
}

// A server that does not recurse says "no" with a SOA, or as the authority; and
// who does not want recursion gets what it knows.
func TestLame(t *testing.T) {
	const soa, ns = "---\nexample. 60 IN SOA a. b. 1 2 3 4 5", "---\nexample. 60 IN NS ns.example."
	for name, tc := range map[string]struct {
		text  string
		rcode int
		set   uint16 // flags of the answer
		query uint16
		want  bool
	}{
		"referral":          {ns, 0, 0, flagRD, true},
		"nothing":           {"", 0, 0, flagRD, false},
		"asked for":         {ns, 0, 0, 0, false},
		"recursive":         {ns, 0, flagRA, flagRD, false},
		"authority":         {ns, 0, flagAA, flagRD, false},
		"no, with a SOA":    {soa, 0, 0, flagRD, false},
		"no such name":      {ns, rcodeNXDomain, 0, flagRD, false},
		"yes":               {goodA + "\n" + ns, 0, 0, flagRD, false},
		"SERVFAIL is worse": {ns, rcodeServFail, 0, flagRD, false},
	} {
		q, err := newQuery("x.example", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		q.flags = tc.query
		msg := notRecursive(zone(tc.rcode, tc.text))(buildRequest(q, false), false)
		binary.BigEndian.PutUint16(msg[2:], flagsOf(msg)|tc.set)
		if got := isLame(q, msg); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// The time for which a query was held before the first table is its client's.
func TestHeldTimeIsTheClients(t *testing.T) {
	f := &forwarder{timeout: DefaultForwardTimeout}
	p := plan{servers: make([]*upstream, 1), ResolvConf: parseResolvConf(nil)}
	for held, want := range map[time.Duration]time.Duration{
		0: 4800 * time.Millisecond, 2 * time.Second: 2800 * time.Millisecond, time.Hour: f.tryTime(&p),
	} {
		if left := f.timeLeft(&p, &query{held: held}); left != want {
			t.Errorf("%s are left after %s, want %s", left, held, want)
		}
	}
}

func TestIsSelf(t *testing.T) {
	for _, tc := range []struct {
		own, server string
		want        bool
	}{
		{"127.0.0.1:53", "127.0.0.1:53", true}, {"127.0.0.1:15053", "127.0.0.1:53", false},
		{"0.0.0.0:53", "127.0.0.53:53", true}, {"[::]:53", "[::1]:53", true}, {"0.0.0.0:53", "10.0.0.10:53", false},
	} {
		if got := isSelf(netip.MustParseAddrPort(tc.own), netip.MustParseAddrPort(tc.server)); got != tc.want {
			t.Errorf("isSelf(%s, %s) = %v", tc.own, tc.server, got)
		}
	}
}
