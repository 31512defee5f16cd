package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy.mesh/hotrestart"
)

// Client is the new generation's side of one hand-off: Dial, Sockets (as often as
// needed), Ready, Commit, then Next until it fails. Each call blocks until the old
// generation has answered, its context ends, or the step's deadline passes. One
// goroutine at a time may call them; Lost, Abort and Close may be called from any.
//
// The error of a step wraps one of these, which the caller branches on:
//   - *RefusedError: the old generation did not want to (Dial only);
//   - *AbortedError: it gave up, or took back: it serves, this one must let go of all;
//   - ErrLost: it is gone; whoever holds sockets goes on alone with them;
//   - context.DeadlineExceeded, or what ended the context: it hangs.
//
// After an error only Close is of use.
type Client struct {
	link     *link
	timing   timing
	stage    stage
	parent   Identity
	protocol uint8
	takes    []string // as files
	state    State
	files    Files
}

// dialOptions are what tests change.
type dialOptions struct {
	timing    timing
	protocols protocolRange
	files     []string
	watch     func(sent bool, raw []byte, fds int)
}

// Dial asks the generation id for a hand-off to dir's own, and returns once that is
// granted and the state has come. Nothing has changed on either side then; Close undoes
// it. When ctx is cancelled, the other side is told that this one was asked to stop. files are the components that the
// caller takes as files.
func Dial(ctx context.Context, dir *Dir, id string, files ...string) (*Client, error) {
	return dial(ctx, dir, id, dialOptions{timing: defaultTiming(), protocols: ownProtocols(), files: files})
}

func dial(ctx context.Context, dir *Dir, id string, o dialOptions) (*Client, error) {
	conn, err := dir.connect(ctx, id)
	if err != nil {
		return nil, err
	}
	c := &Client{link: newLink(conn, o.timing, o.protocols.min, o.watch), timing: o.timing, stage: childGreeting, takes: o.files}
	err = c.greet(ctx, dir.me, o.protocols)
	if err == nil {
		err = c.load(ctx)
	}
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			err = errors.Join(err, c.Abort(AbortStopping, ""))
		}
		c.Close()
		return nil, fmt.Errorf("take over from generation %s: %w", id, err)
	}
	return c, nil
}

func (c *Client) greet(ctx context.Context, me Identity, protocols protocolRange) error {
	if err := c.say(msgHello, helloHead{protocols.min, protocols.max, me, c.takes}); err != nil {
		return err
	}
	return c.collect(ctx, c.timing.decide+c.timing.slack, func(f frame) (bool, error) {
		if f.kind == msgRefused {
			return false, refusal(f)
		}
		head, err := decodeHead[welcomeHead](f)
		if err != nil {
			return false, err
		}
		if head.Protocol < protocols.min || head.Protocol > protocols.max {
			return false, fmt.Errorf("it wants protocol %d, this agent speaks %d to %d", head.Protocol, protocols.min, protocols.max)
		}
		c.parent, c.protocol = head.Identity, head.Protocol
		c.link.setVersion(c.protocol)
		return true, head.Identity.validate()
	})
}

// Parent says who the old generation is.
func (c *Client) Parent() Identity { return c.parent }

// Lost is closed when the old generation is gone or gave up, also between two steps; the
// next step says which. (Once Commit has returned, Next does instead.)
func (c *Client) Lost() <-chan struct{} { return c.link.ended }

// State is what the old generation's components knew when it granted the hand-off, for
// this one to warm up with. It is never nil, and belongs to the caller.
func (c *Client) State() State { return c.state }

// Files are the components of that state which came as files. They are the caller's, who closes them.
func (c *Client) Files() Files { return c.files }

// load reads the state, which follows the welcome.
func (c *Client) load(ctx context.Context) (err error) {
	defer explain(&err, "get its state")
	var reader stateReader
	defer func() {
		if c.files = reader.files; err != nil {
			c.files.Close()
		}
	}()
	return c.collect(ctx, c.timing.hold, func(f frame) (done bool, err error) {
		if f.kind == msgState {
			return false, reader.add(f)
		}
		c.state, err = reader.end(f)
		return true, err
	})
}

// Sockets brings into, which is the caller's, from what earlier calls put there to
// exactly what the old generation has now. When it fails, into is as before. Call it when
// this generation is able to serve: from then on each connection of a socket waits for
// somebody to accept it.
func (c *Client) Sockets(ctx context.Context, into *hotrestart.Sockets) (err error) {
	defer explain(&err, "get the old generation's sockets")
	if err := c.do(actFetch, msgWant, emptyHead{}); err != nil {
		return err
	}
	var reader socketReader
	defer func() { err = errors.Join(err, reader.fresh.Close()) }() // what was not moved
	return c.collect(ctx, c.timing.give+c.timing.slack, func(f frame) (done bool, err error) {
		if f.kind == msgSockets {
			return false, reader.add(f)
		}
		return true, reader.end(f, into)
	})
}

