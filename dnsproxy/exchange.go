package dnsproxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamBuffer is larger than the 1232 we ask for: some servers send
	// more, and what fits needs no TCP.
	upstreamBuffer = 4096

	// maxStray is how many datagrams that are not the answer are passed over
	// in one try. A forger needs thousands; a duplicate is one.
	maxStray = 32
)

var (
	errStray     = errors.New("too many messages that are no answer to the query")
	errTruncated = errors.New("answer truncated over TCP")
)

// exchange asks server for q, over UDP and, where the answer is cut, over TCP,
// and returns the answer in canonical form: question first, in lower case, no
// OPT, compressed. ctx bounds it.
func exchange(ctx context.Context, server netip.AddrPort, q *query, tcp bool) ([]byte, error) {
	reply, err := ask(ctx, server, q, tcp, true)
	if err != nil {
		return nil, err
	}
	// Servers from before EDNS refuse it, RFC 6891 section 7.
	if code := rcodeOf(reply); code == rcodeFormErr || code == rcodeNotImp {
		if reply, err = ask(ctx, server, q, tcp, false); err != nil {
			return nil, err
		}
	}
	return canonical(reply, q)
}

func ask(ctx context.Context, server netip.AddrPort, q *query, tcp, edns bool) ([]byte, error) {
	if !tcp {
		reply, err := askUDP(ctx, server, q, edns)
		if err != nil || flagsOf(reply)&flagTC == 0 {
			return reply, err
		}
	}
	reply, err := askTCP(ctx, server, q, edns)
	if err == nil && flagsOf(reply)&flagTC != 0 {
		err = fmt.Errorf("ask %s: %w", server, errTruncated)
	}
	return reply, err
}

// askUDP sends one datagram from a port that the kernel picks at random, on a
// connected socket: what others send to it never arrives.
func askUDP(ctx context.Context, server netip.AddrPort, q *query, edns bool) ([]byte, error) {
	conn, stop, err := dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer stop()
	request := buildRequest(q, edns)
	if _, err := conn.Write(request); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	buf := make([]byte, upstreamBuffer)
	for range maxStray {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("ask %s: %w", server, err)
		}
		if !isReply(buf[:n], request) {
			continue
		}
		if n == len(buf) { // perhaps cut by us: the same as cut by them
			binary.BigEndian.PutUint16(buf[2:], flagsOf(buf)|flagTC)
		}
		return buf[:n], nil
	}
	return nil, fmt.Errorf("ask %s: %w", server, errStray)
}

func askTCP(ctx context.Context, server netip.AddrPort, q *query, edns bool) ([]byte, error) {
	conn, stop, err := dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer stop()
	request := buildRequest(q, edns)
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(request)), uint16(len(request)))
	if _, err := conn.Write(append(framed, request...)); err != nil {
		return nil, fmt.Errorf("ask %s over TCP: %w", server, err)
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, fmt.Errorf("ask %s over TCP: %w", server, err)
	}
	reply := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, fmt.Errorf("ask %s over TCP: %w", server, err)
	}
	if !isReply(reply, request) {
		return nil, fmt.Errorf("ask %s over TCP: %w", server, errStray)
	}
	return reply, nil
}

// dial connects, and sees that the end of ctx ends whatever conn waits for.
// stop closes conn.
func dial(ctx context.Context, network string, server netip.AddrPort) (conn net.Conn, stop func(), err error) {
	var d net.Dialer
	conn, err = d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, nil, fmt.Errorf("ask %s: %w", server, err)
	}
	unhook := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { unhook(); conn.Close() }, nil
}

// buildRequest returns the query that is sent for q, with an id of its own and
// the name in lower case, so that all who ask the same share the answer. AD
// asks for the AD bit in the answer (RFC 6840 section 5.7).
func buildRequest(q *query, edns bool) []byte {
	msg := make([]byte, headerLen, headerLen+int(q.questionN)+optLen)
	rand.Read(msg[:2]) // never fails
	binary.BigEndian.PutUint16(msg[2:], q.flags&(flagRD|flagCD)|flagAD)
	binary.BigEndian.PutUint16(msg[4:], 1)
	msg = append(msg, q.wire()...)
	msg = binary.BigEndian.AppendUint16(msg, q.qtype)
	msg = binary.BigEndian.AppendUint16(msg, q.qclass)
	if edns {
		msg = appendOPT(msg, q.do, 0)
	}
	return msg
}

// isReply says whether msg answers request: its id and its question. A server
// that could not read the question need not repeat it (RFC 6891 section 7).
func isReply(msg, request []byte) bool {
	if len(msg) < headerLen || msg[0] != request[0] || msg[1] != request[1] ||
		flagsOf(msg)&(flagQR|opcodes) != flagQR {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		code := rcodeOf(msg)
		return code != rcodeSuccess && code != rcodeNXDomain
	case 1:
		return sameQuestion(msg[headerLen:], request[headerLen:])
	}
	return false
}

// sameQuestion compares the question that b begins with to that of a, without
// regard to case in the name.
func sameQuestion(a, b []byte) bool {
	n, ok := skipName(b, 0)
	if !ok || len(a) < n+4 || !bytes.Equal(a[n:n+4], b[n:n+4]) {
		return false
	}
	for i := range n {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// canonical reads an upstream's reply in full, so that no malformed one is
// handed on, and writes it anew without its OPT record and compressed.
func canonical(reply []byte, q *query) ([]byte, error) {
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		return nil, fmt.Errorf("read upstream answer: %w", err)
	}
	m.Extra = withoutOPT(m.Extra)
	if m.Rcode > rcodes { // BADVERS and the like are between it and us
		return nil, fmt.Errorf("read upstream answer: rcode %s", dns.RcodeToString[m.Rcode])
	}
	if len(m.Question) == 0 { // a refusal, see isReply
		return appendReply(nil, q, 0, m.Rcode), nil
	}
	m.Zero = false
	m.Compress = true
	msg, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("repack upstream answer: %w", err)
	}
	// Unpack forgives data that is missing at a message's end or altogether,
	// and Pack then writes what nobody can read.
	if err := m.Unpack(msg); err != nil {
		return nil, fmt.Errorf("read repacked upstream answer: %w", err)
	}
	return msg, nil
}

func withoutOPT(list []dns.RR) []dns.RR {
	kept := list[:0]
	for _, rr := range list {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}
