package status

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// Socket says what [Listen] binds, and what its error tells the user.
type Socket struct {
	Port uint16 // TCP port; 0 lets the kernel choose (tests)
	// Loopback binds 127.0.0.1 and, where the kernel has it, ::1. Otherwise
	// one dual-stack socket answers on every address.
	Loopback bool
	Use      string // what the port is for, e.g. "the status server"
	Setting  string // what moves it elsewhere, e.g. "--statusPort"
}

// Listen binds the socket and returns its listeners, all *net.TCPListener,
// which the caller owns until it gives them to [New]. They are bound outside
// of [Server] because they outlive it: a hot upgrade hands them to the next
// generation. When one cannot be bound, none is left open.
func Listen(s Socket) ([]net.Listener, error) {
	if !s.Loopback {
		// Go clears IPV6_V6ONLY on a wildcard socket, and falls back to
		// 0.0.0.0 on a kernel without IPv6.
		l, err := net.Listen("tcp", ":"+portString(s.Port))
		if err != nil {
			return nil, s.explain(err)
		}
		return []net.Listener{l}, nil
	}
	v4, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", portString(s.Port)))
	if err != nil {
		return nil, s.explain(err)
	}
	port := v4.Addr().(*net.TCPAddr).Port
	v6, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(port)))
	switch {
	case err == nil:
		return []net.Listener{v4, v6}, nil
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		return []net.Listener{v4}, nil // no IPv6 here
	}
	return nil, errors.Join(s.explain(err), v4.Close())
}

// explain turns the error of a bind into one line that names the port, its
// use and the way out.
func (s Socket) explain(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on port %d for %s: %w; %s", s.Port, s.Use, err, Taken(s.Port, s.Setting))
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listen on port %d for %s: %w; ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE: choose a higher one with %s",
			s.Port, s.Use, err, s.Setting)
	}
	return fmt.Errorf("listen on port %d for %s: %w", s.Port, s.Use, err)
}

// Taken says who may have a port that is in use (EADDRINUSE), and the way out. setting is
// what moves it elsewhere. It need be no listener: the kernel gives a port to an outgoing
// connection, too, if net.ipv4.ip_local_port_range has it and
// net.ipv4.ip_local_reserved_ports has not (Linux, networking/ip-sysctl).
func Taken(port uint16, setting string) string {
	return fmt.Sprintf("another process listens there, or has an outgoing connection from it (`ss -tuanp 'sport = :%d'` shows which): stop that one, or choose another port with %s; "+
		"to keep outgoing connections off it, have it in the pod's sysctl net.ipv4.ip_local_reserved_ports", port, setting)
}

func portString(p uint16) string { return strconv.Itoa(int(p)) }
