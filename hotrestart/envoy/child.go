package envoy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
)

const (
	// questionTimeout bounds one question, whose answer takes Envoy's main thread under a
	// millisecond, or 10 ms for statistics, unless a large configuration is being taken in.
	questionTimeout = 5 * time.Second
	// maxWorkers bounds the sockets of one address: no Envoy has more threads than that.
	maxWorkers = 1024
	// maxUnanswered is how many questions may wait for an Envoy that does not answer. The
	// queue of a Unix datagram socket holds some 10 (net.unix.max_dgram_qlen).
	maxUnanswered = 8
)

// errUnanswered says that Envoy is alive, as far as its socket says, and does not answer.
var errUnanswered = errors.New("no answer from the running Envoy")

// errChildEnded is what is asked of a Child that does not run any more.
var errChildEnded = errors.New("the child of this Envoy has ended")

// Child plays the next Envoy to one that serves: it asks for its listening sockets and
// its statistics, which changes nothing there, and tells it to drain.
//
// Envoy answers to the path of the Child's socket, and aborts when that is gone. So a
// Child is made once for each Envoy, is read until Envoy has ended (Run), and only then
// closed.
type Child struct {
	socket *datagramSocket

	mu      sync.Mutex
	pending []*question // in the order in which Envoy answers
	ended   bool        // nobody reads answers any more
}

// question is a request whose answer is to come. Envoy answers in order, without saying
// what: the first answer belongs to the first question, even if nobody waits for it.
type question struct {
	answer    chan answer // buffered: at most one is sent
	abandoned bool
}

type answer struct {
	reply reply
	fd    int // -1 is none; owned by who takes the answer
	err   error
}

// NewChild binds the socket to which the Envoy at r answers. It may be made before Envoy
// is started.
func NewChild(r Rendezvous) (*Child, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	socket, err := bindDatagram(r.childSocket(), r.envoyParentSocket())
	if err != nil {
		return nil, err
	}
	return &Child{socket: socket}, nil
}

// Run reads Envoy's answers until ctx ends, and returns nil then. Let ctx live longer
// than Envoy: the main thread of an Envoy whose answer is not read hangs. It runs once.
func (c *Child) Run(ctx context.Context) error {
	defer c.socket.cancelled(ctx)()
	defer c.end()
	buffer := make([]byte, datagramSize)
	var message assembler
	fd := -1 // that came with the message that is being assembled
	defer func() { closeDescriptor(fd) }()
	for {
		datagram, came, err := c.socket.receive(buffer)
		switch {
		case ctx.Err() != nil:
			closeDescriptor(came)
			return nil
		case err != nil:
			return fmt.Errorf("child of an Envoy: %w", err)
		case came >= 0:
			closeDescriptor(fd)
			fd = came
		}
		if whole, done, err := message.add(datagram); done {
			c.deliver(whole, fd, err)
			fd = -1
		}
	}
}

// Close closes and removes the socket. Envoy must have ended.
func (c *Child) Close() error { return c.socket.Close() }

// Fetch asks for the sockets of the listeners at the addresses ("tcp://0.0.0.0:15001",
// "unix:///path") and returns copies, named by EnvoySocketName, which the caller closes.
// A listener whose workers share one socket gives one; an address that Envoy does not
// listen on gives none. Ask once Envoy serves, with a ctx that ends when Envoy does: what
// it does not answer is given up after 5 s.
func (c *Child) Fetch(ctx context.Context, addresses ...string) (*hotrestart.Sockets, error) {
	sockets := new(hotrestart.Sockets)
	for _, address := range addresses {
		if err := c.fetch(ctx, address, sockets); err != nil {
			return nil, errors.Join(fmt.Errorf("fetch Envoy's sockets of %s: %w", address, err), sockets.Close())
		}
	}
	return sockets, nil
}

