package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// serverTTL is the TTL of the lab's own records: different from the agent's 30, so that a test
// sees who answered.
const serverTTL = 77

// DNSServer is the outside's authoritative server on NameServer and NameServerIPv6, UDP and TCP.
// It answers for every name: with the addresses that it was given, else NXDOMAIN. It counts.
type DNSServer struct {
	mu      sync.Mutex
	ttl     uint32
	silent  bool
	hosts   map[string][]netip.Addr // fully qualified, lower case
	delays  map[string]time.Duration
	queries map[string]int // "name TYPE"
	servers []*dns.Server
}

// StartDNS starts the server with hosts like "aliyun.com": {"198.51.100.10", "2001:db8::10"}.
func (l *Lab) StartDNS(t T, hosts map[string][]string) *DNSServer {
	t.Helper()
	s := &DNSServer{ttl: serverTTL, hosts: map[string][]netip.Addr{}, queries: map[string]int{}, delays: map[string]time.Duration{}}
	for host, addrs := range hosts {
		s.Set(host, addrs...)
	}
	for _, ip := range []string{NameServer, NameServerIPv6} {
		addr := net.JoinHostPort(ip, "53")
		s.serve(t, &dns.Server{PacketConn: l.Out.ListenPacket(t, addr), Handler: s})
		s.serve(t, &dns.Server{Listener: l.Out.Listen(t, addr), Handler: s})
	}
	return s
}

func (s *DNSServer) serve(t T, server *dns.Server) {
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { _ = server.ActivateAndServe() }()
	<-started
	s.servers = append(s.servers, server)
	t.Cleanup(func() { _ = server.Shutdown() })
}

// Stop closes the sockets: from now on every query gets an ICMP error or a reset.
func (s *DNSServer) Stop() {
	for _, server := range s.servers {
		_ = server.Shutdown()
	}
}

// Set gives a host its addresses; none makes it NXDOMAIN.
func (s *DNSServer) Set(host string, addrs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []netip.Addr
	for _, a := range addrs {
		list = append(list, netip.MustParseAddr(a))
	}
	s.hosts[dns.CanonicalName(host)] = list
}

// SetTTL changes the TTL of all answers, in seconds.
func (s *DNSServer) SetTTL(ttl uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ttl = ttl
}

// SetSilent makes the server read every query and answer none, as one that hangs, or
// answer again.
func (s *DNSServer) SetSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// SetDelay makes the server answer each question about a host so much later.
func (s *DNSServer) SetDelay(host string, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delays[dns.CanonicalName(host)] = delay
}

// Queries returns how often name was asked for with the type ("A", "AAAA").
func (s *DNSServer) Queries(name, qtype string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries[dns.CanonicalName(name)+" "+qtype]
}

// Asked returns how often was asked for names that begin with the labels of prefix, of
// whatever type and domain.
func (s *DNSServer) Asked(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for question, times := range s.queries {
		if strings.HasPrefix(question, dns.CanonicalName(prefix)) {
			n += times
		}
	}
	return n
}

// ServeDNS implements dns.Handler.
func (s *DNSServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	question := q.Question[0]
	name := dns.CanonicalName(question.Name)
	s.mu.Lock()
	addrs, ttl, silent := s.hosts[name], s.ttl, s.silent
	delay := s.delays[name]
	s.queries[name+" "+dns.TypeToString[question.Qtype]]++
	s.mu.Unlock()
	<-time.After(delay)
	if silent {
		return
	}

	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	if len(addrs) == 0 {
		m.Rcode = dns.RcodeNameError
	}
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ttl}
	for _, a := range addrs {
		switch {
		case question.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case question.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(m)
}

// Exchange sends one query from inside the namespace to server (an address and port) over
// network ("udp" or "tcp").
func (n *Namespace) Exchange(network, server, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	c, err := n.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(Deadline))
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	m, err := conn.ReadMsg()
	if err == nil && m.Id != q.Id {
		err = errors.New("answer to another question")
	}
	return m, err
}

// Lookup asks the pod's name server (so the agent, where DNS is captured) for the addresses of
// one family, as an application would.
func (n *Namespace) Lookup(name string, qtype uint16) ([]netip.Addr, error) {
	m, err := n.Exchange("udp", net.JoinHostPort(NameServer, "53"), name, qtype)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	if m.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("look up %s: %s", name, strings.ToLower(dns.RcodeToString[m.Rcode]))
	}
	var addrs []netip.Addr
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A.To4())
			addrs = append(addrs, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}
