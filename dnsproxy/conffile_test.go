package dnsproxy

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/miekg/dns"
)

// A resolv.conf that is being written, or gone, does not take the servers along;
// one that another has replaced is read.
func TestResolvConfGoesAndComes(t *testing.T) {
	first, second := newFakeUpstream(t, zone(0, "---\n")), newFakeUpstream(t, zone(0, "---\n"))
	path := writeConf(t, nameserver(first.addr))
	now := newClock()
	s := start(t, Config{ResolvConf: path, Now: now.Now})
	for i, step := range []struct {
		what   string
		change func() error
		asked  *fakeUpstream
	}{
		{"nothing", func() error { return nil }, first},
		{"emptied", func() error { return os.Truncate(path, 0) }, first},
		{"filled again", func() error { return os.WriteFile(path, []byte(nameserver(second.addr)+"\n"), 0o644) }, second},
		{"removed", func() error { return os.Remove(path) }, second},
		{"put in place", func() error { return os.Rename(writeConf(t, nameserver(first.addr)), path) }, first},
		{"made a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, first},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		now.add(rereadAfter)
		before := step.asked.udp.Load()
		if r := s.ask(t, "udp", fmt.Sprintf("n%d.example", i), dns.TypeA); r.Rcode != dns.RcodeSuccess || step.asked.udp.Load() == before {
			t.Errorf("%s: %v", step.what, r)
		}
	}
}

// The names of the table are answered below the pod's own domain for as long as the
// file has it first.
func TestSearchFollowsTheFile(t *testing.T) {
	up := newFakeUpstream(t, zone(dns.RcodeNameError, ""))
	path := writeConf(t, nameserver(up.addr), "search own.test other.test")
	now := newClock()
	s := start(t, Config{ResolvConf: path, Domain: "Own.test.", Now: now.Now})
	s.Swap(NewTable(testHosts))
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
		if err := os.WriteFile(path, []byte(nameserver(up.addr)+"\nsearch "+domain+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		now.add(rereadAfter)
	}
	check(dns.RcodeSuccess)
	write("other.test own.test")
	s.ask(t, "udp", "elsewhere.test", dns.TypeA) // whatever is forwarded
	check(dns.RcodeNameError)
	write("own.test")
	s.Swap(s.Table().With(nil, []string{"v6.example"}))
	check(dns.RcodeSuccess)
	write(".")
	s.Swap(NewTable(testHosts))
	check(dns.RcodeNameError)
}
