package hotrestart

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// TestQuench: who waits is accepted and served, who comes later is refused.
func TestQuench(t *testing.T) {
	s, address := group(t, 2)
	var waits []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waits = append(waits, c)
	}
	if n, err := Queued(s); n != len(waits) || err != nil {
		t.Fatalf("%d wait, want %d: %v", n, len(waits), err)
	}
	if err := Quench(s); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("who came late: %v, %v, want a refusal", c, err)
	}
	served := 0
	for _, name := range s.Names() {
		served += serveQueued(t, s, name)
	}
	if n, err := Queued(s); n != 0 || err != nil {
		t.Errorf("%d wait, want none: %v", n, err)
	}
	if served != len(waits) {
		t.Errorf("%d were served, want %d", served, len(waits))
	}
	s.Close()
	for _, c := range waits {
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("one that waited got %q, %v", got, err)
		}
	}
}

// serveQueued says hello to everybody who waits in a socket.
func serveQueued(t *testing.T, s *Sockets, name string) (served int) {
	t.Helper()
	f, err := s.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for {
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Millisecond))
		c, err := l.Accept()
		if err != nil {
			return served
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Error(err)
		}
		c.Close()
		served++
	}
}

// TestQuenchLeavesOthersAlone: what is no listening TCP socket is none of its business.
func TestQuenchLeavesOthersAlone(t *testing.T) {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	f, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	s := new(Sockets)
	defer s.Close()
	if err := s.Add(Socket{Name: "agent dns udp", File: f}); err != nil {
		t.Fatal(err)
	}
	if err := Quench(s); err != nil {
		t.Fatal(err)
	}
	if n, err := Queued(s); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	c, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if n, err := udp.Read(got); string(got[:n]) != "hello" || err != nil {
		t.Errorf("%q, %v", got[:n], err)
	}
}
