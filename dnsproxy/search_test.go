package dnsproxy

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// searchedZone is an upstream that knows a few names, and notes what it is asked.
type searchedZone struct {
	mu     sync.Mutex
	known  map[string]string // a record in zone-file form, or the name of an RCODE
	hidden string            // whose AAAA is denied, name and all
	asked  []string
}

func (z *searchedZone) reply(request []byte, tcp bool) []byte {
	var m dns.Msg
	if m.Unpack(request) != nil {
		return nil
	}
	question := m.Question[0]
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked = append(z.asked, question.Name+" "+dns.TypeToString[question.Qtype])
	const soa = "---\n. 30 IN SOA a.x. b.x. 1 2 3 4 30"
	text, ok := z.known[question.Name]
	switch rcode, isRcode := dns.StringToRcode[text]; {
	case !ok || question.Name == z.hidden && question.Qtype == dns.TypeAAAA:
		return dnstest.Zone(dns.RcodeNameError, soa)(request, tcp)
	case isRcode:
		return dnstest.Zone(rcode, "")(request, tcp)
	case !strings.Contains(text, " "+dns.TypeToString[question.Qtype]+" "):
		return dnstest.Zone(dns.RcodeSuccess, soa)(request, tcp)
	}
	return dnstest.Zone(dns.RcodeSuccess, question.Name+" "+text)(request, tcp)
}

// since returns what was asked since it was last called.
func (z *searchedZone) since() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	defer func() { z.asked = nil }()
	return z.asked
}

// startSearching returns a server that walks these search domains for its client.
func startSearching(t *testing.T, z *searchedZone, domains string) *testServer {
	t.Helper()
	up := dnstest.NewUpstream(t, z.reply)
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr), "search "+domains, "options ndots:5")}})
	v, tcp := startBeside(t, s)
	t.Cleanup(func() { closeNow(t, v) })
	return &testServer{s.Server, tcp.Addr().String()}
}

// startBeside has s serve Envoy, as the agent does.
func startBeside(t *testing.T, s *testServer) (*Serving, *net.TCPListener) {
	t.Helper()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return s.StartBeside(nil, []*net.TCPListener{tcp}), tcp
}

// TestSearches wants each name to be looked for where it is meant, with no question more than that takes, and none at
// all the second time.
func TestSearches(t *testing.T) {
	const a, below = "60 IN A 192.0.2.1", ".ns.svc.x. A"
	tests := []struct {
		name, ask string
		qtype     uint16
		known     map[string]string
		want      string // the answer's records, or the RCODE
		asked     []string
	}{
		{"a name that exists", "api.example.", dns.TypeA, map[string]string{"api.example.": a, "api.example.svc.x.": a},
			"api.example. A", []string{"api.example. A"}},
		{"a service of another namespace", "mysql.prod.", dns.TypeA, map[string]string{"mysql.prod.svc.x.": a},
			"mysql.prod. CNAME, mysql.prod.svc.x. A", []string{"mysql.prod. A", "mysql.prod" + below, "mysql.prod.svc.x. A"}},
		{"one that exists without such a record", "mysql.prod.", dns.TypeAAAA, map[string]string{"mysql.prod.svc.x.": a, "mysql.prod.corp.": "60 IN AAAA ::1"},
			"mysql.prod. CNAME", []string{"mysql.prod. AAAA", "mysql.prod. A", "mysql.prod.ns.svc.x. AAAA", "mysql.prod" + below, "mysql.prod.svc.x. AAAA"}},
		{"one whose server fails", "api.example.", dns.TypeA, map[string]string{"api.example.": "REFUSED", "api.example.corp.": a},
			"REFUSED", []string{"api.example. A"}},
		{"a search domain whose server fails", "mysql.prod.", dns.TypeA, map[string]string{"mysql.prod.svc.x.": "REFUSED", "mysql.prod.corp.": a},
			"SERVFAIL", []string{"mysql.prod. A", "mysql.prod" + below, "mysql.prod.svc.x. A"}},
		{"a service of this namespace", "mysql.", dns.TypeA, map[string]string{"mysql.": a, "mysql.ns.svc.x.": a},
			"mysql. CNAME, mysql.ns.svc.x. A", []string{"mysql" + below}},
		{"a single label that is whole", "mysql.", dns.TypeA, map[string]string{"mysql.": a},
			"mysql. A", []string{"mysql" + below, "mysql.svc.x. A", "mysql.corp. A", "mysql. A"}},
		{"nothing", "a.b.", dns.TypeA, nil,
			"NXDOMAIN", []string{"a.b. A", "a.b" + below, "a.b.svc.x. A", "a.b.corp. A"}},
		{"a full name of nothing", "gone.ns.svc.x.", dns.TypeA, nil, "NXDOMAIN", []string{"gone.ns.svc.x. A"}},
		{"a name for which no domain has room", strings.Repeat("a.", 125), dns.TypeA, nil, "NXDOMAIN", []string{strings.Repeat("a.", 125) + " A"}},
		{"this host", "localhost.corp.", dns.TypeA, nil, "localhost.corp. CNAME, localhost. A", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			z := &searchedZone{known: tt.known}
			s := startSearching(t, z, "ns.svc.x svc.x corp")
			for round, asked := range [][]string{tt.asked, nil} {
				r := s.ask(t, "tcp", tt.ask, tt.qtype)
				if got := brief(r); got != tt.want {
					t.Errorf("round %d: %s, want %s", round, got, tt.want)
				}
				got := z.since()
				slices.Sort(got) // a server that fails is asked more than once
				got, asked = slices.Compact(got), slices.Clone(asked)
				slices.Sort(asked)
				if !slices.Equal(got, asked) {
					t.Errorf("round %d: asked %q, want %q", round, got, asked)
				}
			}
		})
	}
}

