package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// udpBuffer is larger than the 1232 we ask for: some servers send
	// more, and what fits needs no TCP.
	udpBuffer = 4096

	// maxStray is how many datagrams that are not the answer are passed over
	// in one try. A forger needs thousands; a duplicate is one.
	maxStray = 32
)

var errStray = errors.New("too many messages that are no answer to the query")

// datagram is a socket for a question over UDP, from a port that the kernel picked
// at random. It is connected: what others send to it never arrives. It is a file
// rather than a [net.Conn], which would ask the kernel for addresses that nobody
// reads: half the cost of a forwarded query.
type datagram struct {
	*os.File
	fd      int // its number, as long as it is open
	server  target
	opened  time.Time
	uses    int
	request []byte // the question that it carries
}

// target is a server to ask, and the mark of the socket to ask it with: capture lets
// what carries it out. 0 is no mark.
type target struct {
	netip.AddrPort
	mark uint32
}

// connect returns a UDP socket whose other end is t.
func (t target) connect(now time.Time) (*datagram, error) {
	family, addr, err := sockaddr(t.AddrPort)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err = t.setMark(fd); err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, addr))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &datagram{File: os.NewFile(uintptr(fd), "udp"), fd: fd, server: t, opened: now}, nil
}

// setMark marks a socket, which takes CAP_NET_ADMIN or, from Linux 5.17 on,
// CAP_NET_RAW: socket(7), SO_MARK.
func (t target) setMark(fd int) error {
	if t.mark == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(t.mark)); err != nil {
		return fmt.Errorf("mark the socket with %#x: %w", t.mark, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// dial connects over TCP.
func (t target) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		if err := c.Control(func(fd uintptr) { failed = t.setMark(int(fd)) }); err != nil {
			return err
		}
		return failed
	}}
	return d.DialContext(ctx, "tcp", t.String())
}

// receive returns the answer, in buf, if it comes in time; otherwise the error
// is [os.ErrDeadlineExceeded], and receive may be called again.
func (d *datagram) receive(buf []byte, until time.Time) ([]byte, error) {
	if err := d.SetReadDeadline(until); err != nil {
		return nil, fmt.Errorf("ask %s: %w", d.server, err)
	}
	for range maxStray {
		n, err := d.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) { // which is how a file says that a datagram is empty
			return nil, fmt.Errorf("ask %s: %w", d.server, err)
		}
		if !wire.IsReply(buf[:n], d.request) {
			continue
		}
		if n == len(buf) { // perhaps cut by us: the same as cut by them
			binary.BigEndian.PutUint16(buf[2:], wire.FlagsOf(buf)|wire.FlagTC)
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

// atOnce is a deadline that ends a wait at once.
func atOnce() time.Time { return time.Unix(1, 0) }
