package main

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch      = 64   // datagrams a system call; enough for a load generator's 100 outstanding queries
	packetSize = 1232 // what a DNS query over UDP fits in (DNS flag day 2020)
	// responseBit is QR in the third octet of a DNS header (RFC 1035, 4.1.1): with it, dnsperf
	// takes its own query for the answer.
	responseBit = 0x80
)

// mmsghdr is struct mmsghdr of recvmmsg(2), which x/sys/unix does not have.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// echo answers every datagram with itself, the response bit set: what the kernel and the batching
// cost without any DNS. It returns only on an error.
func echo(address string) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil || !addr.Addr().Is4() {
		return fmt.Errorf("address %q: want an IPv4 address and port", address)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a UDP socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return fmt.Errorf("bind to %s: %w", address, err)
	}
	var (
		messages [batch]mmsghdr
		vectors  [batch]unix.Iovec
		buffers  [batch][packetSize]byte
		peers    [batch]unix.RawSockaddrInet4
	)
	for i := range messages {
		vectors[i].Base = &buffers[i][0]
		messages[i].hdr.Iov = &vectors[i]
		messages[i].hdr.Iovlen = 1
		messages[i].hdr.Name = (*byte)(unsafe.Pointer(&peers[i]))
	}
	for {
		for i := range messages {
			vectors[i].SetLen(packetSize)
			messages[i].hdr.Namelen = unix.SizeofSockaddrInet4
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), batch, unix.MSG_WAITFORONE, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("recvmmsg: %w", errno)
		}
		for i := range messages[:n] {
			vectors[i].SetLen(int(messages[i].len))
			buffers[i][2] |= responseBit
		}
		for sent := uintptr(0); sent < n; {
			m, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[sent])), n-sent, 0, 0, 0)
			if errno != 0 && errno != unix.EINTR {
				return fmt.Errorf("sendmmsg: %w", errno)
			}
			sent += m
		}
	}
}
