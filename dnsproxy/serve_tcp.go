package dnsproxy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// maxQuery bounds a query: a question and an OPT record with padding
	// fit many times.
	maxQuery = 4096

	// tcpIdle is how long a connection may be silent: RFC 7766 section
	// 6.2.3 wants seconds.
	tcpIdle = 10 * time.Second

	// releasedIdle is the same after Release: as long as the client of a new
	// connection may take to send its first query, so that none is lost.
	releasedIdle = tcpMessage

	// tcpMessage is how long a begun message may take to arrive, and a
	// reply to be taken: over loopback only a malicious client needs it.
	tcpMessage = 2 * time.Second

	// maxPipelined is how many queries of a connection may wait at once; the
	// next one is read when one is answered.
	maxPipelined = 128

	// maxGathered is how many bytes of replies wait for the queries behind
	// theirs: as many as a few reads bring.
	maxGathered = 8 << 10

	// tcpUnread is how much the kernel may hold of replies that a client does
	// not take, rather than the megabytes that it would: two of the largest.
	tcpUnread = 2 * wire.MaxMessage

	acceptPause = 5 * time.Millisecond // after EMFILE and the like
)

// tcpConn is one client's connection.
type tcpConn struct {
	net.Conn
	serving *Serving
	in      *bufio.Reader
	out     []byte        // replies behind their lengths, gathered for one write
	replies int           // in out
	slots   chan struct{} // one for each query that waits
	write   sync.Mutex
	active  time.Time // when it last had a whole query, or an answer late; guarded by connSet.mu
}

// serveTCP accepts connections from l until Release.
func (v *Serving) serveTCP(l *net.TCPListener) {
	failed := 0
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if v.taking.Err() != nil {
				return
			}
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				v.failed <- fmt.Errorf("accept dns connections on %s: %w", l.Addr(), err)
				return
			}
			select {
			case <-time.After(acceptPause):
			case <-v.taking.Done():
			}
			continue
		}
		failed = 0
		conn.SetWriteBuffer(tcpUnread) // where that fails, it is as it was
		c := &tcpConn{Conn: conn, serving: v, slots: make(chan struct{}, v.pipelined)}
		c.in = bufio.NewReaderSize(conn, 2+maxQuery)
		v.server.admit(v.taking, c)
		v.flights.Transport.Go(func() {
			defer v.server.dismiss(c)
			v.serveConn(c)
		})
	}
}

// serveConn reads queries until the client ends, is too slow, or Close cuts.
// Replies may overtake each other (RFC 7766 section 7). Those to queries that
// came together go together.
func (v *Serving) serveConn(c *tcpConn) {
	var pending sync.WaitGroup
	defer c.Close()
	defer pending.Wait()
	q := new(wire.Query)
	for {
		msg, err := c.next()
		if err != nil {
			return
		}
		reply, f, done := v.respond(q, msg, wire.MaxMessage, c.room())
		if !done {
			reply, err = v.dispatchTCP(c, &pending, q, f)
		}
		if err == nil && reply != nil {
			err = c.add(reply)
		}
		if err != nil {
			return
		}
	}
}

// next returns the next message, which is good until it is called again. What
// was gathered is sent before it waits.
func (c *tcpConn) next() ([]byte, error) {
	arrived := c.in.Buffered() == 0
	if arrived {
		if err := c.awaitQuery(); err != nil {
			return nil, err
		}
	}
	if !c.whole() {
		arrived = true
		if err := c.flush(); err != nil {
			return nil, err
		}
		c.SetReadDeadline(deadlineIn(tcpMessage))
	}
	head, err := c.in.Peek(2)
	if err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head))
	if n > maxQuery {
		return nil, fmt.Errorf("query of %d bytes", n)
	}
	msg, err := c.in.Peek(2 + n)
	if err != nil {
		return nil, err
	}
	if arrived {
		c.serving.server.touch(c)
	}
	_, err = c.in.Discard(2 + n)
	return msg[2:], err
}

// awaitQuery returns once something has arrived.
func (c *tcpConn) awaitQuery() error {
	if err := c.flush(); err != nil {
		return err
	}
	c.SetReadDeadline(deadlineIn(tcpIdle))
	if c.serving.taking.Err() != nil { // Release may have come before the deadline above
		c.SetReadDeadline(deadlineIn(releasedIdle))
	}
	_, err := c.in.Peek(1)
	return err
}

// whole says whether the next message is there to its end.
func (c *tcpConn) whole() bool {
	n := c.in.Buffered()
	if n < 2 {
		return false
	}
	head, _ := c.in.Peek(2)
	return n >= 2+int(binary.BigEndian.Uint16(head))
}

// room returns the place for a reply among those gathered.
func (c *tcpConn) room() []byte {
	const usual = 2 + 512
	c.out = slices.Grow(c.out, usual)
	at := len(c.out) + 2
	return c.out[at:at]
}

// add gathers a reply, which may stand in room.
func (c *tcpConn) add(reply []byte) error {
	at := len(c.out)
	c.out = append(binary.BigEndian.AppendUint16(c.out, uint16(len(reply))), reply...)
	c.replies++
	if at < maxGathered {
		return nil
	}
	return c.flush()
}

// flush sends what was gathered.
func (c *tcpConn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	c.serving.server.counters.tcp.Add(uint64(c.replies))
	err := c.send(c.out)
	c.out, c.replies = c.out[:0], 0
	if cap(c.out) > 2*maxGathered { // a reply of up to 64 KiB: not for the connection's life
		c.out = nil
	}
	return err
}

func (c *tcpConn) send(framed []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	c.SetWriteDeadline(deadlineIn(tcpMessage))
	_, err := c.Write(framed)
	return err
}

// dispatchTCP lets q wait in a goroutine of its own; where there is no room it
// returns the reply that says so. Errors are the connection's.
func (v *Serving) dispatchTCP(c *tcpConn, pending *sync.WaitGroup, q *wire.Query, f found) ([]byte, error) {
	select {
	case c.slots <- struct{}{}:
	default:
		if err := c.flush(); err != nil {
			return nil, err
		}
		select {
		case c.slots <- struct{}{}:
		case <-v.queries.Done():
			return nil, nil
		}
	}
	select {
	case v.inflight <- struct{}{}:
	default:
		<-c.slots
		return v.overload(q, c.room()), nil
	}
	own := *q
	pending.Go(func() {
		defer func() { <-v.inflight; <-c.slots }()
		reply := v.wait(v.queries, &own, f)
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply)))
		v.server.counters.tcp.Add(1)
		if c.send(append(framed, reply...)) != nil {
			c.Close() // half a reply makes the rest unreadable
		}
		v.server.touch(c)
	})
	return nil, nil
}
