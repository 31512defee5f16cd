package dnsproxy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A server that says nothing is not waited for: the next one is asked as well,
// and after some of that it is the first to be asked.
func TestHedge(t *testing.T) {
	dead, good := newFakeUpstream(t, silence), newFakeUpstream(t, zone(0, "---\n"))
	s := start(t, Config{
		ResolvConf:     writeConf(t, nameserver(dead.addr), nameserver(good.addr)),
		ForwardTimeout: time.Minute, // no try is over before the test is
	})
	if first := s.forwarder.plan().servers[0].addr; first != dead.addr {
		t.Errorf("%s is asked first, not the file's first", first)
	}
	for i := range overtakenAfter {
		if r := s.ask(t, "udp", fmt.Sprintf("n%d.example", i), dns.TypeA); r.Rcode != dns.RcodeSuccess {
			t.Errorf("%v", r)
		}
	}
	for _, u := range s.Upstreams() {
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
	if first := s.forwarder.plan().servers[0].addr; first != good.addr {
		t.Errorf("%s is asked first, which is dead", first)
	}
}

// A server that is overtaken is listened to, to learn how long it takes: one
// that is merely slower than the next is waited for then.
func TestOvertakenServerIsHeard(t *testing.T) {
	answer, release := zone(0, "---\n"), make(chan struct{})
	slower := newFakeUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	other := newFakeUpstream(t, answer)
	s := start(t, Config{
		ResolvConf:     writeConf(t, nameserver(slower.addr), nameserver(other.addr)),
		ForwardTimeout: time.Minute, // no try is over before the test is
	})
	for i := range 2 {
		s.ask(t, "udp", fmt.Sprintf("n%d.example", i), dns.TypeA)
	}
	close(release)
	// The first try is watched; one is enough.
	waitFor(t, "the answer that came too late", func() bool { return upstreamOf(s, slower.addr).Latency.Count == 1 })
	u := upstreamOf(s, slower.addr)
	if u.RTT < firstPatience || u.Patience <= firstPatience || u.Overtaken != 2 || u.Failures != 0 {
		t.Errorf("%+v", u)
	}
}

func upstreamOf(s *testServer, addr netip.AddrPort) UpstreamStats {
	for _, u := range s.Stats().Upstreams {
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

// A lost datagram costs less than a client's patience, with one server too.
func TestLostDatagram(t *testing.T) {
	var lost atomic.Bool
	answer := zone(0, goodA)
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte {
		if lost.CompareAndSwap(false, true) {
			return nil
		}
		return answer(r, tcp)
	})
	// With time for each try, so that the first one is overtaken and never out of time.
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr)), ForwardTimeout: 20 * time.Second})
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if u := s.Upstreams()[0]; u.Requests < 2 || u.Failures != 0 {
		t.Errorf("%+v", u)
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

// heldHandler notes how long queries were held.
type heldHandler struct{ held *time.Duration }

func (heldHandler) fast(*query, []byte, *flights) (answer, bool) { return answer{}, false }

func (h heldHandler) serve(_ context.Context, q *query, _ *flights) answer {
	*h.held = q.held
	return answer{}
}

// The time for which a query was held before the first table is its client's.
func TestHeldTimeCounts(t *testing.T) {
	const hold = 2 * time.Millisecond
	var held time.Duration
	newTables(Config{HoldBeforeTable: hold}, heldHandler{&held}).serve(t.Context(), new(query), nil)
	if held < hold {
		t.Errorf("held for %s, want %s at least", held, hold)
	}
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

// A question of ours that comes back is refused at once, and named in the log.
func TestLoopIsCut(t *testing.T) {
	log := new(lockedBuffer)
	var back atomic.Pointer[testServer]
	// The good server waits until the question has come back, for the slow
	// machine on which it is asked before.
	refused := make(chan struct{})
	var once sync.Once
	loop := newFakeUpstream(t, func(request []byte, _ bool) []byte {
		defer once.Do(func() { close(refused) })
		conn, err := net.Dial("udp", back.Load().addr)
		if err != nil {
			return nil
		}
		defer conn.Close()
		conn.Write(request)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		reply := make([]byte, maxQuery)
		n, err := conn.Read(reply)
		if err != nil {
			return nil
		}
		return reply[:n]
	})
	good := newFakeUpstream(t, func(request []byte, tcp bool) []byte { <-refused; return zone(0, goodA)(request, tcp) })
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(loop.addr), nameserver(good.addr)), Log: slog.New(slog.NewTextHandler(log, nil))})
	back.Store(s)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
	if n := strings.Count(log.String(), "came back"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
}

// pipelined is an upstream for TCP that reads as many questions as it is told,
// and answers them in reverse, over and over; UDP it leaves unanswered.
type pipelined struct {
	listener net.Listener
	batch    int
	conns    atomic.Int64
	drop     atomic.Bool // close instead of answering
}

