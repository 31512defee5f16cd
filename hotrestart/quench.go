package hotrestart

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// noInterface is the index of no network interface: the kernel counts them from 1 and
// does not ask whether the one that a socket is bound to is there.
const noInterface = 0x7fffffff

// Quench has the kernel refuse whoever begins to connect to a TCP socket of s, while what
// is connected, or about to be, goes on, and can be accepted. To close a listening
// socket resets every connection that still waits in it; once it is quenched and Queued
// is 0, nobody does.
//
// It binds the sockets to a network interface that there is not, from which nothing
// comes (SO_BINDTOIFINDEX, socket(7); without privileges since Linux 5.7). It concerns
// the socket and so everybody who has a copy, and cannot be undone: a socket is quenched
// to be closed.
func Quench(s *Sockets) error {
	return s.Each(func(name string, fd int) error {
		if !listensTCP(fd) {
			return nil
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, noInterface); err != nil {
			return fmt.Errorf("keep new connections from the socket %q: %w", name, err)
		}
		return nil
	})
}

// Queued counts the connections that wait in the TCP sockets of s to be accepted.
func Queued(s *Sockets) (n int, err error) {
	err = s.Each(func(name string, fd int) error {
		if !listensTCP(fd) {
			return nil
		}
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

func listensTCP(fd int) bool {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_MPTCP {
		return false
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listens == 1
}
