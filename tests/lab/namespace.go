package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	podSuffix = "-pod"
	outSuffix = "-out"
	netnsDir  = "/run/netns" // where ip-netns(8) keeps its handles
)

// Namespace is one network namespace of a lab.
type Namespace struct {
	Name string

	handle *os.File
}

// Path returns the file that stands for the namespace, for nsenter(1) --net.
func (n *Namespace) Path() string { return filepath.Join(netnsDir, n.Name) }

func openNamespace(t T, name string) *Namespace {
	t.Helper()
	f, err := os.Open(filepath.Join(netnsDir, name))
	if err != nil {
		t.Fatalf("lab: open namespace %s: %v", name, err)
	}
	return &Namespace{Name: name, handle: f}
}

func (n *Namespace) close() { _ = n.handle.Close() }

// Do runs f on an OS thread that is inside the namespace. Sockets that f makes belong to the
// namespace for their whole life; goroutines that f starts do not run in it.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- fmt.Errorf("open the thread's own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(n.handle.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", n.Name, err)
			return
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread() // on failure the thread stays locked, and ends with this goroutine
		}
		done <- err
	}()
	return <-done
}

// Dial connects from inside the namespace, as the test's own user (root, so captured like an
// application). The address must be a literal one: there is no resolver in between.
func (n *Namespace) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return n.DialFrom(ctx, network, "", addr)
}

// DialFrom is Dial from a local address ("" leaves the choice to the kernel).
func (n *Namespace) DialFrom(ctx context.Context, network, local, addr string) (net.Conn, error) {
	// Without happy eyeballs the socket is made on the calling thread.
	d := net.Dialer{FallbackDelay: -1}
	if local != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Listen returns a TCP listener inside the namespace, closed when the test ends.
func (n *Namespace) Listen(t T, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatalf("lab: listen in %s: %v", n.Name, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket returns a UDP socket inside the namespace, closed when the test ends.
func (n *Namespace) ListenPacket(t T, addr string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		t.Fatalf("lab: listen in %s: %v", n.Name, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Command is a host command (host root file system, root user) in the namespace.
func (n *Namespace) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.Path(), "--"}, argv...)...)
}

// Run runs a host command in the namespace to its end and returns what it printed.
func (n *Namespace) Run(t T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	out, err := n.Command(ctx, argv...).CombinedOutput()
	if err != nil {
		t.Fatalf("lab: %s in %s: %v: %s", strings.Join(argv, " "), n.Name, err, out)
	}
	return string(out)
}

// wire joins the two namespaces and gives them their addresses and routes.
func (l *Lab) wire(t T, o Options) {
	t.Helper()
	steps := []string{
		"ip link add name eth0 netns " + l.Pod.Name + " type veth peer name eth0 netns " + l.Out.Name,
	}
	for _, n := range []struct{ ns, v4, v6 string }{{l.Pod.Name, PodIP, PodIPv6}, {l.Out.Name, OutIP, OutIPv6}} {
		in := "ip -n " + n.ns + " "
		steps = append(steps, in+"link set lo up", in+"addr add "+n.v4+"/24 dev eth0")
		if o.IPv4Only {
			steps = append(steps, "ip netns exec "+n.ns+" sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
		} else {
			steps = append(steps, in+"addr add "+n.v6+"/64 dev eth0 nodad")
		}
		steps = append(steps, in+"link set eth0 up")
	}
	steps = append(steps,
		"ip -n "+l.Pod.Name+" route add default via "+OutIP,
		"ip -n "+l.Out.Name+" route add local "+Internet+" dev lo")
	if !o.IPv4Only {
		steps = append(steps,
			"ip -n "+l.Pod.Name+" -6 route add default via "+OutIPv6,
			// For IPv6 a local route is not enough to bind to an address (ip(7) has no such rule for IPv4).
			"ip netns exec "+l.Out.Name+" sysctl -qw net.ipv6.ip_nonlocal_bind=1",
			"ip -n "+l.Out.Name+" -6 route add local "+InternetIPv6+" dev lo")
	}
	for _, s := range steps {
		argv := strings.Fields(s)
		if _, err := run(argv[0], argv[1:]...); err != nil {
			t.Fatalf("lab: %v", err)
		}
	}
}