func (c *Child) fetch(ctx context.Context, address string, into *hotrestart.Sockets) error {
	if err := validListenAddress(address); err != nil {
		return err
	}
	var first uint64 // the inode of worker 0's socket
	for worker := uint32(0); worker < maxWorkers; worker++ {
		got, err := c.ask(ctx, request{kind: kindListenSocket, address: address, worker: worker})
		if err != nil {
			return err
		}
		if !got.reply.hasFD {
			closeDescriptor(got.fd)
			return nil
		}
		if got.fd < 0 {
			return fmt.Errorf("worker %d: Envoy's answer lacks the descriptor (out of descriptors?)", worker)
		}
		var stat unix.Stat_t
		if err := unix.Fstat(got.fd, &stat); err != nil {
			closeDescriptor(got.fd)
			return fmt.Errorf("worker %d: %w", worker, err)
		}
		if worker > 0 && stat.Ino == first {
			closeDescriptor(got.fd)
			return nil // reuse_port is off: the next worker has the same again
		}
		first = stat.Ino
		if err := into.AddDescriptor(hotrestart.EnvoySocketName(address, worker), got.fd); err != nil {
			return err
		}
	}
	return nil
}

// Stats asks for the statistics. Counters are what they grew by since Envoy last latched
// them, see StatsReply.
func (c *Child) Stats(ctx context.Context) (StatsReply, error) {
	got, err := c.ask(ctx, request{kind: kindStats})
	if err != nil {
		return StatsReply{}, fmt.Errorf("fetch Envoy's statistics: %w", err)
	}
	return ParseStatsReply(got.reply.stats)
}

// Drain tells Envoy to stop accepting and to drain what it has, for --drain-time-s. Its
// sockets stay open: those of whom the next Envoy does not accept must be closed by
// whoever holds them. Envoy does not answer.
func (c *Child) Drain(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.send(ctx, request{kind: kindDrainListeners}); err != nil {
		return fmt.Errorf("tell Envoy %s: %w", kindDrainListeners, err)
	}
	return nil
}

// ask sends a request and waits for its answer, of the right kind.
func (c *Child) ask(ctx context.Context, r request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	q, err := c.enqueue(ctx, r)
	if err != nil {
		return answer{}, err
	}
	select {
	case got := <-q.answer:
		return got, got.check(r.kind)
	case <-ctx.Done():
		c.abandon(q)
		return answer{}, fmt.Errorf("%w: %s: %w", errUnanswered, r.kind, ctx.Err())
	}
}

// check closes what came with an answer that is of no use.
func (a answer) check(wanted kind) error {
	switch {
	case a.err != nil:
	case a.reply.kind == 0:
		a.err = fmt.Errorf("the running Envoy does not know %s", wanted)
	case a.reply.kind != wanted:
		a.err = fmt.Errorf("the running Envoy answers %s with %s", wanted, a.reply.kind)
	default:
		return nil
	}
	closeDescriptor(a.fd)
	return a.err
}

// enqueue sends a request and notes, in the same order, that its answer is to come.
func (c *Child) enqueue(ctx context.Context, r request) (*question, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, errChildEnded
	}
	if len(c.pending) >= maxUnanswered {
		return nil, fmt.Errorf("%w: %d questions are open", errUnanswered, len(c.pending))
	}
	q := &question{answer: make(chan answer, 1)}
	c.pending = append(c.pending, q)
	if err := c.send(ctx, r); err != nil {
		c.pending = c.pending[:len(c.pending)-1]
		return nil, err
	}
	return q, nil
}

// send needs c.mu. A request is one datagram: it is sent or not.
func (c *Child) send(ctx context.Context, r request) error {
	deadline := time.Now().Add(questionTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.socket.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	err := c.socket.send(r.marshal(), -1)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", errUnanswered, err)
	}
	return err
}

// abandon leaves the answer to q, which may have come just now, to be thrown away.
func (c *Child) abandon(q *question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.abandoned = true
	select {
	case late := <-q.answer:
		closeDescriptor(late.fd)
	default:
	}
}

// deliver gives a message to the question that it answers.
func (c *Child) deliver(message []byte, fd int, err error) {
	a := answer{fd: fd, err: err}
	if err == nil {
		a.reply, a.err = parseReply(message)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		closeDescriptor(fd) // Envoy says what nobody asked for
		return
	}
	q := c.pending[0]
	c.pending = c.pending[1:]
	if q.abandoned {
		closeDescriptor(fd)
		return
	}
	q.answer <- a
}

// end tells whoever waits that no answer will come.
func (c *Child) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, q := range c.pending {
		if !q.abandoned {
			q.answer <- answer{fd: -1, err: errChildEnded}
		}
	}
	c.pending = nil
}
