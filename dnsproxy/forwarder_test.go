package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const goodA = "x.example. 60 IN A 192.0.2.1"

// shortTimeout keeps the tests of dead servers short; nothing asserts it.
const shortTimeout = 150 * time.Millisecond

func TestForwardFaults(t *testing.T) {
	answer := zone(0, goodA)
	patched := func(f func(reply []byte)) func([]byte, bool) []byte {
		return func(request []byte, tcp bool) []byte {
			reply := answer(request, tcp)
			f(reply)
			return reply
		}
	}
	for name, tc := range map[string]struct {
		reply func([]byte, bool) []byte
		want  int // with no other server
	}{
		"good":          {answer, dns.RcodeSuccess},
		"silence":       {silence, dns.RcodeServerFailure},
		"servfail":      {zone(dns.RcodeServerFailure, ""), dns.RcodeServerFailure},
		"refused":       {zone(dns.RcodeRefused, ""), dns.RcodeRefused},
		"nxdomain":      {zone(dns.RcodeNameError, ""), dns.RcodeNameError},
		"wrong id":      {patched(func(r []byte) { r[0]++ }), dns.RcodeServerFailure},
		"other name":    {patched(func(r []byte) { r[13]++ }), dns.RcodeServerFailure},
		"other type":    {patched(func(r []byte) { r[headerLen+12] = 28 }), dns.RcodeServerFailure},
		"upper case":    {patched(func(r []byte) { r[13] -= 32 }), dns.RcodeSuccess},
		"no reply bit":  {patched(func(r []byte) { r[2] &^= 0x80 }), dns.RcodeServerFailure},
		"garbage":       {func([]byte, bool) []byte { return []byte("garbage garbage garbage") }, dns.RcodeServerFailure},
		"cut record":    {func(r []byte, tcp bool) []byte { a := answer(r, tcp); return a[:len(a)-13] }, dns.RcodeServerFailure},
		"empty":         {func([]byte, bool) []byte { return []byte{} }, dns.RcodeServerFailure},
		"huge datagram": {func(r []byte, tcp bool) []byte { return huge(answer(r, tcp), tcp) }, dns.RcodeSuccess},
		"tc":            {truncatedOverUDP(answer), dns.RcodeSuccess},
		"always tc":     {patched(func(r []byte) { r[2] |= flagTC >> 8 }), dns.RcodeServerFailure},
		"lame":          {notRecursive(zone(0, "---\nexample. 60 IN NS ns.example.")), dns.RcodeServerFailure},
		"another name":  {zone(0, "y.example. 60 IN A 192.0.2.66"), dns.RcodeServerFailure},
		"no edns":       {refusesEDNS(answer, dns.RcodeFormatError), dns.RcodeSuccess},
		"edns notimp":   {refusesEDNS(answer, dns.RcodeNotImplemented), dns.RcodeSuccess},
	} {
		t.Run(name, func(t *testing.T) {
			for _, parallel := range []bool{false, true} {
				bad := newFakeUpstream(t, tc.reply)
				alone := start(t, Config{ResolvConf: writeConf(t, nameserver(bad.addr)), ForwardTimeout: shortTimeout, ForwardParallel: parallel})
				if r := alone.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != tc.want {
					t.Errorf("parallel %v, alone: %s, want %s", parallel, dns.RcodeToString[r.Rcode], dns.RcodeToString[tc.want])
				}
				if tc.want == dns.RcodeNameError {
					continue
				}
				good := newFakeUpstream(t, answer)
				both := start(t, Config{ResolvConf: writeConf(t, nameserver(bad.addr), nameserver(good.addr)), ForwardTimeout: shortTimeout, ForwardParallel: parallel})
				r := both.ask(t, "udp", "X.example", dns.TypeA)
				if r.Rcode != dns.RcodeSuccess || len(r.Answer) == 0 || r.Question[0].Name != "X.example." {
					t.Errorf("parallel %v, with a good second server: %v", parallel, r)
				}
			}
		})
	}
}

// huge pads a reply over our buffer with records, on UDP only.
func huge(reply []byte, tcp bool) []byte {
	if tcp {
		return reply
	}
	return append(reply, make([]byte, 2*upstreamBuffer)...)
}

