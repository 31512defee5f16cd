package status

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"net"
)

const (
	// The PROXY protocol's header (haproxy's proxy-protocol.txt): a line, or a signature with four
	// bytes, of which the last two say how many follow.
	proxyLine      = "PROXY "
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyFixed     = len(proxySignature) + 4
	// maxProxyLine is the longest line, with its end.
	maxProxyLine = 107
)

var errProxyHeader = errors.New("a header of the PROXY protocol that does not end")

// proxyListener takes connections with the PROXY protocol's header as well as without. What it says is
// passed over: who may ask what goes by the connection, and a header may be forged.
type proxyListener struct{ net.Listener }

func behindProxies(listeners []net.Listener) []net.Listener {
	all := make([]net.Listener, len(listeners))
	for i, l := range listeners {
		all[i] = proxyListener{l}
	}
	return all
}

// Accept leaves reading the header to the connection's own goroutine.
func (l proxyListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &proxyConn{Conn: conn, reader: bufio.NewReader(conn)}, nil
}

// proxyConn is a connection whose first bytes may be a header.
type proxyConn struct {
	net.Conn
	reader *bufio.Reader
	past   bool  // the header, if there is one
	err    error // in it
}

// Read begins behind the header.
func (c *proxyConn) Read(p []byte) (int, error) {
	if !c.past {
		c.past, c.err = true, passHeader(c.reader)
	}
	if c.err != nil {
		return 0, c.err
	}
	return c.reader.Read(p)
}

// passHeader reads the header, if there is one. No request of HTTP begins like one.
func passHeader(r *bufio.Reader) error {
	first, err := r.Peek(1)
	if err != nil {
		return err
	}
	switch first[0] {
	case proxyLine[0]:
		return passLine(r)
	case proxySignature[0]:
		return passBinary(r)
	}
	return nil
}

func passLine(r *bufio.Reader) error {
	if begin, err := r.Peek(len(proxyLine)); err != nil || string(begin) != proxyLine {
		return err
	}
	for n := len(proxyLine); n <= maxProxyLine; n++ {
		line, err := r.Peek(n)
		if err != nil {
			return err
		}
		if bytes.HasSuffix(line, []byte("\r\n")) {
			_, err := r.Discard(n)
			return err
		}
	}
	return errProxyHeader
}

func passBinary(r *bufio.Reader) error {
	head, err := r.Peek(proxyFixed)
	if err != nil || string(head[:len(proxySignature)]) != proxySignature {
		return err
	}
	_, err = r.Discard(proxyFixed + int(binary.BigEndian.Uint16(head[len(proxySignature)+2:])))
	return err
}
