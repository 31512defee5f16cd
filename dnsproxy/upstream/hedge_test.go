package upstream

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

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/tests/dnstest"
)

// A server that says nothing is not waited for: the next one is asked as well,
// and after some of that it is the first to be asked.
func TestHedge(t *testing.T) {
	dead, good := dnstest.NewUpstream(t, dnstest.Silence), dnstest.NewUpstream(t, dnstest.Zone(0, "---\n"))
	s := startForwarder(t, Config{
		ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(dead.Addr), dnstest.Nameserver(good.Addr)),
		Timeout:    time.Minute, // no try is over before the test is
	})
	if first := s.plan().servers[0].addr; first != dead.Addr {
		t.Errorf("%s is asked first, not the file's first", first)
	}
	for i := range overtakenAfter {
		if r := s.ask(t, fmt.Sprintf("n%d.example", i)); r.Rcode != dns.RcodeSuccess {
			t.Errorf("%v", r)
		}
	}
	for _, u := range s.Stats() {
		switch u.Server {
		case dead.Addr:
			// Its time was never up: what shows that nobody waited for it.
			if u.Failures != 0 || u.Overtaken != overtakenAfter || u.State != slow.String() {
				t.Errorf("dead: %+v", u)
			}
		case good.Addr:
			if u.Hedges < overtakenAfter || u.State == failing.String() {
				t.Errorf("good: %+v", u)
			}
		}
	}
	if first := s.plan().servers[0].addr; first != good.Addr {
		t.Errorf("%s is asked first, which is dead", first)
	}
}

// A server that is overtaken is listened to, to learn how long it takes: one
// that is merely slower than the next is waited for then.
func TestOvertakenServerIsHeard(t *testing.T) {
	answer, release := dnstest.Zone(0, "---\n"), make(chan struct{})
	slower := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	other := dnstest.NewUpstream(t, answer)
	s := startForwarder(t, Config{
		ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(slower.Addr), dnstest.Nameserver(other.Addr)),
		Timeout:    time.Minute, // no try is over before the test is
	})
	for i := range 2 {
		s.ask(t, fmt.Sprintf("n%d.example", i))
	}
	close(release)
	// The first try is watched; one is enough.
	dnstest.WaitFor(t, "the answer that came too late", func() bool { return upstreamOf(s, slower.Addr).Latency.Count == 1 })
	u := upstreamOf(s, slower.Addr)
	if u.RTT < firstPatience || u.Patience <= firstPatience || u.Overtaken != 2 || u.Failures != 0 {
		t.Errorf("%+v", u)
	}
}

func upstreamOf(s *testForwarder, addr netip.AddrPort) Stats {
	for _, u := range s.Stats() {
		if u.Server == addr {
			return u
		}
	}
	return Stats{}
}

// To be overtaken is to be slow, which says nothing about whether any server
// answers; what is slow is tried again, and is as before when it is in time.
func TestOvertaken(t *testing.T) {
	now := dnstest.NewClock()
	u := &server{log: slog.New(slog.DiscardHandler)}
	for i := range 3 * overtakenAfter {
		if watch := u.overtaken(now.Now(), errBudget); watch != (i == 0) {
			t.Errorf("%d: watch %t", i, watch)
		}
	}
	if u.health() != slow || (plan{servers: []*server{u}}).failing() {
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
	now.Add(time.Second)
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
		"default":        {"", defaultTimeout, 1, 4800 * time.Millisecond, 2400 * time.Millisecond},
		"impatient":      {"options timeout:1 attempts:2", defaultTimeout, 1, 1800 * time.Millisecond, 900 * time.Millisecond},
		"many attempts":  {"options timeout:2 attempts:5", defaultTimeout, 1, 4800 * time.Millisecond, 2 * time.Second},
		"one attempt":    {"options attempts:1", defaultTimeout, 1, 4800 * time.Millisecond, 4800 * time.Millisecond},
		"one of three":   {"options attempts:1", defaultTimeout, 3, 4800 * time.Millisecond, 2400 * time.Millisecond},
		"patient file":   {"options timeout:30", defaultTimeout, 1, 29800 * time.Millisecond, 5 * time.Second},
		"patient agent":  {"", 20 * time.Second, 1, 19800 * time.Millisecond, 9900 * time.Millisecond},
		"impatient both": {"options timeout:3", time.Second, 2, 4800 * time.Millisecond, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Forwarder{timeout: tc.timeout}
			p := plan{resolvConf: parseResolvConf([]byte(tc.options)), servers: make([]*server, tc.servers)}
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
	up := dnstest.NewUpstream(t, dnstest.Silence)
	f := New(Config{
		ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: time.Minute, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	sc := new(Transport)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sc.Open(ctx, true)
	m := new(dns.Msg).SetQuestion("x.example.", dns.TypeA)
	raw, _ := m.Pack()
	q := new(wire.Query)
	if q.Parse(raw, wire.MaxMessage) != wire.AnswerIt {
		t.Fatal("query")
	}
	f.Health.down.Store(true) // every server fails
	done := make(chan struct{})
	go func() { f.forward(ctx, q, sc); close(done) }()
	p := f.plan()
	want := uint64(len(p.servers)*p.Attempts + maxRechecks)
	dnstest.WaitFor(t, "every recheck", func() bool { return f.Stats()[0].Requests >= want })
	f.Health.over() // another question was answered
	dnstest.WaitFor(t, "the question to who is back", func() bool { return f.Stats()[0].Requests > want })
	cancel()
	<-done
	ended := make(chan struct{})
	go func() { sc.End(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("a goroutine of the race never ends: Serving.Close would hang for ever")
	}
}

// Without hedging a server has all the time of a try.
func TestHedgeOff(t *testing.T) {
	slow, next := dnstest.NewUpstream(t, dnstest.Silence), dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := startForwarder(t, Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(slow.Addr), dnstest.Nameserver(next.Addr)), NoHedge: true})
	p := s.plan()
	r := newHedgedQuery(s.Forwarder, &p, new(wire.Query), new(Transport))
	if got := r.patience(p.servers[0]); got != r.tryTime || got < time.Second {
		t.Errorf("the next server is asked after %v, a try has %v", got, r.tryTime)
	}
	if r := s.ask(t, "x.example"); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
}

// The answer to the first try counts after another was begun, as it does in the
// resolvers of applications, which have one socket for all their tries.
func TestSlowAnswerIsDelivered(t *testing.T) {
	release := make(chan struct{})
	up := dnstest.AnswersFirst(t, release)
	s := startForwarder(t, Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), "options timeout:10 attempts:2")})
	p := s.plan()
	time.AfterFunc(s.tryTime(&p)+100*time.Millisecond, func() { close(release) })
	if r := s.ask(t, "x.example"); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if u := s.Stats()[0]; u.Failures != 0 || u.Requests != 2 {
		t.Errorf("%+v", u)
	}
}

