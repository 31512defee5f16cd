package dnsproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// answers are a reply's answer records, sorted, one space between fields.
func answers(m *dns.Msg) []string {
	list := []string{}
	for _, rr := range m.Answer {
		list = append(list, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	slices.Sort(list)
	return list
}

// alias is the answer to host with the pod's domain: a CNAME to the host and, if it has
// one, its record.
func alias(host, record string) []string {
	list := []string{host + "." + dnstest.Domain + ". 30 IN CNAME " + host + "."}
	if record != "" {
		list = append(list, host+". 30 IN "+record)
	}
	slices.Sort(list)
	return list
}

func TestTableAnswers(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(dns.RcodeNameError, "---\nexample. 60 IN SOA a. b. 1 2 3 4 5"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(testHosts))
	nodata := []string{}
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  []string // nil: NXDOMAIN
	}{
		{"aliyun.com", dns.TypeA, []string{"aliyun.com. 30 IN A 240.240.1.2"}},
		{"aLiYuN.CoM", dns.TypeA, []string{"aLiYuN.CoM. 30 IN A 240.240.1.2"}},
		{"aliyun.com", dns.TypeAAAA, nodata},
		{"dual.example", dns.TypeAAAA, []string{"dual.example. 30 IN AAAA fd00::1"}},
		{"v6.example", dns.TypeA, nodata},
		{"aliyun.com", dns.TypeHTTPS, nodata},
		{"aliyun.com", dns.TypeANY, []string{"aliyun.com. 30 IN A 240.240.1.2"}},
		{"v6.example", dns.TypeANY, []string{"v6.example. 30 IN AAAA fd00::6"}},
		{"2.1.240.240.in-addr.arpa", dns.TypeANY, []string{"2.1.240.240.in-addr.arpa. 30 IN PTR aliyun.com."}},
		{"aliyun.com.default.svc.cluster.local", dns.TypeA, alias("aliyun.com", "A 240.240.1.2")},
		{"aliyun.com.default.svc.cluster.local", dns.TypeAAAA, alias("aliyun.com", "")},
		{"aliyun.com.default.svc.cluster.local", dns.TypeCNAME, alias("aliyun.com", "")},
		{"aliyun.com.default.svc.cluster.local", dns.TypeANY, alias("aliyun.com", "")},
		{"aliyun.com.default.svc.cluster.local", dns.TypeMX, nodata},
		{"AliYun.com.default.SVC.cluster.local", dns.TypeA, []string{
			"AliYun.com.default.SVC.cluster.local. 30 IN CNAME aliyun.com.", "aliyun.com. 30 IN A 240.240.1.2"}},
		{"aliyun.com.svc.cluster.local", dns.TypeA, nil},
		{"aliyun.com.cluster.local", dns.TypeA, nil},
		{"aliyun.comdefault.svc.cluster.local", dns.TypeA, nil},
		{"default.svc.cluster.local", dns.TypeA, nil},
		{"aliyun.com.local", dns.TypeA, nil},
		{"xaliyun.com", dns.TypeA, nil},
		{"www.aliyun.com", dns.TypeA, nil},
		{"a.wild.example", dns.TypeA, []string{"a.wild.example. 30 IN A 10.0.1.1"}},
		{"a.b.c.wild.example", dns.TypeA, []string{"a.b.c.wild.example. 30 IN A 10.0.1.1"}},
		{"a.deep.wild.example", dns.TypeA, []string{"a.deep.wild.example. 30 IN A 10.0.1.2"}},
		{"deep.wild.example", dns.TypeA, []string{"deep.wild.example. 30 IN A 10.0.1.1"}},
		{"own.wild.example", dns.TypeA, []string{"own.wild.example. 30 IN A 10.0.1.3"}},
		{"*.wild.example", dns.TypeA, []string{"*.wild.example. 30 IN A 10.0.1.1"}},
		{"wild.example", dns.TypeA, nil},
		{"a.wild.example.default.svc.cluster.local", dns.TypeA, alias("a.wild.example", "A 10.0.1.1")},
		{"a.deep.wild.example.default.svc.cluster.local", dns.TypeA, alias("a.deep.wild.example", "A 10.0.1.2")},
		{"a.wild.example.svc.cluster.local", dns.TypeA, nil},
		{"wild.example.default.svc.cluster.local", dns.TypeA, nil},
		{"2.1.240.240.in-addr.arpa", dns.TypePTR, []string{"2.1.240.240.in-addr.arpa. 30 IN PTR aliyun.com."}},
		{"2.1.240.240.in-addr.arpa", dns.TypeA, nodata},
		{"3.1.240.240.in-addr.arpa", dns.TypePTR, nil},
		{"1.0.0.10.in-addr.arpa", dns.TypePTR, nil}, // not virtual: the upstream's
		{`aliyun\.com`, dns.TypeA, nil},
		{".", dns.TypeA, nil},
	} {
		t.Run(tc.name+"/"+dns.TypeToString[tc.qtype], func(t *testing.T) {
			r := s.ask(t, "udp", tc.name, tc.qtype)
			want := dns.RcodeSuccess
			if tc.want == nil {
				want = dns.RcodeNameError
			}
			if r.Rcode != want {
				t.Fatalf("rcode %s, want %s", dns.RcodeToString[r.Rcode], dns.RcodeToString[want])
			}
			if diff := cmp.Diff(tc.want, answers(r), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			empty := !slices.ContainsFunc(r.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == tc.qtype || tc.qtype == dns.TypeANY })
			if empty && (len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA) {
				t.Errorf("negative answer without a SOA: %v", r.Ns)
			}
		})
	}
}

// A name of the mesh below any domain but the pod's own is somebody else's, and below
// that one only where resolvers try it first: the server of that name is not the mesh's.
func TestOtherSearchDomains(t *testing.T) {
	const real = "192.0.2.1"
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte { return dnstest.Zone(0, dnstest.NameIn(r)+" 60 IN A "+real)(r, tcp) })
	hosts := []table.Host{
		{Name: "db", Addrs: dnstest.IPs("240.240.0.1"), VIP: true}, {Name: "mongo.prod", Addrs: dnstest.IPs("240.240.0.2"), VIP: true},
		{Name: "api.example.com", Addrs: dnstest.IPs("240.240.0.3"), VIP: true}, {Name: "*.apps.example", Addrs: dnstest.IPs("240.240.0.4")},
	}
	const demo, search = "demo.svc.cluster.local", " svc.cluster.local cluster.local corp.example"
	for name, tc := range map[string]struct {
		domain, search string
		own            bool // names below demo are the mesh's
	}{
		"a pod's":                 {demo, demo + search, true},
		"in capitals":             {"Demo.svc.cluster.local.", demo + search, true},
		"another domain first":    {demo, "corp.example " + demo + search, false},
		"another namespace first": {"prod.svc.cluster.local", demo + search, false},
		"no search domain":        {demo, ".", false},
		"no domain of its own":    {".", demo + search, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), "search "+tc.search)}, Domain: tc.domain})
			s.Swap(table.New(hosts))
			for host, vip := range map[string]string{"db": "240.240.0.1", "mongo.prod": "240.240.0.2", "api.example.com": "240.240.0.3", "a.apps.example": "240.240.0.4"} {
				want := map[string]string{host: vip, host + "." + demo: real}
				if tc.own {
					want[host+"."+demo] = vip
				}
				for _, domain := range strings.Fields("example prod.svc.cluster.local" + search) {
					want[host+"."+domain] = real
				}
				for full, addr := range want {
					r := s.ask(t, "udp", full, dns.TypeA)
					if n := len(r.Answer); n == 0 || !strings.HasSuffix(r.Answer[n-1].String(), "\tA\t"+addr) {
						t.Errorf("%s: want %s: %v", full, addr, r.Answer)
					}
				}
			}
		})
	}
}

