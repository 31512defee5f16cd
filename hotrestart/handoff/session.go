package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// run is the state machine: one goroutine, one select.
func (n *Newcomer) run(ctx context.Context) {
	timer := time.NewTimer(n.server.timing.hello)
	defer timer.Stop()
	for {
		before := n.stage
		var err error
		select {
		case f, ok := <-n.link.frames:
			if err = n.link.errorUnless(ok); err == nil {
				err = n.receive(ctx, f)
			}
		case c := <-n.commands:
			err = n.obey(c)
			c.drop()
		case <-timer.C:
			err = n.expire(ctx)
		case <-ctx.Done():
			err = fmt.Errorf("generation %s is ending", n.server.me.ID)
		}
		if err != nil {
			n.end(ctx, n.ownWords(err))
			return
		}
		if n.stage != before {
			n.arm(timer)
		}
	}
}

// ownWords prefers the peer's last message to the error of a send, which says only that it is gone.
func (n *Newcomer) ownWords(err error) error {
	if !errors.Is(err, ErrLost) {
		return err
	}
	for f := range n.link.frames { // what it left is little
		f.closeDescriptors()
	}
	if errors.As(n.link.err, new(*AbortedError)) {
		return n.link.err
	}
	return err
}

// arm sets the deadline of the stage that was just entered.
func (n *Newcomer) arm(timer *time.Timer) {
	t := n.server.timing
	limit, ok := map[stage]time.Duration{
		parentDeciding: t.decide, parentWarming: t.warm, parentChoosing: t.give, parentHolding: t.hold,
		parentReleasing: t.release, parentProbation: t.commit, parentCommitted: time.Until(n.probationEnds),
	}[n.stage]
	if !ok { // settled and watched: as long as both live
		timer.Stop()
		return
	}
	timer.Reset(limit)
}

// receive handles a message of the newcomer's.
func (n *Newcomer) receive(ctx context.Context, f frame) error {
	defer f.closeDescriptors() // no message to a parent has any use for them
	to, err := n.stage.next(got(f.kind))
	if err != nil {
		return &violation{err}
	}
	n.stage = to
	switch f.kind {
	case msgHello:
		return n.greet(ctx, f)
	case msgInquire:
		return n.reportTo(f)
	case msgWant:
		n.emit(ctx, Event{Kind: WantSockets})
	case msgReady:
		n.emit(ctx, Event{Kind: Ready})
	}
	return nil
}

// greet refuses a newcomer that examine rejects, and asks the owner about any other.
func (n *Newcomer) greet(ctx context.Context, f frame) error {
	n.server.spoke(n)
	hello, err := decodeHead[helloHead](f)
	if err == nil {
		err = hello.Identity.validate()
	}
	if err != nil {
		return &violation{err}
	}
	n.identity, n.takes = hello.Identity, hello.Files
	if refusal := n.examine(hello); refusal != nil {
		return n.sendAway(msgRefused, refusal)
	}
	n.arrived = true
	n.emit(ctx, Event{Kind: Arrived})
	return nil
}

// examine says why a newcomer cannot take over, whatever the owner thinks of it; nil when it can.
func (n *Newcomer) examine(hello helloHead) *RefusedError {
	me := n.server.me
	var err error
	if n.protocol, err = negotiate(n.server.protocols, protocolRange{hello.Min, hello.Max}); err != nil {
		return &RefusedError{RefusedProtocol, err.Error()}
	}
	if me.PodUID != "" && n.identity.PodUID != "" && me.PodUID != n.identity.PodUID {
		return &RefusedError{RefusedPod, fmt.Sprintf("generation %s belongs to pod %s, the newcomer to %s: give each pod its own hand-off directory", me.ID, me.PodUID, n.identity.PodUID)}
	}
	return n.server.claim(n)
}

// errAnswered ends the connection of somebody who asked once.
var errAnswered = errors.New("answered")

func (n *Newcomer) reportTo(f frame) error {
	n.server.spoke(n)
	head, err := decodeHead[inquireHead](f)
	if err != nil {
		return &violation{err}
	}
	follows := head.Follow && n.server.follow(n)
	if err := n.link.send(msgReport, n.server.currentReport()); err != nil {
		return err
	}
	if !follows {
		return errAnswered
	}
	return nil
}

