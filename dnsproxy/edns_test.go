package dnsproxy

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// hasOPT says whether a question has an OPT record: nothing else follows one here.
func hasOPT(request []byte) bool { return request[11] != 0 }

// badVers is BADVERS to a request: the upper bits of its OPT record's RCODE.
func badVers(request []byte, _ bool) []byte {
	var q dns.Msg
	if err := q.Unpack(request); err != nil {
		panic(err)
	}
	m := new(dns.Msg).SetReply(&q)
	m.SetEdns0(512, false)
	m.Rcode = dns.RcodeBadVers
	reply, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return reply
}

// echo is the question as it came, as an answer.
func echo(request []byte, _ bool) []byte {
	reply := bytes.Clone(request)
	reply[2], reply[3] = 0x81, 0x80
	return reply
}

// unreadable is an answer to the question that nobody can read.
func unreadable(request []byte, tcp bool) []byte {
	reply := dnstest.Zone(0, dnstest.NameIn(request)+" 60 IN A 192.0.2.1")(request, tcp)
	return reply[:len(reply)-20]
}

// withoutEDNS is a server that answers as usual what has no OPT record.
func withoutEDNS(otherwise func([]byte, bool) []byte) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		if hasOPT(request) {
			return otherwise(request, tcp)
		}
		return dnstest.Zone(0, dnstest.NameIn(request)+" 60 IN A 192.0.2.1")(request, tcp)
	}
}

// Whatever a server makes of EDNS, its answers without count; it is asked without at once for
// some time then, and with it again later.
func TestServersWithoutEDNS(t *testing.T) {
	cut := dnstest.TruncatedOverUDP(dnstest.Silence) // and no answer over TCP
	for name, reply := range map[string]func([]byte, bool) []byte{
		"drop": dnstest.Silence, "FORMERR": dnstest.RefusesEDNS(nil, dns.RcodeFormatError), "NOTIMP": dnstest.RefusesEDNS(nil, dns.RcodeNotImplemented),
		"SERVFAIL": dnstest.Zone(dns.RcodeServerFailure, ""), "REFUSED": dnstest.Zone(dns.RcodeRefused, ""), "BADVERS": badVers,
		"TC without TCP": cut, "garbage": func([]byte, bool) []byte { return []byte("garbage garbage garbage") },
		"unreadable answer": unreadable,
	} {
		for _, options := range []string{"options attempts:2", "options attempts:1", "options use-vc"} {
			t.Run(name+" "+options, func(t *testing.T) {
				var withOPT atomic.Int64
				deaf := withoutEDNS(reply)
				up := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
					if hasOPT(request) {
						withOPT.Add(1)
					}
					return deaf(request, tcp)
				})
				now := dnstest.NewClock()
				s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), options)}, Now: now.Now})
				ask := func(name string) {
					t.Helper()
					if r := s.ask(t, "udp", name, dns.TypeA, dnstest.EDNS(1232, false)); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 || r.IsEdns0() == nil {
						t.Errorf("%v", r)
					}
				}
				ask("first.example")
				asked := withOPT.Load()
				ask("second.example")
				if n := withOPT.Load(); asked == 0 || n != asked {
					t.Errorf("%d questions with OPT, and then %d", asked, n)
				}
				now.Add(plainlyFor)
				ask("third.example")
				if withOPT.Load() == asked {
					t.Error("EDNS is never tried again")
				}
			})
		}
	}
}

// An OPT record that is merely sent back is as good as one of the server's.
func TestEchoedOPT(t *testing.T) {
	up := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
		if strings.HasPrefix(dnstest.NameIn(request), "nothing") {
			return echo(request, tcp)
		}
		plain := bytes.Clone(request[:len(request)-wire.OptLen])
		plain[11] = 0
		reply := append(dnstest.Zone(0, dnstest.NameIn(request)+" 60 IN A 192.0.2.1")(plain, tcp), request[len(request)-wire.OptLen:]...)
		reply[11] = 1
		return reply
	})
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}})
	for name, want := range map[string]int{"some.example": 1, "nothing.example": 0} {
		if r := s.ask(t, "udp", name, dns.TypeA); r.Rcode != dns.RcodeSuccess || len(r.Answer) != want {
			t.Errorf("%v", r)
		}
	}
	if n := up.UDP.Load(); n != 2 {
		t.Errorf("%d questions for 2", n)
	}
}

// A server that speaks EDNS means it when it fails: it is not asked twice.
func TestFailureIsNotEDNS(t *testing.T) {
	up := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
		if strings.HasPrefix(dnstest.NameIn(request), "bad") {
			return dnstest.Zone(dns.RcodeServerFailure, "")(request, tcp)
		}
		return dnstest.Zone(0, dnstest.NameIn(request)+" 60 IN A 192.0.2.1")(request, tcp)
	})
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}})
	for i, name := range []string{"good.example", "bad.example", "bad2.example"} {
		s.ask(t, "udp", name, dns.TypeA)
		if n := up.UDP.Load(); n != int64(i+1) {
			t.Fatalf("%d questions for %d", n, i+1)
		}
	}
	if up.Request(t).IsEdns0() == nil {
		t.Error("it is asked without EDNS")
	}
}

// Where there is no answer without EDNS either, the one with it counts, and its name is right.
func TestNoAnswerWithoutEDNS(t *testing.T) {
	log := new(dnstest.Log)
	up := dnstest.NewUpstream(t, badVers)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Log: slog.New(slog.NewTextHandler(log, nil))})
	if r := s.ask(t, "udp", "x.example", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", r)
	}
	if u := s.Upstreams()[0]; !strings.Contains(u.Error, "rcode BADVERS") {
		t.Errorf("%+v", u)
	}
	if got := wire.RcodeName(dns.RcodeNameError) + " " + wire.RcodeName(3000); got != "NXDOMAIN RCODE3000" {
		t.Error(got)
	}
	if strings.Contains(log.String(), "without EDNS only") {
		t.Errorf("it has not answered:\n%s", log)
	}
}
