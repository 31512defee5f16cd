package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many datagrams a system call moves: a few dozen make
	// its price small, and what was read when the sockets are let go must
	// still be answered.
	batchSize = 32

	// maxDatagram bounds a query over UDP: a question and an OPT record with
	// padding (RFC 8467: to 128 bytes) fit many times. A longer one is cut off,
	// and refused for it. Replies are longer only when the client says so.
	maxDatagram = 1232

	// controlSize is the room for one IP_PKTINFO or IPV6_PKTINFO, ip(7), ipv6(7).
	controlSize = unix.SizeofCmsghdr + (unix.SizeofInet6Pktinfo+7)&^7
)

// udpBatch is a batch of queries and of the replies to them: the arguments of
// recvmmsg(2) and sendmmsg(2) over buffers that are made once. The batches of
// golang.org/x/net/ipv4 take as much processor time, but make the address of each
// datagram anew: 64 allocations and 1.7 kB for 32 queries and their replies, where
// here there is none. Waiting stays in
// the runtime's poller, so that deadlines end it. One goroutine uses it.
type udpBatch struct {
	conn      *net.UDPConn
	raw       syscall.RawConn
	addressed bool // replies must say which address they come from

	received  int // queries in the batch
	replies   int // replies gathered
	sent      int
	errno     unix.Errno
	recv      func(fd uintptr) bool // receiveOn and sendOn: made once, for a
	send      func(fd uintptr) bool // method value is an allocation
	in, out   [batchSize]unix.Mmsghdr
	inVec     [batchSize]unix.Iovec
	outVec    [batchSize]unix.Iovec
	peers     [batchSize]unix.RawSockaddrInet6 // has room for IPv4's
	control   [batchSize][controlSize / 8]uint64
	inBuffer  [batchSize][maxDatagram]byte
	outBuffer [batchSize][maxDatagram]byte
}

// newUDPBatch prepares conn. A socket that is bound to no address in particular
// is to say which one was asked: a client ignores a reply from any other.
func newUDPBatch(conn *net.UDPConn) (*udpBatch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &udpBatch{conn: conn, raw: raw}
	b.recv, b.send = b.receiveOn, b.sendOn
	if local, ok := conn.LocalAddr().(*net.UDPAddr); ok && local.IP.IsUnspecified() {
		b.addressed = true
		if err := askForAddress(raw); err != nil {
			return nil, fmt.Errorf("have the kernel say which address is asked: %w", err)
		}
	}
	for i := range b.in {
		peer := (*byte)(unsafe.Pointer(&b.peers[i]))
		b.inVec[i].Base = &b.inBuffer[i][0]
		b.inVec[i].SetLen(maxDatagram)
		b.in[i].Hdr = unix.Msghdr{Name: peer, Iov: &b.inVec[i], Iovlen: 1}
		b.reset(i)
	}
	return b, nil
}

// askForAddress sets the option on the kernel's socket, which other processes
// may hold as well: to those that do not look it means nothing.
func askForAddress(raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			failed = err
		case family == unix.AF_INET6:
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err != nil {
		return err
	}
	return failed
}

// reset makes the i-th place ready to be received into: the kernel has written
// what it used of the address and of the control data.
func (b *udpBatch) reset(i int) {
	b.in[i].Hdr.Namelen = unix.SizeofSockaddrInet6
	if b.addressed {
		b.in[i].Hdr.Control = (*byte)(unsafe.Pointer(&b.control[i]))
		b.in[i].Hdr.SetControllen(controlSize)
	}
}

// receive waits for queries and returns how many there are. Errors are the
// socket's.
func (b *udpBatch) receive() (int, error) {
	for i := range b.received {
		b.reset(i)
	}
	b.received, b.replies, b.errno = 0, 0, 0
	if err := b.raw.Read(b.recv); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, b.errno
	}
	return b.received, nil
}

