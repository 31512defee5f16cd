package dnsproxy

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// A resolv.conf that is being written, or gone, does not take the servers along;
// one that another has replaced is read.
func TestResolvConfGoesAndComes(t *testing.T) {
	first, second := dnstest.NewUpstream(t, dnstest.Zone(0, "---\n")), dnstest.NewUpstream(t, dnstest.Zone(0, "---\n"))
	path := dnstest.WriteConf(t, dnstest.Nameserver(first.Addr))
	now := dnstest.NewClock()
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: path}, Now: now.Now})
	for i, step := range []struct {
		what   string
		change func() error
		asked  *dnstest.Upstream
	}{
		{"nothing", func() error { return nil }, first},
		{"emptied", func() error { return os.Truncate(path, 0) }, first},
		{"filled again", func() error { return os.WriteFile(path, []byte(dnstest.Nameserver(second.Addr)+"\n"), 0o644) }, second},
		{"removed", func() error { return os.Remove(path) }, second},
		{"put in place", func() error { return os.Rename(dnstest.WriteConf(t, dnstest.Nameserver(first.Addr)), path) }, first},
		{"made a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, first},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		now.Add(rereadAfter)
		before := step.asked.UDP.Load()
		if r := s.ask(t, "udp", fmt.Sprintf("n%d.example", i), dns.TypeA); r.Rcode != dns.RcodeSuccess || step.asked.UDP.Load() == before {
			t.Errorf("%s: %v", step.what, r)
		}
	}
}

// The names of the table are answered below the pod's own domain for as long as the
// file has it first.
func TestSearchFollowsTheFile(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(dns.RcodeNameError, ""))
	path := dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), "search own.test other.test")
	now := dnstest.NewClock()
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: path}, Domain: "Own.test.", Now: now.Now})
	s.Swap(table.New(testHosts))
	check := func(own int) {
		t.Helper()
		for name, want := range map[string]int{"aliyun.com": dns.RcodeSuccess, "aliyun.com.own.test": own, "aliyun.com.other.test": dns.RcodeNameError} {
			if r := s.ask(t, "udp", name, dns.TypeA); r.Rcode != want {
				t.Errorf("%s: %s", name, dns.RcodeToString[r.Rcode])
			}
		}
	}
	write := func(domain string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(dnstest.Nameserver(up.Addr)+"\nsearch "+domain+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		now.Add(rereadAfter)
	}
	check(dns.RcodeSuccess)
	write("other.test own.test")
	s.ask(t, "udp", "elsewhere.test", dns.TypeA) // whatever is forwarded
	check(dns.RcodeNameError)
	write("own.test")
	s.Swap(s.Table().With(nil, []string{"v6.example"}))
	check(dns.RcodeSuccess)
	write(".")
	s.Swap(table.New(testHosts))
	check(dns.RcodeNameError)
}
