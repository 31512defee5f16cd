package hotrestart

import (
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// group binds n sockets to one address, as the workers of a listener.
func group(t *testing.T, n uint32) (*Sockets, string) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	config.SetMultipathTCP(false) // Envoy's are none, and the kernel takes no program for those
	s, address := new(Sockets), "127.0.0.1:0"
	for worker := range n {
		l, err := config.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		address = l.Addr().String()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if err := s.Add(Socket{Name: EnvoySocketName("tcp://"+address, worker), File: f}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { s.Close() })
	return s, address
}

// reached connects again and again, and tells in how many sockets connections wait.
func reached(t *testing.T, s *Sockets, address string) map[string]int {
	t.Helper()
	for range 100 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	waiting := map[string]int{}
	for _, name := range s.Names() {
		if n := serveQueued(t, s, name); n > 0 {
			waiting[name[strings.LastIndexByte(name, ' ')+1:]] = n
		}
	}
	return waiting
}

func TestReuseport(t *testing.T) {
	all, address := group(t, 4)
	used, err := all.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	used.Retain(func(name string) bool { return strings.HasSuffix(name, " 0") || strings.HasSuffix(name, " 1") })

	if got := reached(t, all, address); len(got) != 4 {
		t.Fatalf("before: %v", got)
	}
	if n, err := RestrictReuseport(all, all); n != 0 || err != nil {
		t.Errorf("as many workers: %d, %v", n, err)
	}
	if n, err := RestrictReuseport(all, used); n != 1 || err != nil {
		t.Fatalf("restricted %d, %v", n, err)
	}
	if got := reached(t, all, address); len(got) != 2 || got["0"] == 0 || got["1"] == 0 {
		t.Errorf("restricted: %v, want 0 and 1 only", got)
	}
	if err := UnrestrictReuseport(used); err != nil {
		t.Fatal(err)
	}
	if got := reached(t, all, address); len(got) != 4 {
		t.Errorf("unrestricted: %v", got)
	}
	if err := UnrestrictReuseport(used); err != nil {
		t.Errorf("again: %v", err)
	}

	// What is left when the surplus is closed is served as ever, with the program or without.
	if _, err := RestrictReuseport(all, used); err != nil {
		t.Fatal(err)
	}
	all.Close()
	if got := reached(t, used, address); len(got) != 2 {
		t.Errorf("surplus closed: %v", got)
	}
	if err := UnrestrictReuseport(used); err != nil {
		t.Error(err)
	}
}