// Of the wildcards that cover a name, the most specific one answers, whether below the
// pod's domain or of it.
func TestWildcardsAroundThePodsDomain(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(dns.RcodeNameError, ""))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New([]table.Host{
		{Name: "*.svc.cluster.local", Addrs: dnstest.IPs("10.0.0.1")}, {Name: "*.example", Addrs: dnstest.IPs("10.0.0.2")},
		{Name: "*.a.example.default.svc.cluster.local", Addrs: dnstest.IPs("10.0.0.3")}, {Name: "*.b.a.example", Addrs: dnstest.IPs("10.0.0.4")},
		{Name: "*.c.example", Addrs: dnstest.IPs("10.0.0.5")}, {Name: "*.c.example.default.svc.cluster.local", Addrs: dnstest.IPs("10.0.0.6")},
	}))
	for name, want := range map[string]string{
		"x.default.svc.cluster.local": "10.0.0.1", "example.default.svc.cluster.local": "10.0.0.1", "x.example.default.svc.cluster.local": "10.0.0.2",
		"x.a.example.default.svc.cluster.local": "10.0.0.3", "x.b.a.example.default.svc.cluster.local": "10.0.0.4",
		"x.c.example.default.svc.cluster.local": "10.0.0.6", "x.c.example": "10.0.0.5",
	} {
		r := s.ask(t, "udp", name, dns.TypeA)
		if n := len(r.Answer); n == 0 || !strings.HasSuffix(r.Answer[n-1].String(), "\tA\t"+want) {
			t.Errorf("%s: want %s: %v", name, want, r.Answer)
		}
	}
}

