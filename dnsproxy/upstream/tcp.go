package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// streamIdle is how long a connection to an upstream is kept without a
	// question: long enough for the next big answer, and less than servers
	// keep theirs (RFC 7766 section 6.2.3: seconds).
	streamIdle = 8 * time.Second

	// maxOnStream bounds the questions of one connection that have no answer
	// yet; each has an id of 16 bits that must be found free.
	maxOnStream = 1024
)

var (
	errStreamFull = errors.New("too many questions wait on one connection")
	errStreamGone = errors.New("the server closed the connection")
)

// streams is the TCP connections to upstreams, one for each server. Questions
// are sent without waiting for the answers before, and those come in any order
// (RFC 7766 section 6.2.1.1). The zero value closes each once it is idle.
type streams struct {
	mu   sync.Mutex
	kept bool
	open map[target]*stream
}

// stream is one connection.
type stream struct {
	set    *streams
	server target
	dial   context.Context
	cancel context.CancelFunc
	ready  chan struct{} // closed once conn or err is set
	conn   net.Conn
	err    error
	write  sync.Mutex

	// Guarded by set.mu.
	waiting map[uint16]*reply
	users   int // that have it and may yet ask
	used    bool
	heard   time.Time
}

// reply is where the answer to one question goes.
type reply struct {
	request []byte
	got     chan []byte // closed without one when the connection ends
}

// keep says whether idle connections stay open for the next question.
func (s *streams) keep(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = on
	for _, c := range s.open {
		s.release(c, false)
	}
}

// ask sends request to server and returns the answer, within ctx. A connection
// that was used before may have been closed by the server meanwhile: then the
// question is asked once more on a new one (RFC 7766 section 6.2.4).
func (s *streams) ask(ctx context.Context, tasks *sync.WaitGroup, server target, request []byte) ([]byte, error) {
	for {
		c, again := s.get(tasks, server)
		msg, err := c.ask(ctx, request)
		switch {
		case err == nil:
			return msg, nil
		case !again || ctx.Err() != nil || !errors.Is(err, errStreamGone):
			return nil, fmt.Errorf("ask %s over TCP: %w", server, err)
		}
	}
}

// get returns the connection to server, and whether it was used before.
func (s *streams) get(tasks *sync.WaitGroup, server target) (c *stream, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c = s.open[server]; c == nil {
		if s.open == nil {
			s.open = map[target]*stream{}
		}
		c = &stream{set: s, server: server, ready: make(chan struct{}), waiting: map[uint16]*reply{}, heard: time.Now()}
		c.dial, c.cancel = context.WithTimeout(context.Background(), defaultTimeout)
		s.open[server] = c
		tasks.Go(c.run)
	}
	c.users++
	again, c.used = c.used, true
	return c, again
}

// release gives up a use of c, with the lock held. A connection that nobody
// uses and that is not to be kept is closed.
func (s *streams) release(c *stream, using bool) {
	if using {
		c.users--
	}
	if c.users == 0 && !s.kept {
		s.forget(c)
	}
}

// forget takes c out, with the lock held, and has its reader end.
func (s *streams) forget(c *stream) {
	if s.open[c.server] == c {
		delete(s.open, c.server)
	}
	c.cancel()
	if c.conn != nil {
		c.conn.Close()
	}
}

// run connects and delivers answers until the connection ends.
func (c *stream) run() {
	conn, err := c.server.dial(c.dial)
	c.set.mu.Lock()
	if err == nil && c.set.open[c.server] != c {
		conn.Close()
		err = errStreamGone
	}
	c.conn, c.err = conn, err
	close(c.ready)
	c.set.mu.Unlock()
	if err == nil {
		c.read()
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	c.set.forget(c)
	for _, r := range c.waiting {
		close(r.got)
	}
	c.waiting = nil
}

// read delivers answers until the server closes, says what was not asked, or
// the connection was idle for long.
func (c *stream) read() {
	for {
		c.conn.SetReadDeadline(time.Now().Add(streamIdle))
		var size [2]byte
		if n, err := io.ReadFull(c.conn, size[:]); err != nil {
			if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && c.busy() {
				continue
			}
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c.conn, msg); err != nil || !c.deliver(msg) {
			return
		}
	}
}

// busy says whether c is used; if not, it takes c out.
func (c *stream) busy() bool {
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	if c.users == 0 {
		c.set.forget(c)
	}
	return c.users > 0
}

// deliver hands msg to who waits for it. An answer to a question that was
// given up is passed over.
func (c *stream) deliver(msg []byte) bool {
	if len(msg) < wire.HeaderLen {
		return false
	}
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	c.heard = time.Now()
	id := binary.BigEndian.Uint16(msg)
	r := c.waiting[id]
	if r == nil {
		return true
	}
	if !wire.IsReply(msg, r.request) {
		return false
	}
	delete(c.waiting, id)
	r.got <- msg
	return true
}

// ask sends one question and waits for its answer.
func (c *stream) ask(ctx context.Context, request []byte) ([]byte, error) {
	defer func() {
		c.set.mu.Lock()
		c.set.release(c, true)
		c.set.mu.Unlock()
	}()
	select {
	case <-c.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.err != nil {
		return nil, c.err
	}
	r, err := c.enter(request)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	defer c.leave(r, began)
	if err := c.send(ctx, request); err != nil {
		return nil, fmt.Errorf("%w: %w", errStreamGone, err)
	}
	select {
	case msg, ok := <-r.got:
		if !ok {
			return nil, errStreamGone
		}
		return msg, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// enter gives request an id that no other on c has.
func (c *stream) enter(request []byte) (*reply, error) {
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	if c.waiting == nil {
		return nil, errStreamGone
	}
	if len(c.waiting) >= maxOnStream {
		return nil, errStreamFull
	}
	r := &reply{request: request, got: make(chan []byte, 1)}
	for c.waiting[binary.BigEndian.Uint16(request)] != nil {
		wire.SetRandomID(request)
	}
	c.waiting[binary.BigEndian.Uint16(request)] = r
	return r, nil
}

// leave takes r back. A connection on which nothing came since r was sent, in
// all the time that it had, leads nowhere: the next question gets a new one.
func (c *stream) leave(r *reply, began time.Time) {
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	id := binary.BigEndian.Uint16(r.request)
	if c.waiting[id] != r {
		return // answered, or c has ended
	}
	delete(c.waiting, id)
	if c.heard.Before(began) && time.Since(began) >= minSilence {
		c.set.forget(c)
	}
}

// minSilence is how long a connection must have said nothing to be given up
// when a question on it is.
const minSilence = time.Second

// send writes one message. The lock is held for as long as the kernel takes
// it, which only a server that reads nothing makes long.
func (c *stream) send(ctx context.Context, request []byte) error {
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(request)), uint16(len(request)))
	framed = append(framed, request...)
	c.write.Lock()
	defer c.write.Unlock()
	until, _ := ctx.Deadline()
	c.conn.SetWriteDeadline(until)
	_, err := c.conn.Write(framed)
	return err
}
