package hotrestart

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// noInterface is the index of no network interface: the kernel counts them from 1, and
// binds a socket to one without asking whether it exists.
const noInterface = 0x7fffffff

// Quench has the kernel refuse new connections to the TCP sockets of s, while those that
// are there, or about to be, can still be accepted. Closing a listening socket resets the
// connections that wait in it: once Queued is 0, none does.
//
// It binds the sockets to a network interface that does not exist (SO_BINDTOIFINDEX,
// socket(7); without privileges since Linux 5.7). That affects every copy of a socket and
// cannot be undone: a socket is quenched to be closed.
func Quench(s *Sockets) error {
	return s.eachListener(func(name string, fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, noInterface); err != nil {
			return fmt.Errorf("keep new connections from the socket %q: %w", name, err)
		}
		return nil
	})
}

// Queued counts the connections that wait in the TCP sockets of s to be accepted.
func Queued(s *Sockets) (n int, err error) {
	err = s.eachListener(func(name string, fd int) error {
		// Of a socket that listens the kernel gives the length of its queue here (tcp_get_info).
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return fmt.Errorf("count who waits in the socket %q: %w", name, err)
		}
		n += int(info.Unacked)
		return nil
	})
	return n, err
}

// eachListener is Each for the sockets that listen by TCP.
func (s *Sockets) eachListener(visit func(name string, fd int) error) error {
	return s.Each(func(name string, fd int) error {
		protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP {
			return nil
		}
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens != 1 {
			return nil
		}
		return visit(name, fd)
	})
}
