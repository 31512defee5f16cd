package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/internal/access"
)

// Netlink of nf_tables: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h.
// github.com/google/nftables only writes the expressions: it reads past those that it does
// not know, cannot say which message was refused, and does not bind a batch to a state.

const (
	nfgenmsgLen = 4 // family, version, resource

	// One attribute holds at most 64 KiB, so elements go in chunks of less.
	maxElementBytes = 60_000

	// receiveBytes is the most that netlink_recvmsg() in the kernel puts into a datagram.
	// Large ones matter: a set is walked from its start for each.
	receiveBytes = 32 << 10

	// errorBytes is what a refusal takes of the receive buffer, bookkeeping included.
	errorBytes = 1024

	// netlinkTimeout is for a lost answer: the kernel has it ready when a message is sent.
	netlinkTimeout = 30 * time.Second
)

// nfConn is a netlink socket to nf_tables of the calling thread's network namespace.
type nfConn struct {
	fd  int
	seq uint32
	buf []byte
}

func dialNetfilter() (*nfConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		// A refusal then repeats only the header of what it is about.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &nfConn{fd: fd, buf: make([]byte, receiveBytes)}, nil
}

func (c *nfConn) Close() error { return unix.Close(c.fd) }

// appendMessage adds a message with the next number.
func (c *nfConn) appendMessage(b []byte, kind, flags uint16, head [nfgenmsgLen]byte, attrs []byte) []byte {
	c.seq++
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(head)+len(attrs))) // attributes are aligned
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // from whom: the kernel knows
	return append(append(b, head[:]...), attrs...)
}

func (c *nfConn) send(b []byte) error {
	return unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// reply is one message of the kernel's. Of an error, data is what it is about.
type reply struct {
	kind, flags uint16
	seq         uint32
	data        []byte
	err         error
}

// receive returns the messages of one datagram.
func (c *nfConn) receive() (out []reply, err error) {
	n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
	for errors.Is(err, unix.EINTR) { // a socket with a time-out is not restarted
		n, _, err = unix.Recvfrom(c.fd, c.buf, 0)
	}
	b := bytes.Clone(c.buf[:max(n, 0)])
	for err == nil && len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			break
		}
		r := reply{
			kind:  binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			data:  b[unix.NLMSG_HDRLEN:size],
		}
		if (r.kind == unix.NLMSG_ERROR || r.kind == unix.NLMSG_DONE) && len(r.data) >= 4 {
			if code := int32(binary.NativeEndian.Uint32(r.data)); code < 0 {
				r.err = unix.Errno(-code)
			}
		}
		out = append(out, r)
		b = b[min((size+attrAlignment-1)&^(attrAlignment-1), len(b)):]
	}
	return out, err
}

// ask returns the answers to one message, each with its nfgenmsg first.
func (c *nfConn) ask(kind, flags uint16, family byte, attrs []byte) ([][]byte, error) {
	message := c.appendMessage(nil, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, [nfgenmsgLen]byte{family}, attrs)
	if err := c.send(message); err != nil {
		return nil, err
	}
	var out [][]byte
	for {
		replies, err := c.receive()
		if err != nil {
			return nil, err
		}
		for _, r := range replies {
			switch {
			case r.seq != c.seq:
			case r.err != nil:
				return nil, r.err
			case r.flags&unix.NLM_F_DUMP_INTR != 0:
				return nil, errStale
			case r.kind == unix.NLMSG_DONE:
				return out, nil
			case len(r.data) >= nfgenmsgLen:
				out = append(out, r.data)
				if r.flags&unix.NLM_F_MULTI == 0 {
					return out, nil
				}
			}
		}
	}
}

// dump returns the attributes of every object of our family.
func (c *nfConn) dump(kind uint16, attrs []byte) ([][]byte, error) {
	replies, err := c.ask(kind, unix.NLM_F_DUMP, unix.NFPROTO_INET, attrs)
	for i := range replies {
		replies[i] = replies[i][nfgenmsgLen:]
	}
	return replies, err
}

// generation returns the number of the state of nf_tables: each commit makes another.
func (c *nfConn) generation() (uint32, error) {
	replies, err := c.ask(unix.NFT_MSG_GETGEN, 0, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return 0, err
	}
	return attrUint32(replies[0][nfgenmsgLen:], unix.NFTA_GEN_ID), nil
}

// errStale says that somebody else changed nf_tables since it was read.
var errStale = errors.New("nf_tables was changed by another process meanwhile")

// nfChange is one message of a batch, and its words for an error.
type nfChange struct {
	kind, flags uint16
	attrs       []byte
	what        string
}

