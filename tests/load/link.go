package load

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// bufferSize holds the head of an answer and a small body: one read(2).
const bufferSize = 4 << 10

// endpoint is a flow and the counters of it, as its clients need them.
type endpoint struct {
	flow  Flow
	meter *meter
}

func (e endpoint) timeout() time.Duration { return time.Duration(e.flow.Timeout) }

// address is what the flow's TCP connections go to.
func (e endpoint) address() string {
	if e.flow.Connect != "" {
		return e.flow.Connect
	}
	return e.flow.Target
}

// link is one TCP connection of a worker.
type link struct {
	*net.TCPConn
	raw     syscall.RawConn
	r       *bufio.Reader // of the link, so that ended is known
	ended   error         // that the last read from the connection met
	expires time.Time     // zero: never
	pause   time.Duration // before the first request is complete; 0: it was, or none is wanted
}

// Read implements io.Reader for r.
func (l *link) Read(p []byte) (n int, err error) {
	n, err = l.TCPConn.Read(p)
	l.ended = err
	return n, err
}

// dial opens a connection and counts it.
func (e endpoint) dial() (*link, error) {
	c, err := dialTCP(e.address(), e.timeout())
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	e.meter.opened()
	l := &link{TCPConn: c, raw: raw, pause: time.Duration(e.flow.Pause)}
	l.r = bufio.NewReaderSize(l, bufferSize)
	if e.flow.Life > 0 {
		l.expires = time.Now().Add(time.Duration(e.flow.Life))
	}
	return l, nil
}

// dialTCP connects to a literal address or, through the resolver each time, to a name.
func dialTCP(address string, timeout time.Duration) (*net.TCPConn, error) {
	// KeepAlive: keep-alive probes would be answered by a kernel whose application is gone.
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	if literal, err := netip.ParseAddrPort(address); err == nil {
		return d.DialTCP(context.Background(), "tcp", netip.AddrPort{}, literal)
	}
	c, err := d.DialContext(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (l *link) expired() bool { return !l.expires.IsZero() && time.Now().After(l.expires) }

// closedByPeer reports whether a FIN, a reset, or anything that nobody asked for, has come over an
// idle connection. It does not wait.
func (l *link) closedByPeer() bool {
	closed := true
	var b [1]byte
	_ = l.raw.Control(func(fd uintptr) { // fails on a closed socket, which is closed
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = !errors.Is(err, syscall.EAGAIN)
	})
	return closed
}

// abort closes the connection with a reset instead of a FIN, and only once nothing more is to come
// over it: the whole answer was read, and the end of the connection agreed on. Else the side that
// closes first keeps the port in TIME_WAIT for 60 s, and conntrack its entry for 120 s: at 10,000
// connections a second the 28,000 local ports would last three seconds.
func (l *link) abort() {
	_ = l.SetLinger(0)
	_ = l.Close()
}

// unansweredError is a connection that ended before the first byte of an answer.
type unansweredError struct{ error }

func (e unansweredError) Unwrap() error { return e.error }

// kept makes exchanges over one connection for as long as both sides keep it.
type kept struct {
	endpoint
	// exchange sends a request and reads its answer; last: the connection ends with it.
	exchange func(*link) (last bool, err error)
	link     *link // nil: none is open
}

// request makes one exchange. It is made again, once, when a connection that had worked before
// ended without a byte of the answer: then the peer closed it as idle while the request was under
// way, and a client may repeat what is idempotent (RFC 9110, 9.2.2; RFC 9112, 9.3.1; for DNS, RFC
// 7766, 6.2.4).
func (k *kept) request() error {
	if k.link != nil && (k.link.expired() || k.link.closedByPeer()) {
		k.close()
		k.meter.ended()
	}
	reused := k.link != nil
	err := k.once()
	var unanswered unansweredError
	if reused && errors.As(err, &unanswered) && classify(err) != Timeout {
		k.meter.retried(1)
		return k.once()
	}
	return err
}

func (k *kept) once() error {
	if k.link == nil {
		l, err := k.dial()
		if err != nil {
			return err
		}
		k.link = l
	}
	if err := k.link.SetDeadline(time.Now().Add(k.timeout())); err != nil {
		return err
	}
	last, err := k.exchange(k.link)
	var answer *answerError
	switch {
	case err != nil && !errors.As(err, &answer):
		k.close() // whatever comes over it now would be the answer to this request
		return err
	case last:
		k.link.abort()
		k.link = nil
		k.meter.ended()
	}
	return err
}

func (k *kept) close() {
	_ = k.link.Close()
	k.link = nil
}

func (k *kept) finish() error {
	if k.link != nil {
		k.link.abort()
		k.link = nil
		k.meter.ended()
	}
	return nil
}

// send writes the request and waits for the first byte of its answer.
func (l *link) send(request []byte) error {
	if l.pause > 0 {
		half := l.pause / 2
		l.pause = 0
		time.Sleep(half) // of a slow client, in which the proxy waits for its first byte
		n, err := l.Write(request[:len(request)/2])
		if err != nil {
			return unansweredError{err}
		}
		request = request[n:]
		time.Sleep(half) // and for the rest of its first line
	}
	if _, err := l.Write(request); err != nil {
		return unansweredError{err}
	}
	if _, err := l.r.Peek(1); err != nil {
		return unansweredError{err}
	}
	return nil
}

// incomplete is what went wrong in reading an answer that had begun: the connection, whatever its
// parser made of that, or else the answer.
func (l *link) incomplete(err error) error {
	switch {
	case l.ended == nil:
		return wrongf("not the protocol: %v", err)
	case errors.Is(l.ended, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return l.ended
}