// Ready says that this generation accepts on every socket, and returns when the old one
// has let go: into has what came or went since Sockets, and the state what changed since
// State. From here on this generation serves; Commit, soon, makes it final.
func (c *Client) Ready(ctx context.Context, into *hotrestart.Sockets) (state State, err error) {
	defer explain(&err, "have the old generation let go")
	if err := c.do(actReady, msgReady, emptyHead{}); err != nil {
		return nil, err
	}
	var sockets socketReader
	defer func() { err = errors.Join(err, sockets.fresh.Close()) }()
	var states stateReader
	defer func() { states.files.Close() }() // what changes late is small
	err = c.collect(ctx, c.timing.release+c.timing.slack, func(f frame) (done bool, err error) {
		switch f.kind {
		case msgSockets:
			err = sockets.add(f)
		case msgSocketsEnd:
			err = sockets.end(f, into)
		case msgState:
			err = states.add(f)
		case msgStateEnd:
			state, err = states.end(f)
		case msgReleased:
			done = true
		}
		return done, err
	})
	return state, err
}

// Commit says that this generation holds everything: status, DNS and Envoy. It returns
// nil after the probation (2 s since the old one let go): then the old one drains and can
// never take back. *AbortedError: it took back, let go of everything. ErrLost: it died;
// this generation is the only one left and goes on.
func (c *Client) Commit(ctx context.Context) (err error) {
	defer explain(&err, "make the take-over final")
	if err := c.do(actCommit, msgCommitted, emptyHead{}); err != nil {
		return err
	}
	return c.collect(ctx, c.timing.probation+c.timing.commit+c.timing.slack, func(frame) (bool, error) { return true, nil })
}

// Next waits for the next word about the old generation's drain, and what has become of
// its state since (nil: nothing that it tells). It fails with ErrLost when the old
// generation has ended, which is as it should be.
func (c *Client) Next(ctx context.Context) (drained Drained, news State, err error) {
	defer explain(&err, "follow the old generation's drain")
	var reader stateReader
	defer func() { reader.files.Close() }()
	err = c.collect(ctx, 0, func(f frame) (done bool, err error) {
		switch f.kind {
		case msgState:
			return false, reader.add(f)
		case msgStateEnd:
			news, err = reader.end(f)
			return false, err
		}
		drained, err = decodeHead[Drained](f)
		return true, err
	})
	return drained, news, err
}

// Abort tells the old generation why this one gives up, in a word and in words, and
// closes. Before Commit has returned, the old one serves on, or again. With AbortStopping
// it does not wait for this one to come again, and reason may be empty.
func (c *Client) Abort(code AbortCode, reason string) error {
	err := c.link.send(msgAbort, newAbort(code, reason))
	c.link.close()
	return err
}

// Close breaks the connection off. Sockets that were received stay the caller's.
func (c *Client) Close() { c.link.close() }

// explain says in *err, if there is one, what was being done.
func explain(err *error, doing string) {
	if *err != nil {
		*err = fmt.Errorf("%s: %w", doing, *err)
	}
}

// do moves the stage by an act of the owner's, and tells the peer.
func (c *Client) do(a act, kind messageKind, head any) error {
	to, err := c.stage.next(did(a))
	if err != nil {
		return err
	}
	c.stage = to
	return c.say(kind, head)
}

// say sends, and prefers the peer's own reason to the bare fact that it is gone.
func (c *Client) say(kind messageKind, head any) error {
	err := c.link.send(kind, head)
	if err == nil {
		return nil
	}
	c.stage = stageOver
	if !errors.Is(err, ErrLost) {
		return err
	}
	var refused error
	for f := range c.link.frames { // the peer is gone: what it left is little
		if f.kind == msgRefused {
			refused = refusal(f)
		}
		f.closeDescriptors()
	}
	return errors.Join(refused, c.link.err)
}

// collect takes messages, each of which the stage must expect, until handle says that
// it was the last. 0 is no deadline. A failure ends the hand-off on this side.
func (c *Client) collect(ctx context.Context, limit time.Duration, handle func(frame) (done bool, err error)) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	for {
		done, err := c.collectOne(ctx, handle)
		if err != nil {
			c.stage = stageOver
			return err
		}
		if done {
			return nil
		}
	}
}

func (c *Client) collectOne(ctx context.Context, handle func(frame) (bool, error)) (bool, error) {
	if c.stage == stageOver {
		return false, errors.New("this hand-off is over")
	}
	select {
	case f, ok := <-c.link.frames:
		return c.take(f, ok, handle)
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// A process that stood still (SIGSTOP, a machine without time for it) finds its deadline
		// over and the answer waiting. It counts: who is told that it settled is the only one left.
		select {
		case f, ok := <-c.link.frames:
			return c.take(f, ok, handle)
		case <-time.After(c.timing.slack):
		}
	}
	return false, fmt.Errorf("no answer: %w", ctx.Err())
}

func (c *Client) take(f frame, ok bool, handle func(frame) (bool, error)) (bool, error) {
	if err := c.link.errorUnless(ok); err != nil {
		return false, err
	}
	to, err := c.stage.next(got(f.kind))
	if err != nil {
		f.closeDescriptors()
		return false, err
	}
	c.stage = to
	return handle(f)
}