func (b *udpBatch) receiveOn(fd uintptr) (done bool) {
	b.received, done = b.move(unix.SYS_RECVMMSG, fd, &b.in[0], batchSize)
	return done
}

func (b *udpBatch) sendOn(fd uintptr) (done bool) {
	n, done := b.move(unix.SYS_SENDMMSG, fd, &b.out[b.sent], b.replies-b.sent)
	b.sent += n
	return done
}

// move makes a call that moves up to n datagrams, and says whether it is done or
// has to wait. It does not tell the scheduler that it enters a system call: the
// call never waits, and on a busy machine the scheduler would give the processor
// away meanwhile, and the rest of the batch to another thread.
func (b *udpBatch) move(call, fd uintptr, first *unix.Mmsghdr, n int) (moved int, done bool) {
	for {
		got, _, errno := unix.RawSyscall6(call, fd, uintptr(unsafe.Pointer(first)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, false
		case 0:
			return int(got), true
		}
		b.errno = errno
		return 0, true
	}
}

// query returns the i-th datagram.
func (b *udpBatch) query(i int) []byte { return b.inBuffer[i][:b.in[i].Len] }

// room returns the i-th query's place for its reply.
func (b *udpBatch) room(i int) []byte { return b.outBuffer[i][:0] }

// add puts reply, made for the i-th query, among those that flush sends.
func (b *udpBatch) add(i int, reply []byte) {
	at := b.replies
	b.outVec[at].Base = &reply[0]
	b.outVec[at].SetLen(len(reply))
	h := &b.out[at].Hdr
	*h = b.in[i].Hdr
	h.Iov = &b.outVec[at]
	h.Flags = 0
	if b.addressed {
		h.SetControllen(len(b.from(i)))
		if h.Controllen == 0 {
			h.Control = nil
		}
	}
	b.replies++
}

// flush sends what was added. What cannot be sent is left out, for its client is
// gone or out of reach; err is the last reason.
func (b *udpBatch) flush() (lost int, err error) {
	b.sent = 0
	for b.sent < b.replies {
		b.errno = 0
		if err := b.raw.Write(b.send); err != nil {
			return b.replies - b.sent, err
		}
		if b.errno != 0 { // of the first one: go on behind it
			lost, err = lost+1, b.errno
			b.sent++
		}
	}
	return lost, err
}

// from returns the control data that makes a reply to the i-th query come from
// the address that was asked; nil where the socket has only one. In place: what
// the kernel has said about the query is nearly what it wants to hear.
func (b *udpBatch) from(i int) []byte {
	h := &b.in[i].Hdr
	if !b.addressed || h.Controllen < unix.SizeofCmsghdr {
		return nil
	}
	control := unsafe.Slice(h.Control, h.Controllen)
	head := (*unix.Cmsghdr)(unsafe.Pointer(h.Control))
	data := control[unix.SizeofCmsghdr:]
	switch {
	case head.Level == unix.IPPROTO_IP && head.Type == unix.IP_PKTINFO:
		clear(data[:4]) // the interface: the routing table knows better
	case head.Level == unix.IPPROTO_IPV6 && head.Type == unix.IPV6_PKTINFO:
		if address := data[:16]; address[0] != 0xFE || address[1]&0xC0 != 0x80 {
			clear(data[16:20]) // but a link-local address means nothing without it
		}
	default:
		return nil
	}
	return control
}

// client is where a reply goes that leaves the batch.
type client struct {
	to   netip.AddrPort
	from [controlSize]byte
	n    int // bytes of from
}

// client returns the i-th query's, as a value of its own.
func (b *udpBatch) client(i int) client {
	var c client
	c.n = copy(c.from[:], b.from(i))
	sa := &b.peers[i]
	// The port is at the same place in both families, in network order.
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		c.to = netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
		return c
	}
	addr := netip.AddrFrom16(sa.Addr)
	if sa.Scope_id != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(sa.Scope_id), 10))
	}
	c.to = netip.AddrPortFrom(addr, port)
	return c
}
