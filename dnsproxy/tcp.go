package dnsproxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxQuery bounds a query: a question and an OPT record with padding
	// fit many times.
	maxQuery = 4096

	// maxConns is the contract's number of TCP connections at once.
	maxConns = 64

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

	acceptPause = 5 * time.Millisecond // after EMFILE and the like
)

// tcpConn is one client's connection.
type tcpConn struct {
	net.Conn
	serving *Serving
	slots   chan struct{} // one for each query that waits
	write   sync.Mutex
	active  time.Time // the last query; guarded by connSet.mu
}

// serveTCP accepts connections from l until Release.
func (v *Serving) serveTCP(l *net.TCPListener) {
	failed := 0
	for {
		conn, err := l.Accept()
		if err != nil {
			if v.taking.Err() != nil {
				return
			}
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				v.failed <- fmt.Errorf("accept dns connections on %s: %w", l.Addr(), err)
				return
			}
			pause(v.taking, acceptPause)
			continue
		}
		failed = 0
		c := &tcpConn{Conn: conn, serving: v, slots: make(chan struct{}, maxPipelined)}
		if !v.server.conns.add(c, &v.server.counters) {
			conn.Close()
			continue
		}
		v.scope.tasks.Go(func() {
			defer v.server.conns.remove(c, &v.server.counters)
			v.serveConn(c)
		})
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// serveConn reads queries until the client ends, is too slow, or Close cuts.
// Replies may overtake each other (RFC 7766 section 7).
func (v *Serving) serveConn(c *tcpConn) {
	var pending sync.WaitGroup
	defer c.Close()
	defer pending.Wait()
	in := bufio.NewReaderSize(c, 2048)
	msg := make([]byte, maxQuery)
	out := make([]byte, 2, 2+maxQuery)
	q := &query{scope: &v.scope}
	for {
		n, err := c.read(in, msg)
		if err != nil {
			return
		}
		v.server.conns.touch(c)
		reply, done := v.server.respond(q, msg[:n], maxMessage, out[2:2])
		if !done {
			reply = v.dispatchTCP(c, &pending, q, out[2:2])
		}
		if reply != nil && v.server.sendTCP(c, reply) != nil {
			return
		}
	}
}

// read returns the length of the next message, which it puts into msg.
func (c *tcpConn) read(in *bufio.Reader, msg []byte) (int, error) {
	if in.Buffered() == 0 {
		c.SetReadDeadline(deadlineIn(tcpIdle))
		if c.serving.taking.Err() != nil { // Release may have come before the deadline above
			c.SetReadDeadline(deadlineIn(releasedIdle))
		}
		if _, err := in.Peek(1); err != nil {
			return 0, err
		}
	}
	c.SetReadDeadline(deadlineIn(tcpMessage))
	var size [2]byte
	if _, err := io.ReadFull(in, size[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > len(msg) {
		return 0, fmt.Errorf("query of %d bytes", n)
	}
	_, err := io.ReadFull(in, msg[:n])
	return n, err
}

func (v *Serving) dispatchTCP(c *tcpConn, pending *sync.WaitGroup, q *query, out []byte) []byte {
	select {
	case c.slots <- struct{}{}:
	case <-v.queries.Done():
		return nil
	}
	select {
	case v.server.inflight <- struct{}{}:
	default:
		<-c.slots
		return v.server.overload(q, out)
	}
	own := *q
	pending.Go(func() {
		defer func() { <-v.server.inflight; <-c.slots }()
		v.server.sendTCP(c, v.server.wait(v.queries, &own))
		v.server.conns.touch(c)
	})
	return nil
}

// sendTCP writes a reply behind its length, in one segment where it fits.
func (s *Server) sendTCP(c *tcpConn, reply []byte) error {
	framed := make([]byte, 2, 2+len(reply))
	binary.BigEndian.PutUint16(framed, uint16(len(reply)))
	framed = append(framed, reply...)
	c.write.Lock()
	defer c.write.Unlock()
	c.SetWriteDeadline(deadlineIn(tcpMessage))
	_, err := c.Write(framed)
	s.counters.tcp.Add(1)
	return err
}

// connSet is the open TCP connections, of every Serving.
type connSet struct {
	mu   sync.Mutex
	open map[*tcpConn]struct{}
}

// add admits c. When there are too many, the one that has been idle longest
// is closed; when all are busy, c is not admitted.
func (s *connSet) add(c *tcpConn, count *counters) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*tcpConn]struct{}{}
	}
	if len(s.open) >= maxConns {
		count.tcpCut.Add(1)
		idle := s.idlest()
		if idle == nil {
			return false
		}
		idle.Close()
		delete(s.open, idle)
		count.tcpOpen.Add(-1)
	}
	c.active = time.Now()
	s.open[c] = struct{}{}
	count.tcpOpen.Add(1)
	return true
}

func (s *connSet) idlest() *tcpConn {
	var idle *tcpConn
	for c := range s.open {
		if len(c.slots) == 0 && (idle == nil || c.active.Before(idle.active)) {
			idle = c
		}
	}
	return idle
}

func (s *connSet) touch(c *tcpConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.active = time.Now()
}

func (s *connSet) remove(c *tcpConn, count *counters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[c]; ok {
		delete(s.open, c)
		count.tcpOpen.Add(-1)
	}
}

// each calls do for the connections that v accepted.
func (s *connSet) each(v *Serving, do func(*tcpConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if c.serving == v {
			do(c)
		}
	}
}
