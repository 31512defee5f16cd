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

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// shortTimeout keeps the tests of dead servers short; nothing asserts it.
const shortTimeout = 150 * time.Millisecond

func TestForwardFaults(t *testing.T) {
	answer := dnstest.Zone(0, dnstest.GoodA)
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
		"silence":       {dnstest.Silence, dns.RcodeServerFailure},
		"servfail":      {dnstest.Zone(dns.RcodeServerFailure, ""), dns.RcodeServerFailure},
		"refused":       {dnstest.Zone(dns.RcodeRefused, ""), dns.RcodeRefused},
		"nxdomain":      {dnstest.Zone(dns.RcodeNameError, ""), dns.RcodeNameError},
		"wrong id":      {patched(func(r []byte) { r[0]++ }), dns.RcodeServerFailure},
		"other name":    {patched(func(r []byte) { r[13]++ }), dns.RcodeServerFailure},
		"other type":    {patched(func(r []byte) { r[wire.HeaderLen+12] = 28 }), dns.RcodeServerFailure},
		"upper case":    {patched(func(r []byte) { r[13] -= 32 }), dns.RcodeSuccess},
		"no reply bit":  {patched(func(r []byte) { r[2] &^= 0x80 }), dns.RcodeServerFailure},
		"garbage":       {func([]byte, bool) []byte { return []byte("garbage garbage garbage") }, dns.RcodeServerFailure},
		"cut record":    {func(r []byte, tcp bool) []byte { a := answer(r, tcp); return a[:len(a)-13] }, dns.RcodeServerFailure},
		"empty":         {func([]byte, bool) []byte { return []byte{} }, dns.RcodeServerFailure},
		"huge datagram": {func(r []byte, tcp bool) []byte { return dnstest.Huge(answer(r, tcp), tcp) }, dns.RcodeSuccess},
		"tc":            {dnstest.TruncatedOverUDP(answer), dns.RcodeSuccess},
		"always tc":     {patched(func(r []byte) { r[2] |= wire.FlagTC >> 8 }), dns.RcodeServerFailure},
		"lame":          {dnstest.NotRecursive(dnstest.Zone(0, "---\nexample. 60 IN NS ns.example.")), dns.RcodeServerFailure},
		"another name":  {dnstest.Zone(0, "y.example. 60 IN A 192.0.2.66"), dns.RcodeServerFailure},
		"no edns":       {dnstest.RefusesEDNS(answer, dns.RcodeFormatError), dns.RcodeSuccess},
		"edns notimp":   {dnstest.RefusesEDNS(answer, dns.RcodeNotImplemented), dns.RcodeSuccess},
	} {
		t.Run(name, func(t *testing.T) {
			for _, parallel := range []bool{false, true} {
				bad := dnstest.NewUpstream(t, tc.reply)
				alone := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(bad.Addr)), Timeout: shortTimeout, Parallel: parallel}})
				if r := alone.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != tc.want {
					t.Errorf("parallel %v, alone: %s, want %s", parallel, dns.RcodeToString[r.Rcode], dns.RcodeToString[tc.want])
				}
				if tc.want == dns.RcodeNameError {
					continue
				}
				good := dnstest.NewUpstream(t, answer)
				both := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(bad.Addr), dnstest.Nameserver(good.Addr)), Timeout: shortTimeout, Parallel: parallel}})
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
	up := dnstest.NewUpstream(t, dnstest.TruncatedOverUDP(dnstest.Zone(0, text.String())))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}})
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
	if up.TCP.Load() != 1 {
		t.Errorf("%d queries over TCP, the cache should have spared the rest", up.TCP.Load())
	}
}

func TestNoUpstream(t *testing.T) {
	log := new(dnstest.Log)
	path := dnstest.WriteConf(t, "search x", "nameserver nonsense")
	now := dnstest.NewClock()
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: path}, Log: slog.New(slog.NewTextHandler(log, nil)), Now: now.Now})
	s.Swap(table.New(testHosts))
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
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	if err := os.WriteFile(path, []byte(dnstest.Nameserver(up.Addr)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	now.Add(rereadAfter)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("after resolv.conf changed: %v", r)
	}
}