// commit makes all changes at once or, on an error, none.
func (c *nfConn) commit(generation uint32, changes []nfChange) error {
	subsystem := [nfgenmsgLen]byte{3: unix.NFNL_SUBSYS_NFTABLES} // 16 bits, big-endian
	batch := c.appendMessage(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, subsystem, appendUint32(nil, unix.NFNL_BATCH_GENID, generation))
	first := c.seq + 1
	for i, ch := range changes {
		if i == len(changes)-1 {
			ch.flags |= unix.NLM_F_ACK // what is refused before is told in any case
		}
		batch = c.appendMessage(batch, unix.NFNL_SUBSYS_NFTABLES<<8|ch.kind, ch.flags, [nfgenmsgLen]byte{unix.NFPROTO_INET}, ch.attrs)
	}
	last := c.seq
	batch = c.appendMessage(batch, unix.NFNL_MSG_BATCH_END, 0, subsystem, nil)
	c.makeRoom(unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, len(batch))
	c.makeRoom(unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, len(changes)*errorBytes)
	if err := c.send(batch); err != nil {
		return explain(fmt.Sprintf("send a transaction of %d bytes", len(batch)), err)
	}
	for {
		replies, err := c.receive()
		if err != nil {
			return explain("read what became of a transaction", err)
		}
		for _, r := range replies {
			switch {
			case errors.Is(r.err, unix.ERESTART):
				return errStale
			case r.err != nil && r.seq >= first && r.seq <= last:
				return explain(changes[r.seq-first].what, r.err)
			case r.err != nil:
				return explain("begin a transaction", r.err)
			case r.seq == last:
				return nil
			}
		}
	}
}

// makeRoom sizes a buffer of the socket: the kernel takes a transaction as one datagram.
// Within the system's limits (a user namespace) sending says if that is too little.
func (c *nfConn) makeRoom(force, option, size int) {
	const spare = 32 << 10
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, force, size+spare) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, option, size+spare)
	}
}

// remedies are what can be done about what the kernel says.
var remedies = []struct {
	says unix.Errno
	do   string
}{
	{unix.EPERM, access.Needs},
	{unix.ENOENT, Missing},
	{unix.EOPNOTSUPP, Missing},
	{unix.EAFNOSUPPORT, Missing},
	{unix.EPROTONOSUPPORT, Missing},
	{unix.EMSGSIZE, "the lists are longer than a socket may send at once: raise the sysctl net.core.wmem_max"},
	{unix.ENOBUFS, "the answers are more than a socket may hold: raise the sysctl net.core.rmem_max"},
}

// Missing says what the kernel needs, where it has not got it.
const Missing = "the kernel lacks a part of nf_tables: it takes Linux 5.2 with IPv6 and the modules nf_tables, nft_chain_nat, nft_redir, nft_ct and, for TPROXY, nft_tproxy on the node; or install iptables in this container's image"

// explain makes one line of what was refused, the kernel's word, and the remedy.
func explain(what string, err error) error {
	for _, r := range remedies {
		if errors.Is(err, r.says) {
			return fmt.Errorf("%s: %w: %s", what, err, r.do)
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

const (
	attrHeader    = 4 // of an attribute: length and type, 16 bits each
	attrAlignment = 4
	attrTypeMask  = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
)

func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	for len(b)%attrAlignment != 0 {
		b = append(b, 0)
	}
	return b
}

func appendNested(b []byte, kind uint16, data []byte) []byte {
	return appendAttr(b, kind|unix.NLA_F_NESTED, data)
}

func appendName(b []byte, kind uint16, name string) []byte {
	return appendAttr(b, kind, append([]byte(name), 0))
}

func appendUint32(b []byte, kind uint16, n uint32) []byte {
	return appendAttr(b, kind, binary.BigEndian.AppendUint32(nil, n))
}

// attributes yields type and data of each attribute in b, until one is cut off.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrHeader {
			n := int(binary.NativeEndian.Uint16(b))
			if n < attrHeader || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[attrHeader:n]) {
				return
			}
			b = b[min((n+attrAlignment-1)&^(attrAlignment-1), len(b)):]
		}
	}
}

// attribute returns the data of the first attribute of a type, nil when there is none.
func attribute(b []byte, kind uint16) []byte {
	for k, data := range attributes(b) {
		if k == kind {
			return data
		}
	}
	return nil
}

// attrName returns a string without the NUL at its end.
func attrName(b []byte, kind uint16) string {
	data := attribute(b, kind)
	if n := len(data); n > 0 && data[n-1] == 0 {
		data = data[:n-1]
	}
	return string(data)
}

// attrUint32 returns 0 when there is none.
func attrUint32(b []byte, kind uint16) uint32 {
	if data := attribute(b, kind); len(data) >= 4 {
		return binary.BigEndian.Uint32(data)
	}
	return 0
}
