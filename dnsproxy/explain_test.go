package dnsproxy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

func TestExplain(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	now := dnstest.NewClock()
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}, Now: now.Now})
	s.Swap(table.New(testHosts))
	server := up.Addr.String()
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  Explanation
	}{
		{"aliyun.com", dns.TypeA, Explanation{Source: "vip", Host: "aliyun.com", VIP: true, Records: []string{"aliyun.com. 30 IN A 240.240.1.2"}}},
		{"aliyun.com.default.svc.cluster.local", dns.TypeA, Explanation{Source: "vip", Host: "aliyun.com", VIP: true, Search: dnstest.Domain,
			Records: []string{"aliyun.com.default.svc.cluster.local. 30 IN CNAME aliyun.com.", "aliyun.com. 30 IN A 240.240.1.2"}}},
		{"Dual.example", dns.TypeAAAA, Explanation{Source: "table", Host: "dual.example", Records: []string{"Dual.example. 30 IN AAAA fd00::1"}}},
		{"v6.example.default.svc.cluster.local.", dns.TypeA, Explanation{Source: "search", Host: "v6.example", Search: dnstest.Domain,
			Records: []string{"v6.example.default.svc.cluster.local. 30 IN CNAME v6.example."}}},
		{"a.b.deep.wild.example", dns.TypeAAAA, Explanation{Source: "wildcard", Host: "*.deep.wild.example", Wildcard: true}},
		{"2.1.240.240.in-addr.arpa", dns.TypePTR, Explanation{Source: "vip", Host: "aliyun.com", VIP: true, Records: []string{"2.1.240.240.in-addr.arpa. 30 IN PTR aliyun.com."}}},
		{"x.example", dns.TypeA, Explanation{Source: "upstream", Server: server, Records: []string{"x.example. 60 IN A 192.0.2.1"}}},
		{"x.example", dns.TypeA, Explanation{Source: "cache", Server: server, Records: []string{"x.example. 50 IN A 192.0.2.1"}, AgeSeconds: 10, RemainingTTL: 50}},
		{"x.example", dns.TypeA, Explanation{Source: "cache", Server: server, Records: []string{"x.example. 40 IN A 192.0.2.1"}, AgeSeconds: 20, RemainingTTL: 40}},
	} {
		got, err := s.Explain(t.Context(), tc.name, tc.qtype)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		tc.want.Name, tc.want.Type, tc.want.Rcode = dns.Fqdn(tc.name), dns.TypeToString[tc.qtype], "NOERROR"
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		now.Add(10 * time.Second)
	}
	if n := s.Stats().Requests; n != 0 {
		t.Errorf("explanations count as %d requests", n)
	}
	if out, err := json.Marshal(Explanation{Source: "vip"}); err != nil || !strings.Contains(string(out), `"source":"vip"`) {
		t.Errorf("%s %v", out, err)
	}
	for _, bad := range []string{"a..b", strings.Repeat("a", 64), strings.Repeat("a.", 200)} {
		if _, err := s.Explain(t.Context(), bad, dns.TypeA); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if _, err := s.Explain(t.Context(), "a", dns.TypeAXFR); err == nil {
		t.Error("AXFR: no error")
	}
}

func TestParseType(t *testing.T) {
	for name, want := range map[string]uint16{"A": 1, "aaaa": 28, "HTTPS": 65, "TYPE65": 65, "type1234": 1234} {
		if got, err := ParseType(name); err != nil || got != want {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "X", "TYPE", "TYPE70000", "TYPE-1"} {
		if got, err := ParseType(bad); err == nil {
			t.Errorf("%q is %d", bad, got)
		}
	}
}

// To look at an answer takes nothing from it: who uses its name has it asked for again before
// its end, however often it was explained.
func TestExplainTakesNoPrefetch(t *testing.T) {
	now := dnstest.NewClock()
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "x.example. 100 IN A 192.0.2.1"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), dnstest.AsksOnce)}, Now: now.Now})
	for range prefetchHits + 1 {
		s.ask(t, "udp", "x.example", dns.TypeA)
	}
	now.Add(91 * time.Second)
	for range prefetchHits {
		if e, err := s.Explain(t.Context(), "x.example", dns.TypeA); err != nil || e.Source != "cache" {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if n := s.Stats().Cache.Prefetches; n != 0 {
		t.Errorf("%d prefetches for what was only explained", n)
	}
	s.ask(t, "udp", "x.example", dns.TypeA)
	dnstest.WaitFor(t, "the new answer", func() bool { return s.ask(t, "udp", "x.example", dns.TypeA).Answer[0].Header().Ttl > 90 })
}
