package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

const knotZone = `$ORIGIN example.
$TTL 300
@      SOA ns hostmaster 1 3600 600 86400 60
       NS  ns
ns     A   192.0.2.53
www    A   192.0.2.80
       AAAA 2001:db8::80
alias  CNAME www
_x._tcp SRV 1 2 80 www
*.w    A   192.0.2.81
`

// startKnot runs Debian's knot, authoritative for example., and returns where.
func startKnot(t *testing.T) netip.AddrPort {
	t.Helper()
	binary, err := exec.LookPath("knotd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("knotd is missing: apt-get install knot")
		}
		t.Skip("knotd is missing: apt-get install knot")
	}
	udp, tcp, err := Listen([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	addr := tcp[0].Addr().(*net.TCPAddr).AddrPort()
	udp[0].Close()
	tcp[0].Close()

	dir := t.TempDir()
	text := knotZone
	for i := range 200 {
		text += fmt.Sprintf("many A 192.0.3.%d\n", i)
	}
	conf := fmt.Sprintf("server:\n  rundir: %[1]s\n  listen: 127.0.0.1@%[2]d\ndatabase:\n  storage: %[1]s\nzone:\n- domain: example\n  file: %[1]s/zone\n", dir, addr.Port())
	for name, content := range map[string]string{"zone": text, "knot.conf": conf} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := new(dnstest.Log)
	cmd := exec.Command(binary, "-c", filepath.Join(dir, "knot.conf"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("knotd: %s", log)
		}
	})
	dnstest.WaitFor(t, "knotd", func() bool {
		m := new(dns.Msg).SetQuestion("example.", dns.TypeSOA)
		r, err := dns.Exchange(m, addr.String())
		return err == nil && len(r.Answer) == 1
	})
	return addr
}

// What a real server says arrives whole, over every transport, from the
// upstream and from the cache.
func TestRealServer(t *testing.T) {
	knot := startKnot(t)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(knot))}})
	s.Swap(table.New([]table.Host{{Name: "www.example", Addrs: dnstest.IPs("240.240.9.9"), VIP: true}}))
	for _, tc := range []struct {
		name   string
		qtype  uint16
		rcode  int
		answer string // part of the answer section
	}{
		{"ns.example", dns.TypeA, 0, "192.0.2.53"},
		{"NS.Example", dns.TypeA, 0, "192.0.2.53"},
		{"alias.example", dns.TypeAAAA, 0, "2001:db8::80"},
		{"_x._tcp.example", dns.TypeSRV, 0, "1 2 80 www.example."},
		{"a.b.w.example", dns.TypeA, 0, "a.b.w.example. 300 IN A 192.0.2.81"},
		{"ns.example", dns.TypeTXT, 0, ""},
		{"none.example", dns.TypeA, dns.RcodeNameError, ""},
		{"www.example", dns.TypeA, 0, "www.example. 30 IN A 240.240.9.9"},
		{"www.example", dns.TypeTXT, 0, ""},
		{"elsewhere.test", dns.TypeA, dns.RcodeRefused, ""},
		{"many.example", dns.TypeA, 0, "192.0.3.199"},
	} {
		for i, network := range []string{"tcp", "udp", "udp", "tcp"} {
			r := s.ask(t, network, tc.name, tc.qtype, dnstest.EDNS(8192, false))
			all := strings.Join(answers(r), "\n")
			if r.Rcode != tc.rcode || (all == "") != (tc.answer == "") || !strings.Contains(all, tc.answer) {
				t.Errorf("%s %s, %d, %s: %v", tc.name, dns.TypeToString[tc.qtype], i, network, r)
			}
		}
	}
	st := s.Stats()
	if len(st.Upstreams) != 1 || st.Upstreams[0].Failures != 0 || st.BySource["cache"] == 0 {
		t.Errorf("%+v", st)
	}
}
