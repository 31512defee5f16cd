package dnsproxy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

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
	s.Swap(NewTable(testHosts))
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
	now.add(rereadAfter)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("after resolv.conf changed: %v", r)
	}
}

func TestNeverAsksItself(t *testing.T) {
	path := writeConf(t)
	now := newClock()
	s := start(t, Config{ResolvConf: path, Now: now.Now})
	if err := os.WriteFile(path, []byte(nameserver(netip.MustParseAddrPort(s.addr))+"\noptions attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	now.add(rereadAfter)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", r)
	}
	if n := s.Stats().Requests; n != 1 {
		t.Errorf("%d requests for one query: it loops", n)
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
	if n := dead.udp.Load(); n < failuresInARow {
		t.Errorf("the dead server was asked %d times, want %d at least", n, failuresInARow)
	}
	if n := strings.Count(log.String(), "upstream is failing"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
	dead.set(zone(0, "---\n"))
	now.add(probeAfter)
	s.ask(t, "udp", "probe.example", dns.TypeA)
	waitFor(t, "the probe", func() bool {
		return s.Stats().Upstreams[0].State != "failing" && s.Stats().Upstreams[1].State != "failing"
	})
	if !strings.Contains(log.String(), "healthy again") {
		t.Errorf("no line about the recovery:\n%s", log)
	}
	for _, u := range s.Stats().Upstreams {
		if u.Server == dead.addr && (u.Failures+u.Overtaken < failuresInARow || u.Latency.Count != 1) {
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
	s.Swap(NewTable(testHosts))
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
