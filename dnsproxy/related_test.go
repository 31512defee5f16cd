package dnsproxy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// Of an upstream's answer there is kept and handed on what was asked for.
func TestOnlyWhatWasAsked(t *testing.T) {
	const bank = "bank.test. 9999 IN A 192.0.2.66"
	for name, tc := range map[string]struct {
		qtype        uint16
		answer, more string // what the server says in the answer and behind it
		bad          string // lines that must not arrive
	}{
		"plain":               {dns.TypeA, dnstest.GoodA, "", ""},
		"a record more":       {dns.TypeA, dnstest.GoodA + "\n" + bank, "", bank},
		"a record first":      {dns.TypeA, bank + "\n" + dnstest.GoodA, "", bank},
		"chain":               {dns.TypeA, "x.example. 60 IN CNAME Y.example.\ny.example. 60 IN CNAME z.test.\nz.test. 60 IN A 192.0.2.1", "", ""},
		"chain in disorder":   {dns.TypeA, "z.test. 60 IN A 192.0.2.1\ny.example. 60 IN CNAME z.test.\nx.example. 60 IN CNAME y.example.", "", ""},
		"beside the chain":    {dns.TypeA, "x.example. 60 IN CNAME y.example.\n" + bank + "\ny.example. 60 IN A 192.0.2.1", "", bank},
		"alias of another":    {dns.TypeA, dnstest.GoodA + "\nother.test. 60 IN CNAME bank.test.\n" + bank, "", "other.test. 60 IN CNAME bank.test.\n" + bank},
		"chain without end":   {dns.TypeA, "x.example. 60 IN CNAME y.example.\ny.example. 60 IN CNAME x.example.", "", ""},
		"DNAME":               {dns.TypeA, "example. 60 IN DNAME test.\nx.example. 60 IN CNAME x.test.\nx.test. 60 IN A 192.0.2.1", "", ""},
		"additional":          {dns.TypeA, dnstest.GoodA, "---\n---\n" + bank, bank},
		"additional, alone":   {dns.TypeTXT, "", "---\nexample. 60 IN SOA a. b. 1 2 3 4 60\n---\n" + bank, bank},
		"of the question":     {dns.TypeTXT, "x.example. 60 IN TXT a", "---\n---\n" + dnstest.GoodA, dnstest.GoodA},
		"address of a target": {dns.TypeSRV, "x.example. 60 IN SRV 1 2 3 s.example.", "---\n---\ns.example. 60 IN A 192.0.2.1\n" + bank, bank},
		"of a mail server":    {dns.TypeMX, "x.example. 60 IN MX 1 M.example.", "---\n---\nm.example. 60 IN AAAA 2001:db8::1\nm.example. 60 IN TXT a", "m.example. 60 IN TXT a"},
		"of a service":        {dns.TypeHTTPS, "x.example. 60 IN HTTPS 1 . alpn=h2", "---\n---\n" + dnstest.GoodA + "\n" + bank, bank},
		"of a name server":    {dns.TypeA, dnstest.GoodA, "---\nexample. 60 IN NS ns.example.\n---\nns.example. 60 IN A 192.0.2.53\n" + bank, bank},
	} {
		t.Run(name, func(t *testing.T) {
			up := dnstest.NewUpstream(t, dnstest.Zone(0, tc.answer+"\n"+tc.more))
			s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}})
			var want []string
			for line := range strings.Lines(tc.answer + "\n" + tc.more) {
				line = strings.TrimSpace(line)
				if line != "" && line != "---" && !slices.Contains(strings.Split(tc.bad, "\n"), line) {
					want = append(want, recordText(t, line))
				}
			}
			for _, from := range []string{"the upstream", "the cache"} {
				r := s.ask(t, "udp", "x.example", tc.qtype)
				var got []string
				for _, rr := range slices.Concat(r.Answer, r.Ns, r.Extra) {
					got = append(got, recordText(t, rr.String()))
				}
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("from %s: %s", from, diff)
				}
			}
			if n := s.Stats().Cache.Hits; n == 0 && tc.answer != "" && !strings.Contains(name, "without end") {
				t.Error("nothing was kept")
			}
		})
	}
}

// recordText is a record in one form, without the case of its names.
func recordText(t *testing.T, text string) string {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(rr.String())
}
