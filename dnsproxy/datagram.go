package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// upstreamBuffer is larger than the 1232 we ask for: some servers send
	// more, and what fits needs no TCP.
	upstreamBuffer = 4096

	// maxStray is how many datagrams that are not the answer are passed over
	// in one try. A forger needs thousands; a duplicate is one.
	maxStray = 32
)

var errStray = errors.New("too many messages that are no answer to the query")

// datagram is a question on its way over UDP, from a port of its own that the
// kernel picked at random. Its socket is connected: what others send to it
// never arrives. It is a file rather than a [net.Conn], which would ask the
// kernel for addresses that nobody reads: half the cost of a forwarded query.
type datagram struct {
	*os.File
	server  netip.AddrPort
	request []byte
}

// send opens a socket and sends request.
func send(server netip.AddrPort, request []byte) (datagram, error) {
	family, addr, err := sockaddr(server)
	if err != nil {
		return datagram{}, fmt.Errorf("ask %s: %w", server, err)
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return datagram{}, fmt.Errorf("ask %s: %w", server, os.NewSyscallError("socket", err))
	}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return datagram{}, fmt.Errorf("ask %s: %w", server, os.NewSyscallError("connect", err))
	}
	d := datagram{File: os.NewFile(uintptr(fd), "udp"), server: server, request: request}
	if _, err := d.Write(request); err != nil {
		d.Close()
		return datagram{}, fmt.Errorf("ask %s: %w", server, err)
	}
	return d, nil
}

// receive returns the answer, in buf, if it comes in time; otherwise the error
// is [os.ErrDeadlineExceeded], and receive may be called again.
func (d datagram) receive(buf []byte, until time.Time) ([]byte, error) {
	if err := d.SetReadDeadline(until); err != nil {
		return nil, fmt.Errorf("ask %s: %w", d.server, err)
	}
	for range maxStray {
		n, err := d.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) { // which is how a file says that a datagram is empty
			return nil, fmt.Errorf("ask %s: %w", d.server, err)
		}
		if !isReply(buf[:n], d.request) {
			continue
		}
		if n == len(buf) { // perhaps cut by us: the same as cut by them
			binary.BigEndian.PutUint16(buf[2:], flagsOf(buf)|flagTC)
		}
		return buf[:n], nil
	}
	return nil, fmt.Errorf("ask %s: %w", d.server, errStray)
}

func sockaddr(a netip.AddrPort) (family int, addr unix.Sockaddr, err error) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	in6 := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		if in6.ZoneId, err = zoneID(zone); err != nil {
			return 0, nil, err
		}
	}
	return unix.AF_INET6, in6, nil
}

// zoneID returns the index of the interface that a zone names.
func zoneID(zone string) (uint32, error) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", zone, err)
	}
	return uint32(i.Index), nil
}
