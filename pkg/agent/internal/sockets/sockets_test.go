package sockets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/status"
	"understudy.mesh/tests/descriptors"
)

// testConfig has a port of its own for each server.
func testConfig(t *testing.T) config.Config {
	t.Helper()
	var ports [4]uint16
	for i := range ports {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	return config.Config{
		IPv4: true, StatusPort: ports[0], ReadyPort: ports[1], AdminPort: ports[2],
		DNSCapture: true, DNSAddrs: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ports[3])},
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// envoySocket puts a listening socket of an Envoy's into set, and returns its address.
func envoySocket(t *testing.T, set *hotrestart.Sockets, worker uint32) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	address := "tcp://" + l.Addr().String()
	if err := set.Add(hotrestart.Socket{Name: hotrestart.EnvoySocketName(address, worker), File: f}); err != nil {
		t.Fatal(err)
	}
	return address
}

// TestSocketsOfTwoGenerations goes through the life of a generation's sockets: bound,
// handed over, inherited, settled, closed. Nothing leaks on the way.
func TestSocketsOfTwoGenerations(t *testing.T) {
	cfg := testConfig(t)
	open := descriptors.OpenSockets(t)
	first, err := New(&cfg, nil, quiet())
	if err != nil {
		t.Fatal(err)
	}
	used := envoySocket(t, first.envoy, 0)
	surplus := envoySocket(t, first.envoy, 7)
	all, err := first.Copy()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(slices.Values(all.Names())), first.Names(); !slices.Equal(got, want) {
		t.Errorf("given %q, want %q", got, want)
	}
	second, err := New(&cfg, all, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := second.own.Names(), first.own.Names(); !slices.Equal(got, want) {
		t.Errorf("inherited %q, want %q", got, want)
	}
	if fd, ok := second.ForEnvoy(used, 0); !ok {
		t.Error("Envoy does not get the socket of the one before")
	} else {
		second.envoy.AddDescriptor(hotrestart.EnvoySocketName(used, 0), fd)
	}
	if !second.Inherits() {
		t.Error("it stands for itself before it has settled")
	}
	first.Close()
	second.Settle()
	second.Settle()
	if _, ok := second.ForEnvoy(surplus, 7); ok {
		t.Error("a socket that nobody took is still there after settle")
	}
	if fd, ok := second.ForEnvoy(used, 0); !ok {
		t.Error("the socket that was taken is gone after settle")
	} else {
		os.NewFile(uintptr(fd), "copy").Close()
	}
	if second.Inherits() || second.Predecessors().Len() != 0 {
		t.Error("there are predecessors after settle")
	}
	second.DropEnvoySockets()
	if _, ok := second.ForEnvoy(used, 0); ok {
		t.Error("Envoy's socket is still there although the next Envoy binds its own")
	}
	second.Close()
	second.Close()
	if left := descriptors.OpenSockets(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
}

// TestInheritedSocketsAreServed: what waits in a socket survives the generation that bound it.
func TestInheritedSocketsAreServed(t *testing.T) {
	cfg := testConfig(t)
	open := descriptors.OpenSockets(t)
	first, err := New(&cfg, nil, quiet())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", cfg.StatusPort))
	if err != nil {
		t.Fatal(err)
	}
	all, err := first.Copy()
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(&cfg, all, quiet())
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	second.Settle()
	for _, use := range []struct {
		use  Use
		port uint16
	}{{UseStatus, cfg.StatusPort}, {UseProbe, cfg.ReadyPort}, {UseAdmin, cfg.AdminPort}} {
		listeners, err := second.Listeners(use.use, use.port)
		if err != nil || len(listeners) == 0 {
			t.Fatalf("%s: %d listeners, %v", use.use, len(listeners), err)
		}
		if use.use == UseStatus {
			accepted, err := listeners[0].Accept()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(accepted, "hello")
			accepted.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
	}
	if got, _ := io.ReadAll(c); string(got) != "hello" {
		t.Errorf("the connection that waited got %q", got)
	}
	udp, tcp, err := second.DNS()
	if err != nil || len(udp) != 1 || len(tcp) != 1 {
		t.Fatalf("DNS: %d, %d, %v", len(udp), len(tcp), err)
	}
	udp[0].Close()
	tcp[0].Close()
	c.Close()
	second.Close()
	if left := descriptors.OpenSockets(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
}

func TestSocketsAreBoundAllOrNone(t *testing.T) {
	cfg := testConfig(t)
	open := descriptors.OpenSockets(t)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", cfg.AdminPort))
	if err != nil {
		t.Fatal(err)
	}
	given := new(hotrestart.Sockets)
	envoySocket(t, given, 0)
	if _, err := New(&cfg, given, quiet()); err == nil || !strings.Contains(err.Error(), "--proxyAdminPort") {
		t.Errorf("error is %v, want one that names --proxyAdminPort", err)
	}
	if given.Len() != 1 {
		t.Error("what was given is not the caller's any more")
	}
	taken.Close()
	given.Close()

	whole, err := New(&cfg, nil, quiet())
	if err != nil {
		t.Fatal(err)
	}
	all, err := whole.Copy()
	if err != nil {
		t.Fatal(err)
	}
	all.Retain(func(name string) bool { return !strings.Contains(name, "dns tcp") })
	if _, err := New(&cfg, all, quiet()); err == nil {
		t.Error("half of the DNS sockets were taken for all")
	}
	all.Close()
	whole.Close()
	if left := descriptors.OpenSockets(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
}

// TestRefreshAfterCloseKeepsNothing: Envoy may answer when its generation has let go of all.
func TestRefreshAfterCloseKeepsNothing(t *testing.T) {
	cfg := testConfig(t)
	open := descriptors.OpenSockets(t)
	s, err := New(&cfg, nil, quiet())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	late := new(hotrestart.Sockets)
	envoySocket(t, late, 0)
	s.take(late)
	if left := descriptors.OpenSockets(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
	if err := s.Refresh(context.Background(), (&envoy.Instance{}).Fetch); !errors.Is(err, envoy.ErrNoHotRestart) {
		t.Errorf("an Envoy without hot restart: %v", err)
	}
}

// TestHalfOfTheDNSSockets: a copy that nobody reads swallows questions.
func TestHalfOfTheDNSSockets(t *testing.T) {
	cfg := testConfig(t)
	s, err := New(&cfg, nil, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.own.Retain(func(name string) bool { return !strings.Contains(name, "dns tcp") })
	open := descriptors.OpenSockets(t)
	if _, _, err := s.DNS(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that one is missing", err)
	}
	if left := descriptors.OpenSockets(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
}

// A port of the DNS server may be held by a socket that listens to nobody.
func TestDNSPortTaken(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:0")
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			var bound net.Addr
			if network == "udp" {
				c, err := net.ListenPacket("udp4", addr.String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				bound = c.LocalAddr()
			} else {
				l, err := net.Listen("tcp4", addr.String())
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				bound = l.Addr()
			}
			s := &Set{log: quiet(), own: new(hotrestart.Sockets)}
			defer s.own.Close()
			taken := netip.MustParseAddrPort(bound.String())
			err := s.listenDNS([]netip.AddrPort{taken})
			if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), status.Taken(taken.Port(), "DNS_PROXY_ADDR")) {
				t.Errorf("%v: %v", bound, err)
			}
		})
	}
}

// TestReuseportIsRestrictedForAWhile has an Envoy with one worker take over from one with two.
func TestReuseportIsRestrictedForAWhile(t *testing.T) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	config.SetMultipathTCP(false) // Envoy's are none, and the kernel takes no program for those
	address := "127.0.0.1:0"
	s := &Set{log: quiet(), own: new(hotrestart.Sockets), envoy: new(hotrestart.Sockets), given: new(hotrestart.Sockets)}
	defer s.Close()
	for worker, sets := range [][]*hotrestart.Sockets{{s.given, s.envoy}, {s.given}} {
		l, err := config.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		address = l.Addr().String()
		for _, set := range sets {
			f, err := l.(*net.TCPListener).File()
			if err == nil {
				err = set.Add(hotrestart.Socket{Name: hotrestart.EnvoySocketName("tcp://"+address, uint32(worker)), File: f})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	connect := func(n int) (taken int) {
		t.Helper()
		before, _ := hotrestart.Queued(s.envoy)
		for range n {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}
		after, err := hotrestart.Queued(s.envoy)
		if err != nil {
			t.Fatal(err)
		}
		return after - before
	}
	const many = 60 // all by chance in one of two: never
	s.RestrictReuseport()
	if got := connect(many); got != many {
		t.Errorf("restricted: %d of %d connections at the worker that there is", got, many)
	}
	s.UnrestrictReuseport()
	if got := connect(many); got == many {
		t.Error("not restricted any more, and the other socket gets no connection")
	}
}

// TestNamesOfSocketsStay: other releases look for a socket by its name.
func TestNamesOfSocketsStay(t *testing.T) {
	got := []string{tcpName(UseStatus, 15020, 0), tcpName(UseProbe, 15021, 1), tcpName(UseAdmin, 15000, 0), dnsName("udp", netip.MustParseAddrPort("127.0.0.1:15053"))}
	want := []string{"agent status tcp 15020 0", "agent probe tcp 15021 1", "agent admin tcp 15000 0", "agent dns udp 127.0.0.1:15053"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