func TestNeverAsksItself(t *testing.T) {
	path := dnstest.WriteConf(t)
	now := dnstest.NewClock()
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: path}, Now: now.Now})
	if err := os.WriteFile(path, []byte(dnstest.Nameserver(netip.MustParseAddrPort(s.addr))+"\noptions attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	now.Add(rereadAfter)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", r)
	}
	if n := s.Stats().Requests; n != 1 {
		t.Errorf("%d requests for one query: it loops", n)
	}
}

// A server that fails is named once, is asked last, and comes back.
func TestUpstreamHealth(t *testing.T) {
	log := new(dnstest.Log)
	now := dnstest.NewClock()
	dead, good := dnstest.NewUpstream(t, dnstest.Silence), dnstest.NewUpstream(t, dnstest.Zone(0, "---\n"))
	s := start(t, Config{
		Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(dead.Addr), dnstest.Nameserver(good.Addr)), Timeout: shortTimeout},
		Log:      slog.New(slog.NewTextHandler(log, nil)),
		Now:      now.Now,
	})
	for i := range 6 {
		if r := s.ask(t, "udp", fmt.Sprintf("n%d.example", i), dns.TypeA); r.Rcode != dns.RcodeSuccess {
			t.Errorf("query %d: %v", i, r)
		}
	}
	if n := dead.UDP.Load(); n < failuresInARow {
		t.Errorf("the dead server was asked %d times, want %d at least", n, failuresInARow)
	}
	if n := strings.Count(log.String(), "upstream is failing"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
	dead.Set(dnstest.Zone(0, "---\n"))
	now.Add(probeAfter)
	s.ask(t, "udp", "probe.example", dns.TypeA)
	dnstest.WaitFor(t, "the probe", func() bool {
		return s.Stats().Upstreams[0].State != "failing" && s.Stats().Upstreams[1].State != "failing"
	})
	if !strings.Contains(log.String(), "healthy again") {
		t.Errorf("no line about the recovery:\n%s", log)
	}
	for _, u := range s.Stats().Upstreams {
		if u.Server == dead.Addr && (u.Failures+u.Overtaken < failuresInARow || u.Latency.Count != 1) {
			t.Errorf("counters of the dead server: %+v", u)
		}
	}
}

// More queries than can wait get SERVFAIL at once; what waits is answered.
func TestInflightBound(t *testing.T) {
	release := make(chan struct{})
	answer := dnstest.Zone(0, "---\n")
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte { <-release; return answer(r, tcp) })
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	for range maxInflight {
		s.inflight <- struct{}{}
	}
	for _, network := range []string{"udp", "tcp"} {
		if r := s.ask(t, network, "x.example", dns.TypeA, dnstest.EDNS(1232, false)); r.Rcode != dns.RcodeServerFailure || r.IsEdns0() == nil {
			t.Errorf("%s: %v", network, r)
		}
	}
	if n := s.Stats().Refused; n != 2 {
		t.Errorf("refused %d", n)
	}
	for range maxInflight {
		<-s.inflight
	}
	close(release)
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("%v", r)
	}
}

func TestHoldBeforeTable(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "aliyun.com. 60 IN A 192.0.2.1"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}, HoldBeforeTable: time.Minute})
	got := make(chan *dns.Msg)
	go func() { got <- s.ask(t, "udp", "aliyun.com", dns.TypeA) }()
	dnstest.WaitFor(t, "a held query", func() bool { return s.Stats().Inflight == 1 })
	s.Swap(table.New(testHosts))
	if r := <-got; answers(r)[0] != "aliyun.com. 30 IN A 240.240.1.2" {
		t.Errorf("held query: %v", r)
	}
	for name, hold := range map[string]time.Duration{"none": 0, "over": time.Millisecond} {
		s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}, HoldBeforeTable: hold})
		if r := s.ask(t, "udp", "aliyun.com", dns.TypeA); answers(r)[0] != "aliyun.com. 60 IN A 192.0.2.1" {
			t.Errorf("%s: %v", name, r)
		}
	}
}
