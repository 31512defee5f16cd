package dnsproxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func dialTCP(t *testing.T, s *testServer) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func wireQuery(t *testing.T, id uint16, name string) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.Id = id
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// 300 queries at once in one write, half of them forwarded, and then the
// client's FIN: every one is answered.
func TestTCPPipelining(t *testing.T) {
	up := newFakeUpstream(t, zone(0, "---\n"))
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr))})
	s.Swap(NewTable(testHosts, nil, 0))
	c := dialTCP(t, s)
	const queries = 300
	var all bytes.Buffer
	for id := range uint16(queries) {
		name := "aliyun.com."
		if id%2 == 1 {
			name = fmt.Sprintf("n%d.example.", id)
		}
		writeFramed(&all, wireQuery(t, id, name))
	}
	go func() {
		c.Write(all.Bytes())
		c.CloseWrite()
	}()
	seen := map[uint16]bool{}
	for range queries {
		msg, err := readFramed(c)
		if err != nil {
			t.Fatalf("after %d replies: %v", len(seen), err)
		}
		var r dns.Msg
		if err := r.Unpack(msg); err != nil || r.Rcode != dns.RcodeSuccess {
			t.Fatalf("%v: %v", err, r)
		}
		seen[r.Id] = true
	}
	if len(seen) != queries {
		t.Errorf("%d different replies", len(seen))
	}
	if _, err := readFramed(c); err != io.EOF {
		t.Errorf("want the end of the connection, got %v", err)
	}
}

// What no client of good will sends ends the connection, or gets an answer.
func TestTCPBadMessages(t *testing.T) {
	s := start(t, Config{ResolvConf: writeConf(t)})
	s.Swap(NewTable(testHosts, nil, 0))
	for name, tc := range map[string]struct {
		sent  string
		reply bool
	}{
		"too long":     {"\xff\xff", false},
		"cut in half":  {"\x00\x40abc", false}, // ended by tcpMessage
		"no question":  {"\x00\x0c\x12\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", true},
		"short header": {"\x00\x00", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialTCP(t, s)
			c.Write([]byte(tc.sent))
			if name == "short header" { // silence, and the connection goes on
				writeFramed(c, wireQuery(t, 1, "aliyun.com."))
				tc.reply = true
			}
			_, err := readFramed(c)
			if (err == nil) != tc.reply {
				t.Errorf("got %v", err)
			}
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection stays open")
			}
		})
	}
}

// The 65th connection closes the one that is idle longest.
func TestTCPConnectionBound(t *testing.T) {
	s := start(t, Config{ResolvConf: writeConf(t)})
	s.Swap(NewTable(testHosts, nil, 0))
	ask := func(c net.Conn) error {
		if err := writeFramed(c, wireQuery(t, 1, "aliyun.com.")); err != nil {
			return err
		}
		_, err := readFramed(c)
		return err
	}
	var open []net.Conn
	for i := range maxConns {
		c := dialTCP(t, s)
		if err := ask(c); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		open = append(open, c)
	}
	if err := ask(open[0]); err != nil { // now the second one is idle longest
		t.Fatal(err)
	}
	if err := ask(dialTCP(t, s)); err != nil {
		t.Fatalf("one more connection: %v", err)
	}
	if _, err := readFramed(open[1]); err == nil {
		t.Error("the idle connection is still open")
	}
	if err := ask(open[0]); err != nil {
		t.Errorf("a connection in use was closed: %v", err)
	}
	if st := s.Stats(); st.TCPOpen > maxConns || st.TCPCut != 1 {
		t.Errorf("open %d, cut %d", st.TCPOpen, st.TCPCut)
	}
}
