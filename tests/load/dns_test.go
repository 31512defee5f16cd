package load

import (
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// serveDNS serves on one port, UDP and TCP. It returns the address.
func serveDNS(t *testing.T, handle dns.HandlerFunc, perConnection int) string {
	t.Helper()
	l := listen(t)
	packets, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, MaxTCPQueries: perConnection}, {PacketConn: packets}} {
		s.Handler = handle
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
	return l.Addr().String()
}

// answerWith answers A with the address, AAAA with ::1; after it has called change, if that is there.
func answerWith(address string, change func(*dns.Msg)) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 1}
		if header.Rrtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: header, A: net.ParseIP(address)}}
		} else {
			m.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: net.IPv6loopback}}
		}
		if change != nil {
			change(m)
		}
		_ = w.WriteMsg(m)
	}
}

func TestDNS(t *testing.T) {
	const requests = 10
	for _, tt := range []struct {
		name   string
		handle dns.HandlerFunc
		class  Class // "": none
		text   string
	}{
		{"right", answerWith("240.240.0.7", nil), "", ""},
		{"another address", answerWith("10.0.0.1", nil), Wrong, "aliyun.com. is answered with 10.0.0.1, not 240.240."},
		{"no address", answerWith("240.240.0.7", func(m *dns.Msg) { m.Answer = nil }), Wrong, "aliyun.com. is answered with no address"},
		{"SERVFAIL", answerWith("240.240.0.7", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), Wrong, "rcode SERVFAIL"},
		{"another question", answerWith("240.240.0.7", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX }), Wrong, "the answer is to another question: [{aliyun.com. 15 1}]"},
		{"silent", func(dns.ResponseWriter, *dns.Msg) {}, Timeout, ""},
	} {
		for _, kind := range []Kind{DNSUDP, DNSTCP} {
			for _, newSocket := range []bool{false, true} {
				t.Run(tt.name+"/"+string(kind), func(t *testing.T) {
					t.Parallel()
					f := Flow{Kind: kind, Target: serveDNS(t, tt.handle, 0), Names: []string{"aliyun.com"}, Want: "240.240.", NewSocket: newSocket}
					if tt.class == Timeout {
						f.Timeout = short
					}
					got := runOne(t, requests, f)
					if failed := got.Total.Failures(); tt.class == "" && (failed != 0 || got.Total.OK != requests) || tt.class != "" && got.Total.Failed[tt.class] != requests {
						t.Fatalf("ok %d, failed %v, want %q: %v", got.Total.OK, got.Total.Failed, tt.class, got.Failures)
					}
					if tt.text != "" && got.Failures[0].Text != tt.text {
						t.Errorf("text %q, want %q", got.Failures[0].Text, tt.text)
					}
					want := uint64(1)
					if newSocket || tt.class == Timeout && kind == DNSTCP {
						want = requests
					}
					if got.Total.Opened != want {
						t.Errorf("opened %d sockets, want %d", got.Total.Opened, want)
					}
				})
			}
		}
	}
}

// TestDNSAsksForEveryNameAndType demands that what is asked is what was given.
func TestDNSAsksForEveryNameAndType(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	good := answerWith("240.240.0.7", nil)
	server := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		asked = append(asked, q.Question[0].Name+dns.TypeToString[q.Question[0].Qtype])
		mu.Unlock()
		good(w, q)
	}, 0)
	got := runOne(t, 4, Flow{Kind: DNSUDP, Target: server, Names: []string{"a.example", "b.example."}, Type: "AAAA", Want: "::1"})
	if got.Total.OK != 4 {
		t.Errorf("failures: %v", got.Failures)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"a.example.AAAA", "b.example.AAAA", "a.example.AAAA", "b.example.AAAA"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
}

// TestDNSTCPOutlivesItsConnections demands that a server which closes after some queries costs none.
func TestDNSTCPOutlivesItsConnections(t *testing.T) {
	server := serveDNS(t, answerWith("240.240.0.7", nil), 3)
	got := runOne(t, 30, Flow{Kind: DNSTCP, Target: server, Names: []string{"aliyun.com"}}).Total
	if got.OK != 30 || got.Failures() != 0 || got.Opened != 10 {
		t.Errorf("%+v, want 30 answers over 10 connections", got)
	}
}

// TestDNSUDPRefused demands that a query to a port that nobody has is refused, not only lost.
func TestDNSUDPRefused(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = packets.Close()
	got := runOne(t, 2, Flow{Kind: DNSUDP, Target: packets.LocalAddr().String(), Names: []string{"aliyun.com"}}).Total
	if got.Failed[Refused] != 2 {
		t.Errorf("failed %v, want 2 refused", got.Failed)
	}
}

// TestDNSUDPLateAnswer demands that an answer which comes after its query was counted as lost is not
// taken for the answer to the next.
func TestDNSUDPLateAnswer(t *testing.T) {
	var mu sync.Mutex
	var held []func()
	good := answerWith("240.240.0.7", nil)
	server := serveDNS(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if len(held) == 0 {
			held = append(held, func() { good(w, q) })
			return
		}
		held[0]() // now, before the answer to this one
		good(w, q)
	}, 0)
	got := runOne(t, 3, Flow{Kind: DNSUDP, Target: server, Names: []string{"aliyun.com"}, Timeout: Duration(time.Second)})
	if got.Total.OK != 2 || got.Total.Failed[Timeout] != 1 || got.Total.Failures() != 1 {
		t.Errorf("%+v, want 1 lost and 2 answered: %v", got.Total, got.Failures)
	}
}