// The most specific name decides, with whatever it has: one family, no answer of the type
// that was asked for, or nothing, and then it is the upstream's.
func TestMostSpecificNameDecides(t *testing.T) {
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		if name := dnstest.NameIn(r); name == "gap.wild.example." || name == "x.gap.wild.example." {
			return dnstest.Zone(0, name+" 60 IN A 192.0.2.1")(r, tcp)
		}
		return dnstest.Zone(dns.RcodeNameError, "---\nexample. 60 IN SOA a. b. 1 2 3 4 60")(r, tcp)
	})
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New([]table.Host{
		{Name: "*.wild.example", Addrs: dnstest.IPs("10.0.0.1", "fd00::1")}, {Name: "six.wild.example", Addrs: dnstest.IPs("fd00::6")},
		{Name: "gap.wild.example", Forwarded: true}, {Name: "*.gap.wild.example", Forwarded: true}, {Name: "*.b.gap.wild.example", Addrs: dnstest.IPs("10.0.0.2")},
	}))
	const none = "NXDOMAIN"
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"a.wild.example", dns.TypeA, "10.0.0.1"}, {"six.wild.example", dns.TypeA, ""}, {"six.wild.example", dns.TypeAAAA, "fd00::6"},
		{"six.wild.example.default.svc.cluster.local", dns.TypeA, ""}, {"x.six.wild.example", dns.TypeA, "10.0.0.1"},
		{"gap.wild.example", dns.TypeA, "192.0.2.1"}, {"x.gap.wild.example", dns.TypeA, "192.0.2.1"}, {"y.gap.wild.example", dns.TypeA, none},
		{"gap.wild.example.default.svc.cluster.local", dns.TypeA, none}, {"y.gap.wild.example", dns.TypeTXT, none}, {"x.b.gap.wild.example", dns.TypeA, "10.0.0.2"},
	} {
		for range 2 { // from the upstream, then from the cache
			r := s.ask(t, "udp", tc.name, tc.qtype)
			got := ""
			switch {
			case r.Rcode != dns.RcodeSuccess:
				got = dns.RcodeToString[r.Rcode]
			case len(r.Answer) > 0 && r.Answer[len(r.Answer)-1].Header().Rrtype == tc.qtype:
				fields := strings.Fields(r.Answer[len(r.Answer)-1].String())
				got = fields[len(fields)-1]
			}
			if got != tc.want {
				t.Errorf("%s %s: %q, want %q", tc.name, dns.TypeToString[tc.qtype], got, tc.want)
			}
		}
	}
	if e, err := s.Explain(t.Context(), "gap.wild.example", dns.TypeA); err != nil || e.Source != "cache" || e.Host != "" {
		t.Errorf("explained: %+v, %v", e, err)
	}
}

func TestTableOtherTypesFromUpstream(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "aliyun.com. 60 IN MX 10 mail.aliyun.com."))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(testHosts))
	if r := s.ask(t, "udp", "aliyun.com", dns.TypeMX); len(r.Answer) != 1 {
		t.Errorf("MX of the upstream is lost: %v", r)
	}
	up.Set(dnstest.Zone(dns.RcodeServerFailure, ""))
	if r := s.ask(t, "udp", "aliyun.com", dns.TypeTXT); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("a failure became %s", dns.RcodeToString[r.Rcode])
	}
	up.Set(dnstest.Zone(dns.RcodeNameError, "---\ncom. 60 IN SOA a. b. 1 2 3 4 5"))
	for range 2 { // from the upstream, then from the cache
		if r := s.ask(t, "udp", "aliyun.com", dns.TypeSRV); r.Rcode != dns.RcodeSuccess || len(r.Ns) != 1 {
			t.Errorf("want NODATA with a SOA, got %v", r)
		}
	}
}

func TestManyAddresses(t *testing.T) {
	var list []netip.Addr
	for i := range 300 {
		list = append(list, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}, TTL: 5})
	s.Swap(table.New([]table.Host{{Name: "many.example", Addrs: list}}))
	for _, tc := range []struct {
		network string
		size    uint16
		want    int // records
	}{{"udp", 0, 30}, {"udp", 100, 29}, {"udp", 1232, 74}, {"udp", 8192, 300}, {"tcp", 0, 300}, {"tcp", 512, 300}} {
		t.Run(fmt.Sprint(tc.network, tc.size), func(t *testing.T) {
			var change []func(*dns.Msg)
			if tc.size != 0 {
				change = append(change, dnstest.EDNS(tc.size, false))
			}
			r := s.ask(t, tc.network, "many.example", dns.TypeA, change...)
			if len(r.Answer) != tc.want || r.Truncated != (tc.want < 300) {
				t.Errorf("%d records, truncated %v; want %d", len(r.Answer), r.Truncated, tc.want)
			}
			seen := map[string]bool{}
			for _, rr := range r.Answer {
				seen[rr.(*dns.A).A.String()] = true
			}
			if len(seen) != tc.want {
				t.Errorf("%d different addresses in %d records", len(seen), tc.want)
			}
			if (r.IsEdns0() != nil) != (tc.size != 0) {
				t.Errorf("OPT in the reply: %v", r.IsEdns0())
			}
		})
	}
	first := map[string]bool{}
	for range 20 {
		first[s.ask(t, "tcp", "many.example", dns.TypeA).Answer[0].String()] = true
	}
	if len(first) < 2 {
		t.Error("20 answers begin with the same address: not shuffled")
	}
}

