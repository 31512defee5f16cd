package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/envoy"
)

// eventQueue lets those who report go on: no event waits for the loop for long.
const eventQueue = 16

// eventKind says what has happened to a generation.
type eventKind uint8

const (
	// What was found in the hand-off directory.
	foundNobody eventKind = iota + 1 // nobody serves, or is about to
	foundOlder                       // an older generation serves, or is about to
	foundNewer                       // a newer generation does
	lookAgain                        // time to look
	peerServes                       // the generation that is followed serves
	peerLeaves                       // it was asked to stop
	peerGone                         // it serves no more

	// What became of this generation's own work.
	inForce       // the sidecar serves all its configuration
	learned       // what it tells others of its Envoy is something else now
	wentAlone     // the generation before died in the middle of the hand-off; its sockets are here
	tookOver      // everything is here for good
	failedToTake  // the generation before serves on
	sidecarEnded  // by itself
	predecessor   // news about the drain of the generation before
	drainedToStop // the drain of an ordinary stop is over
	emptied       // and after it nobody waits in a socket any more
	retired       // the drain after a hand-off is over
	draining      // news about it

	// What a newcomer wants, see hotrestart.EventKind.
	arrived
	wantsSockets
	isReady
	settledIn
	terminates
	handoffEnded

	// Stops.
	stopAsked
	quitAsked    // now, whatever is under way
	nobodyStarts // no newcomer is about to take over from the one that was asked to stop
)

var eventNames = [...]string{
	foundNobody: "found nobody", foundOlder: "found an older one", foundNewer: "found a newer one", lookAgain: "look again",
	peerServes: "the followed one serves", peerLeaves: "the followed one leaves", peerGone: "the followed one is gone",
	inForce: "in force", learned: "learned of its Envoy", wentAlone: "went alone", tookOver: "took over", failedToTake: "failed to take over",
	sidecarEnded: "sidecar ended", predecessor: "news of the one before", drainedToStop: "drained to stop", emptied: "emptied", retired: "retired", draining: "news of the drain",
	arrived: "a newcomer arrived", wantsSockets: "it wants the sockets", isReady: "it is ready", settledIn: "it settled",
	terminates: "it wants the drain to end", handoffEnded: "the hand-off ended",
	stopAsked: "stop asked", quitAsked: "quit asked", nobodyStarts: "nobody starts",
}

