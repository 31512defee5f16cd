// Package dnstest owns what the tests of dnsproxy and of the packages below it share: a DNS
// server whose replies a test makes byte by byte, a resolv.conf, a clock and a log.
package dnstest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/miekg/dns"
)

// Upstream is a DNS server on loopback whose replies the test makes, byte
// by byte where it wants to. It serves UDP and TCP on one port.
type Upstream struct {
	Addr     netip.AddrPort
	UDP, TCP atomic.Int64 // queries that arrived
	Apart    atomic.Bool  // one datagram does not wait for another's answer

	mu    sync.Mutex
	reply func(request []byte, tcp bool) []byte // nil: silence
	last  []byte
}

func NewUpstream(t testing.TB, reply func(request []byte, tcp bool) []byte) *Upstream {
	t.Helper()
	udp, tcp := bindBoth(t)
	widen(t, udp)
	f := &Upstream{Addr: tcp.Addr().(*net.TCPAddr).AddrPort(), reply: reply}
	var loops sync.WaitGroup
	loops.Go(func() { f.serveUDP(udp) })
	loops.Go(func() { f.serveTCP(tcp) })
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		loops.Wait()
	})
	return f
}

// widen has a socket keep what arrives while the machine is busy: with Linux's usual buffer that is some 270 questions.
func widen(t testing.TB, udp *net.UDPConn) {
	t.Helper()
	const size = 4 << 20
	raw, err := udp.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, size) // root alone may
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// bindBoth binds one port of loopback for UDP and TCP.
func bindBoth(t testing.TB) (*net.UDPConn, *net.TCPListener) {
	t.Helper()
	for range 10 { // a port that is free for TCP may be taken for UDP
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		at := tcp.Addr().(*net.TCPAddr)
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port})
		if err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

// Set has the server reply so from now on.
func (f *Upstream) Set(reply func(request []byte, tcp bool) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply = reply
}

func (f *Upstream) answer(request []byte, tcp bool) []byte {
	f.mu.Lock()
	f.last = bytes.Clone(request)
	reply := f.reply
	f.mu.Unlock()
	return reply(request, tcp)
}

func (f *Upstream) Request(t *testing.T) *dns.Msg {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	m := new(dns.Msg)
	if err := m.Unpack(f.last); err != nil {
		t.Fatalf("request that reached the upstream: %v", err)
	}
	return m
}

func (f *Upstream) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		f.UDP.Add(1)
		request := bytes.Clone(buf[:n])
		answer := func() {
			if reply := f.answer(request, false); reply != nil {
				conn.WriteToUDPAddrPort(reply, from)
			}
		}
		if f.Apart.Load() {
			go answer()
		} else {
			answer()
		}
	}
}

func (f *Upstream) serveTCP(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		request, err := ReadFramed(conn)
		if err == nil {
			f.TCP.Add(1)
			if reply := f.answer(request, true); reply != nil {
				WriteFramed(conn, reply)
			}
		}
		conn.Close()
	}
}

func ReadFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func WriteFramed(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// Zone makes a reply with these records, one a line in zone-file form;
// those after a line "---" are the authority section, after another one the
// additional section.
func Zone(rcode int, text string) func([]byte, bool) []byte {
	return func(request []byte, _ bool) []byte {
		var q dns.Msg
		if q.Unpack(request) != nil {
			return nil
		}
		m := new(dns.Msg).SetRcode(&q, rcode)
		m.RecursionAvailable = true
		into := &m.Answer
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line == "---" && into == &m.Ns {
				into = &m.Extra
			} else if line == "---" {
				into = &m.Ns
			} else if line != "" {
				rr, err := dns.NewRR(line)
				if err != nil {
					panic(err)
				}
				*into = append(*into, rr)
			}
		}
		if opt := q.IsEdns0(); opt != nil {
			m.SetEdns0(4096, opt.Do())
		}
		m.Compress = true
		out, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return out
	}
}

func Silence([]byte, bool) []byte { return nil }