// While a race goes on for servers that fail, it is this one that finds them back, for
// nobody else asks its question.
func TestLateRaceFindsServersBack(t *testing.T) {
	var back atomic.Bool
	answer := dnstest.Zone(0, dnstest.GoodA)
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		if !back.Load() {
			return nil
		}
		return answer(r, tcp)
	})
	s := startForwarder(t, Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.Impatient)})
	a := s.answer(t, "x.example")
	if len(s.late) != 1 || a.Late == nil {
		t.Fatal("no race goes on")
	}
	asked := s.Stats()[0].Requests
	back.Store(true)
	if late := <-a.Late; !wire.Good(late) {
		t.Errorf("%x", late.Msg)
	}
	if n := s.Stats()[0].Requests; n == asked {
		t.Error("the answer is to an old question")
	}
}

// There is no waiting for servers that never answer: neither for more than some at one
// time, nor for one that has long failed, nor when the Serving ends.
func TestLateIsBounded(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Silence)
	s := startForwarder(t, Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.Impatient)})
	for range maxLate {
		s.late <- struct{}{}
	}
	s.ask(t, "full.example")
	for range maxLate {
		<-s.late
	}
	if u := s.Stats()[0]; u.State != failing.String() {
		t.Fatalf("%+v", u)
	}
	s.ask(t, "failing.example")
	if n := len(s.late); n != 0 {
		t.Errorf("%d races go on for a server that fails", n)
	}
	s.known[up.Addr].done(time.Now(), time.Millisecond, nil)
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
		"referral":          {ns, 0, 0, wire.FlagRD, true},
		"nothing":           {"", 0, 0, wire.FlagRD, false},
		"asked for":         {ns, 0, 0, 0, false},
		"recursive":         {ns, 0, wire.FlagRA, wire.FlagRD, false},
		"authority":         {ns, 0, wire.FlagAA, wire.FlagRD, false},
		"no, with a SOA":    {soa, 0, 0, wire.FlagRD, false},
		"no such name":      {ns, wire.RcodeNXDomain, 0, wire.FlagRD, false},
		"yes":               {dnstest.GoodA + "\n" + ns, 0, 0, wire.FlagRD, false},
		"SERVFAIL is worse": {ns, wire.RcodeServFail, 0, wire.FlagRD, false},
	} {
		q, err := wire.NewQuery("x.example", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		request := wire.NewRequest(q, false)
		binary.BigEndian.PutUint16(request[2:], tc.query)
		q.Parse(request, 0)
		msg := dnstest.NotRecursive(dnstest.Zone(tc.rcode, tc.text))(wire.NewRequest(q, false), false)
		binary.BigEndian.PutUint16(msg[2:], wire.FlagsOf(msg)|tc.set)
		if got := isLame(q, msg); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// The time for which a query was held before the first table is its client's.
func TestHeldTimeIsTheClients(t *testing.T) {
	f := &Forwarder{timeout: defaultTimeout}
	p := plan{servers: make([]*server, 1), resolvConf: parseResolvConf(nil)}
	for held, want := range map[time.Duration]time.Duration{
		0: 4800 * time.Millisecond, 2 * time.Second: 2800 * time.Millisecond, time.Hour: f.tryTime(&p),
	} {
		if left := f.timeLeft(&p, &wire.Query{Held: held}); left != want {
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