func (k eventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// event is one thing that happened, with what belongs to it.
type event struct {
	kind     eventKind
	peer     hotrestart.Identity  // of found*, peerLeaves
	reason   string               // of found*, peerLeaves
	search   int                  // of found*, lookAgain: see loop.search
	sidecar  *sidecar             // whom it is about
	newcomer *hotrestart.Newcomer // of the hand-off's
	drained  hotrestart.Drained   // of predecessor, draining
	counters *envoy.Counters      // of draining, retired: Envoy's; nil when unknown
	err      error
}

// reaction does what an event asks for in a role, and returns the role after it.
type reaction func(*Agent, event) hotrestart.Role

// roles is the whole life of a generation. What has no row is of no consequence in
// that role: it came too late.
var roles = map[hotrestart.Role]map[eventKind]reaction{
	hotrestart.RoleStarting: {
		foundNobody:  (*Agent).startCold,
		foundOlder:   (*Agent).takeOver,
		foundNewer:   (*Agent).standBy,
		lookAgain:    (*Agent).look,
		predecessor:  (*Agent).notePredecessor,
		draining:     (*Agent).tellDrain,
		retired:      (*Agent).endRetirement,
		wentAlone:    (*Agent).goAlone,
		inForce:      (*Agent).serve,
		learned:      (*Agent).tellDetails,
		tookOver:     (*Agent).serve,
		failedToTake: (*Agent).tryLater,
		sidecarEnded: (*Agent).fail,
		arrived:      (*Agent).welcome,
		stopAsked:    (*Agent).stopStarting,
		quitAsked:    (*Agent).finish,
	},
	hotrestart.RoleServing: {
		learned:       (*Agent).tellDetails,
		predecessor:   (*Agent).notePredecessor,
		draining:      (*Agent).tellDrain,
		retired:       (*Agent).endRetirement,
		arrived:       (*Agent).welcome,
		sidecarEnded:  (*Agent).fail,
		stopAsked:     (*Agent).considerStop,
		quitAsked:     (*Agent).finish,
		nobodyStarts:  (*Agent).reconsiderStop,
		drainedToStop: (*Agent).emptySockets,
		emptied:       (*Agent).finish,
	},
	hotrestart.RoleHandingOff: {
		predecessor:   (*Agent).notePredecessor,
		draining:      (*Agent).tellDrain,
		retired:       (*Agent).endRetirement,
		inForce:       (*Agent).noteInForce,
		learned:       (*Agent).tellDetails,
		wantsSockets:  (*Agent).give,
		isReady:       (*Agent).letGo,
		settledIn:     (*Agent).retire,
		handoffEnded:  (*Agent).serveOn,
		sidecarEnded:  (*Agent).fail,
		stopAsked:     (*Agent).postponeStop,
		quitAsked:     (*Agent).finish,
		drainedToStop: (*Agent).postponeFinish,
	},
	hotrestart.RoleDraining: {
		predecessor:  (*Agent).notePredecessor,
		draining:     (*Agent).tellDrain,
		terminates:   (*Agent).hurryDrain,
		retired:      (*Agent).endRetirement,
		peerServes:   (*Agent).noteSuccessor,
		peerLeaves:   (*Agent).relieve,
		peerGone:     (*Agent).look,
		lookAgain:    (*Agent).look,
		foundNobody:  (*Agent).comeForward,
		foundOlder:   (*Agent).followFound,
		foundNewer:   (*Agent).followFound,
		handoffEnded: (*Agent).forgetNewcomer,
		arrived:      (*Agent).sendOn,
		stopAsked:    (*Agent).drainThenStop,
		quitAsked:    (*Agent).finish,
	},
	hotrestart.RoleStandby: {
		predecessor:  (*Agent).notePredecessor,
		peerServes:   (*Agent).noteSuccessor,
		peerLeaves:   (*Agent).relieve,
		peerGone:     (*Agent).comeBack,
		lookAgain:    (*Agent).look,
		foundNobody:  (*Agent).comeForward,
		foundOlder:   (*Agent).followFound,
		foundNewer:   (*Agent).followFound,
		handoffEnded: (*Agent).forgetNewcomer,
		arrived:      (*Agent).sendOn,
		stopAsked:    (*Agent).finish,
		quitAsked:    (*Agent).finish,
	},
}

// loop is the state of the goroutine that lives through the roles.
type loop struct {
	role     hotrestart.Role // only enter sets it
	over     bool            // the life is
	err      error           // why, unless it was asked for
	stopping bool            // a stop was asked for
	settled  bool            // it was ready once, or stood by
	replaced bool            // a newer generation has taken over: never take over from a live one again

	sidecar  *sidecar
	search   int       // counts looks: what an earlier one found, or wanted, is of no consequence
	failures int       // to take over, in a row
	taking   func()    // ends the attempt to take over that runs; nil: none
	follow   *follower // of the generation that serves instead
	newcomer *hotrestart.Newcomer
	began    time.Time       // when the newcomer arrived
	before   hotrestart.Role // the role to go back to when it fails
	orphaned bool            // a newcomer died for which a stop was put off
	letGoAt  time.Time       // when this generation let go
	counted  *envoy.Counters // what the newcomer knows of Envoy's counters

	cutDrain  func() // ends the ordinary drain; nil: none runs
	drainOver bool   // it is over, and waits for the newcomer
	emptying  bool   // it is over, and the sockets take nobody new

	// After a hand-off. There may be several drains: a generation whose successor died
	// serves again, and may be taken over from again, before its first Envoy is done.
	retiring int      // how many drains there are
	leaving  *sidecar // the one of which the newcomer is told
	hurry    func()   // ends them all; nil: there are none

	ctx      context.Context // ends with the life
	children sync.WaitGroup  // goroutines that report events
}

// runRoles handles one event after the other until the life is over. asked ends when a
// stop is asked for, base with the process.
func (a *Agent) runRoles(asked, base context.Context) error {
	ctx, cancel := context.WithCancel(base)
	a.loop.ctx = ctx
	var handoffs <-chan hotrestart.Event
	if a.server != nil {
		handoffs = a.server.Events()
	}
	a.enter(hotrestart.RoleStarting)
	a.look(event{})
	stop, quit := asked.Done(), (<-chan struct{})(a.quit)
	for !a.loop.over {
		select {
		case <-stop:
			stop = nil
			a.handle(event{kind: stopAsked})
		case <-quit:
			quit = nil
			a.handle(event{kind: quitAsked})
		case e := <-handoffs:
			a.handle(fromHandoff(e))
		case e := <-a.events:
			a.handle(e)
		}
	}
	err := a.loop.err
	if err == nil {
		err = a.unsettled()
	}
	a.leave(cancel, handoffs)
	return err
}

// unsettled is the error of a stop that came before this generation was ever ready, or stood
// by (nil): a Job's sidecar whose start failed must be started again, not count as done.
func (a *Agent) unsettled() error {
	s := a.loop.sidecar
	if a.loop.settled || s != nil && isClosed(s.inForce) {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return &envoy.ExitError{Status: 1, Reason: "stopped before this agent was ever ready: " + a.pending()}
}

// handle looks the event up in the table and does what it says.
func (a *Agent) handle(e event) {
	if e.search != 0 && e.search != a.loop.search {
		a.log.Debug("superseded", "event", e.kind, "role", a.loop.role)
		return
	}
	react, ok := roles[a.loop.role][e.kind]
	if !ok {
		a.log.Debug("of no consequence", "event", e.kind, "role", a.loop.role)
		a.decline(e)
		return
	}
	a.log.Debug("event", "event", e.kind, "role", a.loop.role)
	a.enter(react(a, e))
}

// enter notes the role, and tells everybody.
func (a *Agent) enter(role hotrestart.Role) {
	changed := role != a.loop.role
	a.loop.role = role
	a.loop.settled = a.loop.settled || role == hotrestart.RoleServing || role == hotrestart.RoleStandby
	a.show(changed)
	if changed {
		a.log.Info("role", "role", role, "generation", a.me.ID)
	}
}

// decline answers a newcomer whom no row provides for, which would else wait in vain.
func (a *Agent) decline(e event) {
	if e.kind == arrived {
		a.warnUnlessLost(e.newcomer.Refuse(hotrestart.RefusedUnready, "this generation is "+string(a.loop.role)))
	}
}

// report delivers an event of a goroutine of the loop's.
func (a *Agent) report(ctx context.Context, e event) {
	select {
	case a.events <- e:
	case <-ctx.Done():
	}
}

// spawn runs work, whose event is reported, until the life is over.
func (a *Agent) spawn(work func(ctx context.Context) (event, bool)) {
	ctx := a.loop.ctx
	a.loop.children.Go(func() {
		if e, ok := work(ctx); ok {
			a.report(ctx, e)
		}
	})
}

// leave ends everything that the life has begun.
func (a *Agent) leave(cancel func(), handoffs <-chan hotrestart.Event) {
	if a.loop.taking != nil {
		a.loop.taking()
	}
	cancel()
	if a.loop.follow != nil {
		a.loop.follow.close()
	}
	done := make(chan struct{})
	go func() {
		a.loop.children.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			if s := a.current(); s != nil {
				s.end()
			}
			return
		case <-handoffs: // the server goes on until it is ended, after this
		}
	}
}

// fromHandoff translates the hand-off server's events into the loop's.
func fromHandoff(e hotrestart.Event) event {
	kinds := map[hotrestart.EventKind]eventKind{
		hotrestart.Arrived: arrived, hotrestart.WantSockets: wantsSockets, hotrestart.Ready: isReady,
		hotrestart.Settled: settledIn, hotrestart.Terminate: terminates, hotrestart.Ended: handoffEnded,
	}
	return event{kind: kinds[e.Kind], newcomer: e.Newcomer, err: e.Err}
}

func (a *Agent) warnUnlessLost(err error) {
	if err != nil && !errors.Is(err, hotrestart.ErrLost) {
		a.log.Warn("answer a newcomer", "err", err)
	}
}

// stay is the role as it is, for a reaction that changes none.
func (a *Agent) stay() hotrestart.Role { return a.loop.role }

// tellDetails has enter tell everybody what is new.
func (a *Agent) tellDetails(event) hotrestart.Role { return a.stay() }

// finish ends the life.
func (a *Agent) finish(event) hotrestart.Role {
	a.loop.over = true
	return a.stay()
}

// fail ends the life because its sidecar has ended by itself.
func (a *Agent) fail(e event) hotrestart.Role {
	if e.sidecar != a.loop.sidecar {
		return a.stay()
	}
	a.loop.over, a.loop.err = true, e.err
	if e.err == nil && !a.loop.stopping {
		a.loop.err = fmt.Errorf("the agent's servers ended")
	}
	return a.stay()
}
