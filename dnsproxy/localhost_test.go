package dnsproxy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// This host's names are answered whatever the servers and the table say, and before there is
// a table.
func TestLocalhost(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(dns.RcodeNameError, ""))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce, "search default.svc.cluster.local svc.cluster.local corp.example")}, HoldBeforeTable: time.Hour})
	none := []string{}
	for range 2 {
		for _, tc := range []struct {
			name  string
			qtype uint16
			want  []string
		}{
			{"localhost", dns.TypeA, []string{"localhost. 30 IN A 127.0.0.1"}},
			{"LocalHost", dns.TypeAAAA, []string{"LocalHost. 30 IN AAAA ::1"}},
			{"a.b.localhost", dns.TypeA, []string{"a.b.localhost. 30 IN A 127.0.0.1"}},
			{"localhost", dns.TypeANY, []string{"localhost. 30 IN A 127.0.0.1"}},
			{"localhost", dns.TypeMX, none}, {"localhost", dns.TypeNS, none}, {"localhost", dns.TypeCNAME, none},
			{"localhost.default.svc.cluster.local", dns.TypeA, []string{"localhost. 30 IN A 127.0.0.1", "localhost.default.svc.cluster.local. 30 IN CNAME localhost."}},
			{"a.localhost.svc.cluster.local", dns.TypeAAAA, []string{"a.localhost. 30 IN AAAA ::1", "a.localhost.svc.cluster.local. 30 IN CNAME a.localhost."}},
			{"localhost.corp.example", dns.TypeCNAME, []string{"localhost.corp.example. 30 IN CNAME localhost."}},
			{"localhost.corp.example", dns.TypeTXT, []string{"localhost.corp.example. 30 IN CNAME localhost."}},
		} {
			r := s.ask(t, "udp", tc.name, tc.qtype)
			if diff := cmp.Diff(tc.want, answers(r), cmpopts.EquateEmpty()); diff != "" || r.Rcode != dns.RcodeSuccess || !r.Authoritative {
				t.Errorf("%s %s: %s %s", tc.name, dns.TypeToString[tc.qtype], dns.RcodeToString[r.Rcode], diff)
			}
		}
		s.Swap(table.New([]table.Host{{Name: "localhost", Addrs: dnstest.IPs("10.0.0.1")}, {Name: "*.localhost", Addrs: dnstest.IPs("10.0.0.1")}, {Name: "*.cluster.local", Addrs: dnstest.IPs("10.0.0.1")}}))
	}
	if n := up.UDP.Load(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
	for i, name := range []string{"localhost.example", "notlocalhost", "localhost.corp.example.com", `a\.localhost`} {
		s.ask(t, "udp", name, dns.TypeA)
		if n := up.UDP.Load(); n != int64(i+1) {
			t.Errorf("%s: the server was asked %d times, want %d: it is somebody else's", name, n, i+1)
		}
	}
	if e, err := s.Explain(t.Context(), "a.localhost.corp.example", dns.TypeA); err != nil || e.Source != "search" || e.Host != "localhost" || e.Search != "corp.example" {
		t.Errorf("explained: %+v, %v", e, err)
	}
}

// A server that drops what is unusual makes nobody wait: such a question is refused here.
func TestUnusualQuestionsAreRefusedAtOnce(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Silence)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(testHosts))
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"aliyun.com", "x.example", "version.bind"} {
			for _, class := range []uint16{dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE, 0, 4711} {
				r := s.ask(t, network, name, dns.TypeA, dnstest.EDNS(1232, false), func(m *dns.Msg) { m.Question[0].Qclass = class })
				if r.Rcode != dns.RcodeRefused || r.IsEdns0() == nil || len(r.Question) != 1 || r.Question[0].Qclass != class {
					t.Errorf("%s, class %d: %v", name, class, r)
				}
			}
			for _, qtype := range []uint16{dns.TypeOPT, dns.TypeTKEY, dns.TypeTSIG, dns.TypeMAILA, dns.TypeMAILB} {
				if r := s.ask(t, network, name, qtype); r.Rcode != dns.RcodeNotImplemented {
					t.Errorf("%s, type %d: %v", name, qtype, r)
				}
			}
		}
	}
	if n := up.UDP.Load() + up.TCP.Load(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
}