func newPipelined(t *testing.T, batch int) *pipelined {
	t.Helper()
	udp, tcp := listen(t)
	p := &pipelined{listener: tcp[0], batch: batch}
	var loops sync.WaitGroup
	loops.Go(func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.conns.Add(1)
			loops.Go(func() { defer conn.Close(); p.serve(conn) })
		}
	})
	t.Cleanup(func() { p.listener.Close(); udp[0].Close(); loops.Wait() })
	return p
}

func (p *pipelined) serve(conn net.Conn) {
	for {
		var batch [][]byte
		for range p.batch {
			request, err := readFramed(conn)
			if err != nil || p.drop.Load() {
				return
			}
			batch = append([][]byte{request}, batch...)
		}
		for _, r := range batch {
			writeFramed(conn, zone(0, nameIn(r)+" 60 IN A 192.0.2.1")(r, true))
		}
	}
}

// With use-vc all questions go over one connection, without waiting.
func TestPipelining(t *testing.T) {
	const batch = 10
	up := newPipelined(t, batch)
	s := start(t, Config{ResolvConf: writeConf(t, "nameserver ["+strings.Replace(up.listener.Addr().String(), ":", "]:", 1), "options use-vc")})
	ask := func(round int) {
		var all sync.WaitGroup
		for i := range batch {
			all.Go(func() {
				name := fmt.Sprintf("n%d-%d.example.", round, i)
				if r := s.ask(t, "udp", name, dns.TypeA); len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
					t.Errorf("%v", r)
				}
			})
		}
		all.Wait()
	}
	ask(1)
	ask(2)
	if n := up.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// A connection that the server closes is opened anew; one that it always
// closes is a failure, not a hang.
func TestStreamEnds(t *testing.T) {
	up := newPipelined(t, 1)
	s := start(t, Config{ResolvConf: writeConf(t, "nameserver ["+strings.Replace(up.listener.Addr().String(), ":", "]:", 1), "options use-vc")})
	ask := func(name string, want int) {
		t.Helper()
		if r := s.ask(t, "udp", name, dns.TypeA); r.Rcode != want {
			t.Errorf("%v", r)
		}
	}
	ask("a.example", dns.RcodeSuccess)
	up.drop.Store(true)
	ask("b.example", dns.RcodeServerFailure)
	up.drop.Store(false)
	ask("c.example", dns.RcodeSuccess)
	if up.conns.Load() < 3 {
		t.Errorf("%d connections", up.conns.Load())
	}
}

// nameOverEnd is an answer with an owner that points into a TTL, from where a
// label reaches as far as the OPT record.
const nameOverEnd = "\x01\x02\x83\x80\x00\x01\x00\x02\x00\x00\x00\x01\x01x\aexample\x00\x00\x01\x00\x01" +
	"\xc0\f\x00\x05\x00\x01\x00\x00(<\x00\x04\x01y\xc0\x0e" +
	"\xc0#\x00\x1c\x00\x01\x00\x00\x00\x14\x00\x10 \x01\r\xb8\x00\x00\x00\x00\x00\x00\xec\xec\xec\x00\x00\x00" +
	"\x00\x00)\x10\x00\x00\x00\x00\x00\x00\x00"

// FuzzPlain compares the walk over an answer's bytes with miekg/dns: what it
// takes for canonical says the same as what that makes of it.
func FuzzPlain(f *testing.F) {
	q, err := newQuery("x.example", dns.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	request := buildRequest(q, true)
	request[0], request[1] = 1, 2
	plainSeeds := []string{
		goodA,
		"x.example. 60 IN CNAME y.example.\ny.example. 20 IN AAAA 2001:db8::1",
		"x.example. 60 IN MX 5 m.x.example.\n---\nx.example. 60 IN NS ns.example.",
		"x.example. 60 IN TXT \"a\" \"\"\nx.example. 60 IN SRV 1 2 3 s.example.\nx.example. 60 IN PTR p.",
		"---\nexample. 60 IN SOA a. b. 1 2 3 4 5",
		"x.example. 60 IN HTTPS 1 . alpn=h2",
	}
	for i, text := range plainSeeds {
		reply := zone(0, text)(request, false)
		if _, ok := isPlain(reply, q); ok != (i < len(plainSeeds)-1) {
			f.Errorf("plain %v: %s", ok, text)
		}
		f.Add(reply)
	}
	f.Add([]byte(nameOverEnd))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if !isReply(reply, request) {
			return
		}
		if _, ok := isPlain(reply, q); !ok {
			return
		}
		walked, err := canonical(reply, q)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := repack(reply, q)
		if err != nil {
			t.Fatalf("miekg/dns does not read %x: %v", reply, err)
		}
		var a, b dns.Msg
		if err := a.Unpack(walked); err != nil {
			t.Fatal(err)
		}
		if err := b.Unpack(packed); err != nil {
			t.Fatal(err)
		}
		// Text says all that the messages say, but for how they are packed.
		if a.String() != b.String() || !bytes.Equal(walked[:headerLen], packed[:headerLen]) {
			t.Fatalf("%x:\n%v\nmiekg/dns:\n%v", reply, &a, &b)
		}
	})
}
