package agent

import (
	"cmp"
	"errors"
	"time"

	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
)

// step does an action. It returns the event that comes of it at once; nil: none does.
type step func(*Agent, event, roles.Action) *event

// plain is a step from which nothing follows.
func plain(do func(*Agent)) step {
	return func(a *Agent, _ event, _ roles.Action) *event { do(a); return nil }
}

// onEvent is plain for what depends on the event.
func onEvent(do func(*Agent, event)) step {
	return func(a *Agent, e event, _ roles.Action) *event { do(a, e); return nil }
}

// onSidecar is plain for what concerns the sidecar alone.
func onSidecar(do func(*sidecar.Sidecar)) step {
	return func(a *Agent, _ event, _ roles.Action) *event { do(a.loop.sidecar); return nil }
}

// toServe is a step without which the sidecar cannot serve.
func toServe(do func(*Agent) error) step {
	return func(a *Agent, _ event, _ roles.Action) *event {
		if err := do(a); err != nil {
			return &event{kind: roles.CannotServe, err: err}
		}
		return nil
	}
}

// execute says how each action is done.
var execute = map[roles.Do]step{
	roles.Show:       plain((*Agent).tell),
	roles.Look:       plain((*Agent).look),
	roles.LookLater:  func(a *Agent, _ event, action roles.Action) *event { a.lookLater(action.Pause); return nil },
	roles.StandBy:    onEvent((*Agent).sayStandBy),
	roles.Follow:     onEvent((*Agent).followFound),
	roles.Unfollow:   plain((*Agent).unfollow),
	roles.Promote:    onEvent((*Agent).sayPromoted),
	roles.StepIn:     onEvent((*Agent).sayStepIn),
	roles.NoteServes: plain(func(a *Agent) { a.update(func(s *shown) { s.successorServes = true }) }),

	roles.StartCold:            toServe((*Agent).startCold),
	roles.DropSidecar:          plain(func(a *Agent) { a.adopt(nil) }),
	roles.TakeOver:             onEvent((*Agent).takeOver),
	roles.CancelTakeOver:       plain(func(a *Agent) { a.loop.taking(nil) }),
	roles.FinishTakeOver:       onEvent((*Agent).finishTakeOver),
	roles.AdoptOrphanedSockets: onEvent((*Agent).adoptOrphanedSockets),
	roles.ReportRefused:        reportFailed(resultRefused, (*Agent).sayRefused),
	roles.ReportLost:           reportFailed(resultFailure, (*Agent).sayLost),
	roles.ReportFailed:         reportFailed(resultFailure, (*Agent).sayFailed),
	roles.ReportHopeless:       reportFailed(resultFailure, (*Agent).sayHopeless),
	roles.ReportCutOff:         reportFailed(resultFailure, (*Agent).sayCutOff),
	roles.SayRetry: func(a *Agent, e event, action roles.Action) *event {
		a.log.Error("this generation cannot serve again yet", "err", e.err, "next", action.Pause)
		return nil
	},

	roles.Accept:              toServe(func(a *Agent) error { return a.loop.sidecar.Accept() }),
	roles.Resume:              toServe(func(a *Agent) error { return a.loop.sidecar.Resume() }),
	roles.SettleSockets:       onSidecar(func(s *sidecar.Sidecar) { s.Sockets.Settle() }),
	roles.UnrestrictReuseport: onSidecar(func(s *sidecar.Sidecar) { s.Sockets.UnrestrictReuseport() }),
	roles.ReadyOn:             onSidecar(func(s *sidecar.Sidecar) { s.Ready.On() }),
	roles.ReadyOff:            onSidecar(func(s *sidecar.Sidecar) { s.Unready() }),
	roles.GiveMemoryBack:      plain((*Agent).giveMemoryBack),

	roles.Reject:           (*Agent).reject,
	roles.Refuse:           (*Agent).refuse,
	roles.Welcome:          (*Agent).welcome,
	roles.BeginHandOff:     onEvent((*Agent).beginHandOff),
	roles.GiveSockets:      onEvent((*Agent).giveSockets),
	roles.ReleaseListeners: onEvent((*Agent).releaseListeners),
	roles.FailHandOff:      onEvent((*Agent).failHandOff),
	roles.Retire:           plain((*Agent).retire),
	roles.ForgetNewcomer:   plain(func(a *Agent) { a.loop.handOff.newcomer = nil }),

	roles.NotePredecessor: onEvent(func(a *Agent, e event) { a.update(func(s *shown) { s.predecessor = &e.drained }) }),
	roles.NotePredecessorDrained: plain(func(a *Agent) {
		a.step("the generation before has drained")
		a.log.Info("the generation before has drained")
	}),
	roles.ShowDrain: onEvent(func(a *Agent, e event) {
		a.update(func(s *shown) { s.left, s.drain = e.drained.Left, waitsFor(e.load) })
	}),
	roles.TellNewcomer: onEvent((*Agent).tellNewcomer),
	roles.EndDrain:     onEvent((*Agent).endDrain),
	roles.HurryDrains:  plain((*Agent).hurryDrains),

	roles.AwaitSuccessor: plain((*Agent).awaitSuccessor),
	roles.SayPostponed:   plain((*Agent).sayPostponed),
	roles.DrainToStop:    plain((*Agent).drainToStop),
	roles.CutDrain:       plain(func(a *Agent) { a.loop.cutDrain() }),
	roles.EmptySockets:   plain((*Agent).emptySockets),
	roles.Finish:         plain(func(*Agent) {}), // the loop looks
	roles.Fail:           onEvent(func(a *Agent, e event) { a.fail(cmp.Or(e.err, errServersEnded)) }),
}

// giveBackAfter is how long whoever reported that a sidecar has gone, and the loop, may still refer to it.
const giveBackAfter = 200 * time.Millisecond

// giveMemoryBack does so when nothing refers any more to what has gone. At once the collector would still find it, and would look
// again only after two minutes: nothing else makes an idle agent collect.
func (a *Agent) giveMemoryBack() { time.AfterFunc(giveBackAfter, a.world.Settled) }

// errServersEnded is why the life is over where nothing else says so.
var errServersEnded = errors.New("the agent's servers ended")

// reportFailed notes how an attempt to take over ended, and says so.
func reportFailed(result string, say func(*Agent, event, roles.Action)) step {
	return func(a *Agent, e event, action roles.Action) *event {
		a.finishAttempt(result, e.err)
		say(a, e, action)
		return nil
	}
}