// Swap, the same again, another, nothing: the table is what was put in last.
func TestSwap(t *testing.T) {
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}})
	a := []table.Host{{Name: "a.example", Addrs: dnstest.IPs("10.0.0.1", "fd00::1")}, {Name: "*.w.example", Addrs: dnstest.IPs("10.0.0.2"), VIP: true}}
	b := []table.Host{{Name: "b.example", Addrs: dnstest.IPs("10.0.0.3")}}
	for i, hosts := range [][]table.Host{a, a, b, {}} {
		s.Swap(table.New(hosts))
		got := s.Table().Hosts()
		want := slices.Clone(hosts)
		slices.SortFunc(want, func(a, b table.Host) int { return strings.Compare(a.Name, b.Name) })
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("swap %d: %s", i, diff)
		}
	}
	if r := s.ask(t, "udp", "b.example", dns.TypeA); len(r.Answer) != 0 {
		t.Errorf("a name that left is still answered: %v", r)
	}
}

func TestEDNS(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, "x.example. 60 IN A 192.0.2.1"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(testHosts))
	for _, name := range []string{"aliyun.com", "x.example", "x.example"} { // table, upstream, cache
		r := s.ask(t, "udp", name, dns.TypeA, dnstest.EDNS(1400, true))
		opt := r.IsEdns0()
		if opt == nil || !opt.Do() || opt.UDPSize() != wire.OwnUDPSize || len(r.Answer) != 1 {
			t.Errorf("%s: %v", name, r)
		}
		if r := s.ask(t, "udp", name, dns.TypeA); r.IsEdns0() != nil {
			t.Errorf("%s: OPT for a client that sent none", name)
		}
	}
	s.ask(t, "udp", "y.example", dns.TypeA, dnstest.EDNS(1400, true))
	if opt := up.Request(t).IsEdns0(); opt == nil || !opt.Do() || opt.UDPSize() != wire.OwnUDPSize {
		t.Errorf("the upstream got %v", opt)
	}
	r := s.ask(t, "udp", "aliyun.com", dns.TypeA, dnstest.EDNS(1400, false), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) })
	if r.Rcode != dns.RcodeBadVers || r.IsEdns0().Version() != 0 {
		t.Errorf("version 1: %v", r)
	}
}

// compareAnswer checks the lookup against a slow one on the table's list.
func compareAnswer(t *testing.T, table *table.Table, q *wire.Query, hit bool) {
	t.Helper()
	if q.Type != wire.TypeA && q.Type != wire.TypeAAAA || q.Class != dns.ClassINET {
		return
	}
	name, _, err := dns.UnpackDomainName(q.Name(), 0)
	if err != nil || strings.Contains(name, `\`) {
		return
	}
	name = strings.TrimSuffix(name, ".")
	want := false
	for _, s := range []string{"", dnstest.Domain} {
		base := name
		if s != "" {
			var ok bool
			if base, ok = strings.CutSuffix(name, "."+s); !ok {
				continue
			}
		}
		for _, h := range table.Hosts() {
			suffix, wild := strings.CutPrefix(h.Name, "*")
			want = want || h.Name == base || wild && strings.HasSuffix(base, suffix)
		}
	}
	if hit != want {
		t.Fatalf("%q in the table: %v, want %v", name, hit, want)
	}
}

// A query that the table did not answer goes on with what was found, whatever table comes
// into force while it waits: it is looked up once.
func TestMissIsLookedUpOnce(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(0, dnstest.GoodA))
	s := newServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
	s.Swap(table.New(nil))
	c, q := chainOf(s), new(wire.Query)
	defer c.flights.Transport.End()
	_, f, done := c.respond(q, dnstest.Question(t, "x.example", dns.TypeA), 0, nil)
	if done {
		t.Fatal("no miss")
	}
	s.Swap(table.New([]table.Host{{Name: "x.example", Addrs: dnstest.IPs("240.240.0.1")}}))
	m := new(dns.Msg)
	if err := m.Unpack(c.wait(t.Context(), q, f)); err != nil || len(m.Answer) != 1 || m.Answer[0].String() != "x.example.\t60\tIN\tA\t192.0.2.1" {
		t.Errorf("%v %v", err, m)
	}
}