func truncatedOverUDP(answer func([]byte, bool) []byte) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		if tcp {
			return answer(request, tcp)
		}
		reply := bytes.Clone(request)
		binary.BigEndian.PutUint16(reply[2:], flagQR|flagTC)
		return reply
	}
}

func refusesEDNS(answer func([]byte, bool) []byte, rcode int) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		if request[11] == 0 {
			return answer(request, tcp)
		}
		reply := bytes.Clone(request[:headerLen])
		binary.BigEndian.PutUint16(reply[2:], flagQR|uint16(rcode))
		copy(reply[4:], make([]byte, 8))
		return reply
	}
}

// notRecursive is what an answer is of a server that asks no other.
func notRecursive(answer func([]byte, bool) []byte) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		reply := answer(request, tcp)
		reply[3] &^= flagRA
		return reply
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

func TestForwardBigAnswer(t *testing.T) {
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, "x.example. 60 IN A 192.0.2.%d\n", i)
	}
	up := newFakeUpstream(t, truncatedOverUDP(zone(0, text.String())))
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr), asksOnce)})
	for _, tc := range []struct {
		network   string
		size      uint16
		truncated bool
	}{{"udp", 0, true}, {"udp", 1232, true}, {"udp", 4096, false}, {"tcp", 0, false}} {
		r := s.ask(t, tc.network, "x.example", dns.TypeA, func(m *dns.Msg) {
			if tc.size > 0 {
				m.SetEdns0(tc.size, false)
			}
		})
		r.Compress = true
		if r.Truncated != tc.truncated || (len(r.Answer) == 100) == tc.truncated {
			t.Errorf("%s %d: truncated %v, %d records", tc.network, tc.size, r.Truncated, len(r.Answer))
		}
		if limit := max(int(tc.size), 512); tc.network == "udp" && r.Len() > limit {
			t.Errorf("%s %d: reply of %d bytes", tc.network, tc.size, r.Len())
		}
	}
	if up.tcp.Load() != 1 {
		t.Errorf("%d queries over TCP, the cache should have spared the rest", up.tcp.Load())
	}
}

func TestNoUpstream(t *testing.T) {
	log := new(lockedBuffer)
	path := writeConf(t, "search x", "nameserver nonsense")
	now := newClock()
	s := start(t, Config{ResolvConf: path, Log: slog.New(slog.NewTextHandler(log, nil)), Now: now.Now})
	s.Swap(NewTable(testHosts, 0))
	for range 3 {
		if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("forwarded name: %v", r)
		}
	}
	if r := s.ask(t, "udp", "aliyun.com", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("table name: %v", r)
	}
	if n := strings.Count(log.String(), "no dns upstream"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
	// Servers appear: used without a restart.
	up := newFakeUpstream(t, zone(0, goodA))
	if err := os.WriteFile(path, []byte(nameserver(up.addr)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	now.add(2 * statEvery)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("after resolv.conf changed: %v", r)
	}
}

func TestNeverAsksItself(t *testing.T) {
	path := writeConf(t)
	s := start(t, Config{ResolvConf: path, Now: newClock().Now})
	s.forwarder.mu.Lock()
	s.forwarder.current = s.forwarder.adopt(ResolvConf{Attempts: 1, Servers: []netip.AddrPort{netip.MustParseAddrPort(s.addr)}})
	s.forwarder.mu.Unlock()
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", r)
	}
	if n := s.Stats().Requests; n != 1 {
		t.Errorf("%d requests for one query: it loops", n)
	}
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

// A server that fails is named once, is asked last, and comes back.
func TestUpstreamHealth(t *testing.T) {
	log := new(lockedBuffer)
	now := newClock()
	dead, good := newFakeUpstream(t, silence), newFakeUpstream(t, zone(0, "---\n"))
	s := start(t, Config{
		ResolvConf: writeConf(t, nameserver(dead.addr), nameserver(good.addr)), ForwardTimeout: shortTimeout,
		Log: slog.New(slog.NewTextHandler(log, nil)), Now: now.Now,
	})
	for i := range 6 {
		if r := s.ask(t, "udp", fmt.Sprintf("n%d.example", i), dns.TypeA); r.Rcode != dns.RcodeSuccess {
			t.Errorf("query %d: %v", i, r)
		}
	}
	if n := dead.udp.Load(); n < failingAfter {
		t.Errorf("the dead server was asked %d times, want %d at least", n, failingAfter)
	}
	if n := strings.Count(log.String(), "upstream is failing"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
	dead.set(zone(0, "---\n"))
	now.add(probeEvery)
	s.ask(t, "udp", "probe.example", dns.TypeA)
	waitFor(t, "the probe", func() bool {
		return s.Stats().Upstreams[0].State != "failing" && s.Stats().Upstreams[1].State != "failing"
	})
	if !strings.Contains(log.String(), "healthy again") {
		t.Errorf("no line about the recovery:\n%s", log)
	}
	for _, u := range s.Stats().Upstreams {
		if u.Server == dead.addr && (u.Failures+u.Overtaken < failingAfter || u.Latency.Count != 1) {
			t.Errorf("counters of the dead server: %+v", u)
		}
	}
}

// More queries than can wait get SERVFAIL at once; what waits is answered.
func TestInflightBound(t *testing.T) {
	release := make(chan struct{})
	answer := zone(0, "---\n")
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr))})
	for range MaxInflight {
		s.inflight <- struct{}{}
	}
	for _, network := range []string{"udp", "tcp"} {
		if r := s.ask(t, network, "x.example", dns.TypeA, edns(1232, false)); r.Rcode != dns.RcodeServerFailure || r.IsEdns0() == nil {
			t.Errorf("%s: %v", network, r)
		}
	}
	if n := s.Stats().Refused; n != 2 {
		t.Errorf("refused %d", n)
	}
	for range MaxInflight {
		<-s.inflight
	}
	close(release)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
}