// WriteConf writes a resolv.conf with testSearch, unless lines have another search
// line, and returns its path.
func WriteConf(t testing.TB, lines ...string) string {
	t.Helper()
	lines = append([]string{"search " + strings.Join(Search, " ")}, lines...)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// asksOnce is a resolv.conf line for tests that count questions: on a machine that stands
// still for a moment, the same one would be asked a second time, in time for its client.
const AsksOnce = "options attempts:1"

// Nameserver is a resolv.conf line.
func Nameserver(addr netip.AddrPort) string {
	return fmt.Sprintf("nameserver [%s]:%d", addr.Addr(), addr.Port())
}

const GoodA = "x.example. 60 IN A 192.0.2.1"

// Huge pads a reply over what a forwarder reads with records, on UDP only.
func Huge(reply []byte, tcp bool) []byte {
	if tcp {
		return reply
	}
	return append(reply, make([]byte, 8192)...)
}

func TruncatedOverUDP(answer func([]byte, bool) []byte) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		if tcp {
			return answer(request, tcp)
		}
		reply := bytes.Clone(request)
		binary.BigEndian.PutUint16(reply[2:], 1<<15|1<<9) // QR, TC
		return reply
	}
}

func RefusesEDNS(answer func([]byte, bool) []byte, rcode int) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		if request[11] == 0 {
			return answer(request, tcp)
		}
		reply := bytes.Clone(request[:12])
		binary.BigEndian.PutUint16(reply[2:], 1<<15|uint16(rcode))
		copy(reply[4:], make([]byte, 8))
		return reply
	}
}

// NotRecursive is what an answer is of a server that asks no other.
func NotRecursive(answer func([]byte, bool) []byte) func([]byte, bool) []byte {
	return func(request []byte, tcp bool) []byte {
		reply := answer(request, tcp)
		reply[3] &^= 1 << 7 // RA
		return reply
	}
}

// NameIn is the name that a request asks for, with a final dot.
func NameIn(request []byte) string {
	var m dns.Msg
	if m.Unpack(request) != nil {
		return "."
	}
	return m.Question[0].Name
}

func EDNS(size uint16, do bool) func(*dns.Msg) {
	return func(m *dns.Msg) { m.SetEdns0(size, do) }
}

func IPs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// testDomain is the pod's own, testSearch what its resolv.conf has.
const Domain = "default.svc.cluster.local"

var Search = []string{Domain, "svc.cluster.local", "cluster.local"}

func Question(t testing.TB, name string, qtype uint16, change ...func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.Id = 4711
	for _, f := range change {
		f(m)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// Raw builds a message by hand: header fields and a body.
func Raw(flags uint16, counts [4]uint16, body string) []byte {
	m := []byte{0x12, 0x34, byte(flags >> 8), byte(flags)}
	for _, n := range counts {
		m = append(m, byte(n>>8), byte(n))
	}
	return append(m, body...)
}

// Plain says whether m, read from msg, is a query that need not be refused, but for
// refusedFor. miekg/dns forgives a message that ends before its counts are reached.
func Plain(msg []byte, m *dns.Msg) bool {
	for s, have := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		if int(binary.BigEndian.Uint16(msg[6+2*s:])) != len(have) {
			return false
		}
	}
	opts := 0
	for _, rr := range append(append(m.Answer, m.Ns...), m.Extra...) {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
		}
	}
	opt := m.IsEdns0()
	if opts > 1 || opts == 1 && (opt == nil || opt.Hdr.Name != "." || opt.Version() != 0) {
		return false
	}
	return !m.Response && m.Opcode == dns.OpcodeQuery && len(m.Question) == 1
}

// RefusedFor is the code with which a question is refused whatever is known of its name.
func RefusedFor(question dns.Question) int {
	switch t := question.Qtype; {
	case question.Qclass != dns.ClassINET:
		return dns.RcodeRefused
	case t == dns.TypeOPT, t >= 128 && t < 255: // RFC 6895: of the message, and meta
		return dns.RcodeNotImplemented
	}
	return dns.RcodeSuccess
}

// Impatient is a resolv.conf line for tests of time that is up: after 1.8 s.
const Impatient = "options timeout:1 attempts:2"

// AnswersFirst is a server that answers the first question that it gets, when that channel
// is closed, and no other.
func AnswersFirst(t *testing.T, release <-chan struct{}) *Upstream {
	t.Helper()
	var asked atomic.Int64
	answer := Zone(0, GoodA)
	up := NewUpstream(t, func(r []byte, tcp bool) []byte {
		if asked.Add(1) > 1 {
			return nil
		}
		<-release
		return answer(r, tcp)
	})
	up.Apart.Store(true)
	return up
}
