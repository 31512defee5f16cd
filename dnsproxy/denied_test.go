package dnsproxy

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// fickle is an upstream whose answer for A and for AAAA may change.
type fickle struct {
	a, aaaa          atomic.Pointer[func([]byte, bool) []byte]
	askedA, askedSix atomic.Int32
}

func (f *fickle) set(a, aaaa func([]byte, bool) []byte) {
	f.a.Store(&a)
	f.aaaa.Store(&aaaa)
	f.askedA.Store(0)
	f.askedSix.Store(0)
}

func (f *fickle) answer(r []byte, tcp bool) []byte {
	if n, _ := wire.SkipName(r, wire.HeaderLen); binary.BigEndian.Uint16(r[n:]) == wire.TypeAAAA {
		f.askedSix.Add(1)
		return (*f.aaaa.Load())(r, tcp)
	}
	f.askedA.Add(1)
	return (*f.a.Load())(r, tcp)
}

func (f *fickle) expect(t *testing.T, what string, a, aaaa int32) {
	t.Helper()
	if f.askedA.Load() != a || f.askedSix.Load() != aaaa {
		t.Errorf("%s: asked for A %d times and for AAAA %d times, want %d and %d", what, f.askedA.Load(), f.askedSix.Load(), a, aaaa)
	}
}

// That a name has no A because there is no such name is the answer about its AAAA, too.
func TestNoSuchNameIsOfBothTypes(t *testing.T) {
	const soa = "---\nexample. 60 IN SOA a. b. 1 2 3 4 60"
	const ttl = 60 * time.Second
	var (
		no    = dnstest.Zone(dns.RcodeNameError, soa)
		empty = dnstest.Zone(dns.RcodeSuccess, soa)
		fails = dnstest.Zone(dns.RcodeServerFailure, "")
		four  = dnstest.Zone(dns.RcodeSuccess, "x.example. 60 IN A 192.0.2.1")
		six   = dnstest.Zone(dns.RcodeSuccess, "x.example. 60 IN AAAA 2001:db8::1")
		alias = dnstest.Zone(dns.RcodeNameError, "x.example. 60 IN CNAME y.example.\n"+soa)
	)
	var f fickle
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, f.answer)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Now: now.Now})
	expect := func(what string, qtype uint16, rcode, records int) {
		t.Helper()
		m := s.ask(t, "udp", "x.example", qtype)
		if m.Rcode != rcode || len(m.Answer) != records || m.Question[0].Qtype != qtype {
			t.Errorf("%s: %v", what, m)
		}
	}
	f.set(no, six)
	expect("A is denied", dns.TypeA, dns.RcodeNameError, 0)
	expect("so is AAAA", dns.TypeAAAA, dns.RcodeNameError, 0)
	f.expect(t, "while the denial lasts", 1, 0)

	now.Add(ttl + time.Second)
	expect("AAAA first", dns.TypeAAAA, dns.RcodeNameError, 0)
	expect("A again", dns.TypeA, dns.RcodeNameError, 0)
	f.expect(t, "after the denial, which is renewed by asking for A", 2, 0)

	now.Add(ttl + time.Second)
	f.set(four, six)
	expect("the name has come", dns.TypeAAAA, dns.RcodeSuccess, 1)
	expect("with both", dns.TypeA, dns.RcodeSuccess, 1)
	f.expect(t, "as the name has come", 1, 1)

	now.Add(ttl + time.Second)
	f.set(empty, no)
	expect("AAAA is denied by a server that hides it", dns.TypeAAAA, dns.RcodeNameError, 0)
	f.set(four, no)
	expect("A is asked for all the same", dns.TypeA, dns.RcodeSuccess, 1)
	f.expect(t, "AAAA denied", 1, 0)

	now.Add(ttl + time.Second)
	f.set(alias, six)
	expect("an alias of nothing", dns.TypeA, dns.RcodeNameError, 1)
	expect("AAAA of an alias", dns.TypeAAAA, dns.RcodeSuccess, 1)
	f.expect(t, "alias", 1, 1)

	now.Add(ttl + time.Second)
	f.set(no, six)
	expect("denied once more", dns.TypeA, dns.RcodeNameError, 0)
	now.Add(ttl + time.Second)
	f.set(fails, six)
	expect("A fails: what AAAA was is given", dns.TypeAAAA, dns.RcodeSuccess, 1)
}