func TestHoldBeforeTable(t *testing.T) {
	up := newFakeUpstream(t, zone(0, "aliyun.com. 60 IN A 192.0.2.1"))
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr)), HoldBeforeTable: time.Minute})
	got := make(chan *dns.Msg)
	go func() { got <- s.ask(t, "udp", "aliyun.com", dns.TypeA) }()
	waitFor(t, "a held query", func() bool { return s.Stats().Inflight == 1 })
	s.Swap(NewTable(testHosts, 0))
	if r := <-got; answers(r)[0] != "aliyun.com. 30 IN A 240.240.1.2" {
		t.Errorf("held query: %v", r)
	}
	for name, hold := range map[string]time.Duration{"none": 0, "over": time.Millisecond} {
		s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr)), HoldBeforeTable: hold})
		if r := s.ask(t, "udp", "aliyun.com", dns.TypeA); answers(r)[0] != "aliyun.com. 60 IN A 192.0.2.1" {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func FuzzUpstreamAnswer(f *testing.F) {
	q, err := newQuery("x.example", dns.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	request := buildRequest(q, true)
	request[0], request[1] = 1, 2
	f.Add(zone(0, goodA)(request, false))
	f.Add(zone(3, "---\nexample. 60 IN SOA a. b. 1 2 3 4 5")(request, false))
	f.Add(refusesEDNS(nil, 1)(request, false))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if !isReply(reply, request) {
			return
		}
		msg, err := canonical(reply, q)
		if err != nil {
			return
		}
		now := time.Now()
		c := Config{CacheEntries: 10, CacheBytes: 1 << 20, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}
		h, err := newCache(c, newForwarder(c))
		if err != nil {
			t.Fatal(err)
		}
		key := appendKey(nil, q)
		h.put(string(key), answer{msg: bytes.Clone(msg), source: SourceUpstream})
		now = now.Add(time.Second)
		for _, m := range [][]byte{msg, given(h, key)} {
			if m == nil {
				continue
			}
			var parsed dns.Msg
			if err := parsed.Unpack(finish(q, m)); err != nil || len(parsed.Question) != 1 || parsed.Question[0].Name != "x.example." {
				t.Fatalf("%v: %v", err, parsed)
			}
		}
	})
}

// given is what h has for key, nil when nothing.
func given(h *cache, key []byte) []byte {
	e, _ := h.find(key)
	if e == nil {
		return nil
	}
	return e.append(nil, e.age(h.now())).msg
}

// clock is a time that only the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// lockedBuffer is a log that a test reads while the server writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// waitFor polls until cond holds; it fails after long.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
