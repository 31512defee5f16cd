package dnsproxy

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// Envoy is told what the upstream says of a name, whatever the table has, and need not
// wait for a table, which may itself wait for Envoy.
func TestBesideTheTable(t *testing.T) {
	up := dnstest.NewUpstream(t, dnstest.Zone(dns.RcodeSuccess, "aliyun.com. 60 IN A 192.0.2.1"))
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}, HoldBeforeTable: time.Hour})
	udp, tcp := listen(t)
	envoy := &testServer{s.Server, tcp[0].Addr().(*net.TCPAddr).String()}
	v := s.StartBeside(udp, tcp)
	defer closeNow(t, v)

	ask := func(who string, s *testServer, want string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			r := s.ask(t, network, "aliyun.com", dns.TypeA)
			if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != want {
				t.Errorf("%s over %s: want %s:\n%v", who, network, want, r)
			}
		}
	}
	ask("Envoy before the table", envoy, "192.0.2.1")
	s.Swap(table.New(testHosts))
	ask("Envoy with the table", envoy, "192.0.2.1")
	ask("the application", s, "240.240.1.2")
}