// TestSearchesHiddenIPv6 keeps a name whose AAAA is denied altogether from being found below a domain with a wildcard.
func TestSearchesHiddenIPv6(t *testing.T) {
	z := &searchedZone{hidden: "api.example.", known: map[string]string{"api.example.": "60 IN A 192.0.2.1", "api.example.corp.": "60 IN AAAA ::1"}}
	s := startSearching(t, z, "corp")
	if got := brief(s.ask(t, "tcp", "api.example.", dns.TypeAAAA)); got != "NXDOMAIN" {
		t.Errorf("AAAA: %s, want that there is none", got)
	}
	if got := brief(s.ask(t, "tcp", "api.example.", dns.TypeA)); got != "api.example. A" {
		t.Errorf("A: %s", got)
	}
}

// TestSearchesAsResolvConfSays follows a changed list and a changed server.
func TestSearchesAsResolvConfSays(t *testing.T) {
	z := &searchedZone{known: map[string]string{"mysql.prod.one.": "60 IN A 192.0.2.1", "redis.prod.two.": "60 IN A 192.0.2.2"}}
	s := startSearching(t, z, "one")
	if got := brief(s.ask(t, "tcp", "mysql.prod.", dns.TypeA)); got != "mysql.prod. CNAME, mysql.prod.one. A" {
		t.Errorf("before: %s", got)
	}
	other := dnstest.NewUpstream(t, z.reply)
	if err := os.WriteFile(s.config.Upstream.ResolvConf, []byte(dnstest.Nameserver(other.Addr)+"\nsearch two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		got := brief(s.ask(t, "tcp", "redis.prod.", dns.TypeA))
		if got == "redis.prod. CNAME, redis.prod.two. A" && other.UDP.Load() > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after: %s, the new server was asked %d times", got, other.UDP.Load())
		}
		s.ask(t, "tcp", fmt.Sprintf("n%d.example.", time.Now().UnixNano()), dns.TypeA) // a miss looks at the file
	}
}

// TestBesideHasItsOwnLimits answers Envoy however many questions of the application's wait, and more questions of one
// connection at once than the application may have.
func TestBesideHasItsOwnLimits(t *testing.T) {
	const questions = 3 * maxPipelined
	var mu sync.Mutex
	all, waiting := make(chan struct{}), 0
	up := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
		mu.Lock()
		if waiting++; waiting == questions {
			close(all)
		}
		mu.Unlock()
		<-all
		return dnstest.Zone(dns.RcodeSuccess, "")(request, tcp)
	})
	up.Apart.Store(true)
	const limit = 30 * time.Second // the server answers once it has all questions, which a busy machine needs time for
	s := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr)), Timeout: limit}})
	for range cap(s.inflight) {
		s.inflight <- struct{}{}
	}
	v, tcp := startBeside(t, s)
	defer closeNow(t, v)
	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * limit))
	for i := range questions {
		msg, err := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA).Pack()
		if err == nil {
			err = dnstest.WriteFramed(conn, msg)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range questions {
		msg, err := dnstest.ReadFramed(conn)
		if err != nil {
			t.Fatal(err)
		}
		if wire.RcodeOf(msg) != wire.RcodeSuccess {
			t.Fatalf("refused: rcode %d", wire.RcodeOf(msg))
		}
	}
}

// brief is the owner and type of each record of an answer, without repetition, or else its RCODE.
func brief(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	var list []string
	for _, rr := range m.Answer {
		list = append(list, rr.Header().Name+" "+dns.TypeToString[rr.Header().Rrtype])
	}
	return strings.Join(list, ", ")
}