// obey does what the owner said. It drops what comes after the peer, or a deadline, has ended
// the stage: an event has told the owner, or will.
func (n *Newcomer) obey(c command) error {
	to, err := n.stage.next(did(c.act))
	if err != nil {
		n.server.log.Debug("dropped", "err", err, "newcomer", n.identity.ID)
		return nil
	}
	from := n.stage
	n.stage = to
	switch c.act {
	case actAccept:
		return n.welcome(c.state, c.files)
	case actRefuse:
		if from == parentDeciding {
			return n.sendAway(msgRefused, c.refusal)
		}
		return n.sendAway(msgAbort, c.refusal)
	case actGive:
		return n.given.sendSockets(n.link, c.sockets)
	case actRelease:
		return n.release(c)
	case actReport:
		if from == parentWatched {
			return n.link.send(msgReport, n.server.currentReport())
		}
		if len(c.state) > 0 {
			if err := sendState(n.link, c.state, 0); err != nil {
				return err
			}
		}
		return n.link.send(msgDrained, c.drained)
	}
	return nil
}

func (n *Newcomer) welcome(state State, files Files) error {
	if err := n.link.send(msgWelcome, welcomeHead{n.protocol, n.server.me}); err != nil {
		return err
	}
	n.link.setVersion(n.protocol)
	sent, err := sendFiles(n.link, files, n.Takes)
	if err != nil {
		return err
	}
	return sendState(n.link, state, sent)
}

func (n *Newcomer) release(c command) error {
	if err := n.given.sendSockets(n.link, c.sockets); err != nil {
		return err
	}
	if err := sendState(n.link, c.state, 0); err != nil {
		return err
	}
	n.probationEnds = time.Now().Add(n.server.timing.probation)
	return n.link.send(msgReleased, emptyHead{})
}

// sendAway tells the newcomer why, and ends the session with that reason.
func (n *Newcomer) sendAway(kind messageKind, refusal *RefusedError) error {
	var head any = refusedHead{refusal.Code, cleanReason(refusal.Reason)}
	if kind == msgAbort {
		head = newAbort(AbortRefused, refusal.Error())
	}
	if err := n.link.send(kind, head); err != nil {
		return errors.Join(refusal, err)
	}
	return refusal
}

// expire handles the end of the time that the stage has.
func (n *Newcomer) expire(ctx context.Context) error {
	to, err := n.stage.next(did(actTimeout))
	if err != nil {
		return err
	}
	if to == stageOver {
		return &violation{fmt.Errorf("nothing came in time in the stage %q of the hand-off", n.stage)}
	}
	if err := n.link.send(msgSettled, emptyHead{}); err != nil {
		return err
	}
	n.stage = to
	n.settled.Store(true)
	n.emit(ctx, Event{Kind: Settled})
	return nil
}

// violation is a fault of the peer's that it is told of before the connection ends.
type violation struct{ err error }

func (v *violation) Error() string { return v.err.Error() }
func (v *violation) Unwrap() error { return v.err }

// end ends the session: it tells the peer and the owner why, and makes room for the next newcomer.
func (n *Newcomer) end(ctx context.Context, why error) {
	var fault *violation
	if errors.As(why, &fault) && n.stage != parentGreeting {
		if err := n.link.send(msgAbort, newAbort(AbortBroken, why.Error())); err != nil {
			n.server.log.Debug("the newcomer could not be told", "err", err, "newcomer", n.identity.ID)
		}
	}
	n.stage = stageOver
	n.mu.Lock()
	n.over = true
	n.mu.Unlock()
	for len(n.commands) > 0 {
		(<-n.commands).drop()
	}
	if n.arrived {
		n.emit(ctx, Event{Kind: Ended, Err: why})
	} else {
		n.server.log.Debug("a connection to the hand-off socket ended", "err", why)
	}
	n.server.forget(n)
	n.link.close()
}

// emit delivers e; a session does nothing else meanwhile.
func (n *Newcomer) emit(ctx context.Context, e Event) {
	e.Newcomer = n
	select {
	case n.server.events <- e:
	case <-ctx.Done():
	}
}
