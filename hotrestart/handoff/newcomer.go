package handoff

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy.mesh/hotrestart"
)

// commandQueue holds what the owner said and the goroutine has not done yet. The
// protocol goes step by step, so that more than one at a time is an abort or a report.
const commandQueue = 4

// Newcomer is one connection to a Server, most of all a new generation that takes over.
// Its methods return at once; whether they worked shows in the events that follow. They
// fail with ErrLost when it has ended, which an Ended event says as well.
type Newcomer struct {
	server   *Server
	link     *link
	commands chan command

	// Of the goroutine of run.
	stage         stage
	given         given
	arrived       bool      // the owner knows of it
	probationEnds time.Time // valid from parentProbation on

	identity Identity // set before Arrived
	takes    []string // as files; set before Arrived
	protocol uint8

	settled atomic.Bool

	mu   sync.Mutex
	over bool // nobody takes commands any more
}

// command is one thing that the owner wants done. It owns its sockets and files.
type command struct {
	act     act
	state   State
	files   Files
	sockets *hotrestart.Sockets
	refusal *RefusedError
	drained Drained
}

func (c command) drop() {
	c.files.Close()
	if c.sockets != nil {
		c.sockets.Close() // copies: whatever fails here, the owner has the sockets
	}
}

// RefusedError says why a newcomer may not take over.
type RefusedError struct {
	Code   RefusalCode
	Reason string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("refused (%s): %s", e.Code, e.Reason) }

func newNewcomer(s *Server, conn *net.UnixConn) *Newcomer {
	return &Newcomer{
		server: s, link: newLink(conn, s.timing, s.protocols.min, s.watch),
		commands: make(chan command, commandQueue), given: given{},
	}
}

// Identity says who it is.
func (n *Newcomer) Identity() Identity { return n.identity }

// Takes says whether the newcomer takes a component as a file, or as files.
func (n *Newcomer) Takes(component string) bool { return slices.Contains(n.takes, component) }

// Accept answers Arrived: the newcomer is welcome, and gets state to warm itself with, and
// those of files that it takes. It fails when state is too large (State.Fit); files must be such as it takes (Files.Fit). The bytes must
// not be changed afterwards; the files are the newcomer's from here on.
func (n *Newcomer) Accept(state State, files Files) error {
	if err := state.check(); err != nil {
		files.Close()
		return err
	}
	return n.tell(command{act: actAccept, state: state, files: files})
}

// Refuse sends the newcomer away, at any time before Settled, for the reason given.
// Ended follows.
func (n *Newcomer) Refuse(code RefusalCode, reason string) error {
	return n.tell(command{act: actRefuse, refusal: &RefusedError{code, reason}})
}

// Give answers WantSockets with all sockets there are; what the newcomer has already is
// not sent again, and what is gone since is told. all stays the caller's, who may close
// it at once.
func (n *Newcomer) Give(all *hotrestart.Sockets) error {
	return n.tellSockets(command{act: actGive}, all)
}

// Release answers Ready: this generation has let go. all are the sockets of this moment,
// as for Give; state is what has changed since Accept.
func (n *Newcomer) Release(all *hotrestart.Sockets, state State) error {
	if err := state.check(); err != nil {
		return err
	}
	return n.tellSockets(command{act: actRelease, state: state}, all)
}

// Drained tells a newcomer that has settled how the drain goes and, with news (nil: none),
// what has become of state that it should know of. When it is slow to read, the word is
// dropped, and an error returned: say Done, and the news, again with the next one.
func (n *Newcomer) Drained(d Drained, news State) error {
	if err := news.check(); err != nil {
		return err
	}
	return n.tell(command{act: actReport, drained: d, state: news})
}

func (n *Newcomer) tellSockets(c command, all *hotrestart.Sockets) error {
	if err := checkSockets(all); err != nil {
		return err
	}
	var err error
	if c.sockets, err = all.Dup(); err != nil {
		return fmt.Errorf("hand over sockets: %w", err)
	}
	return n.tell(c)
}

var errBehind = errors.New("the newcomer is behind with reading")

func (n *Newcomer) tell(c command) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.over {
		c.drop()
		return ErrLost
	}
	select {
	case n.commands <- c:
		return nil
	default:
		c.drop()
		return errBehind
	}
}
