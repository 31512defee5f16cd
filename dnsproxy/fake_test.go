package dnsproxy

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
	"testing"

	"github.com/miekg/dns"
)

// fakeUpstream is a DNS server on loopback whose replies the test makes, byte
// by byte where it wants to. It serves UDP and TCP on one port.
type fakeUpstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // queries that arrived
	apart    atomic.Bool  // one datagram does not wait for another's answer

	mu    sync.Mutex
	reply func(request []byte, tcp bool) []byte // nil: silence
	last  []byte
}

func newFakeUpstream(t testing.TB, reply func(request []byte, tcp bool) []byte) *fakeUpstream {
	t.Helper()
	udp, tcp, err := Listen([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeUpstream{addr: tcp[0].Addr().(*net.TCPAddr).AddrPort(), reply: reply}
	var loops sync.WaitGroup
	loops.Go(func() { f.serveUDP(udp[0]) })
	loops.Go(func() { f.serveTCP(tcp[0]) })
	t.Cleanup(func() {
		udp[0].Close()
		tcp[0].Close()
		loops.Wait()
	})
	return f
}

func (f *fakeUpstream) set(reply func(request []byte, tcp bool) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply = reply
}

func (f *fakeUpstream) answer(request []byte, tcp bool) []byte {
	f.mu.Lock()
	f.last = bytes.Clone(request)
	reply := f.reply
	f.mu.Unlock()
	return reply(request, tcp)
}

func (f *fakeUpstream) request(t *testing.T) *dns.Msg {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	m := new(dns.Msg)
	if err := m.Unpack(f.last); err != nil {
		t.Fatalf("request that reached the upstream: %v", err)
	}
	return m
}

func (f *fakeUpstream) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		f.udp.Add(1)
		request := bytes.Clone(buf[:n])
		answer := func() {
			if reply := f.answer(request, false); reply != nil {
				conn.WriteToUDPAddrPort(reply, from)
			}
		}
		if f.apart.Load() {
			go answer()
		} else {
			answer()
		}
	}
}

func (f *fakeUpstream) serveTCP(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		request, err := readFramed(conn)
		if err == nil {
			f.tcp.Add(1)
			if reply := f.answer(request, true); reply != nil {
				writeFramed(conn, reply)
			}
		}
		conn.Close()
	}
}

func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeFramed(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// zone makes a reply with these records, one a line in zone-file form;
// those after a line "---" are the authority section, after another one the
// additional section.
func zone(rcode int, text string) func([]byte, bool) []byte {
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

func silence([]byte, bool) []byte { return nil }

// writeConf writes a resolv.conf with testSearch, unless lines have another search
// line, and returns its path.
func writeConf(t testing.TB, lines ...string) string {
	t.Helper()
	lines = append([]string{"search " + strings.Join(testSearch, " ")}, lines...)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// asksOnce is a resolv.conf line for tests that count questions: on a machine that stands
// still for a moment, the same one would be asked a second time, in time for its client.
const asksOnce = "options attempts:1"

// nameserver is a resolv.conf line.
func nameserver(addr netip.AddrPort) string {
	return fmt.Sprintf("nameserver [%s]:%d", addr.Addr(), addr.Port())
}
