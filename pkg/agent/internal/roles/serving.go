package roles

import (
	"errors"
	"fmt"

	"understudy.mesh/hotrestart/handoff"
)

// arrived answers a newcomer: it may take over if it is the newer one.
func arrived(s *State, e Event) []Action {
	refusal := judge(s, e)
	if refusal == nil {
		return do(Welcome)
	}
	actions := []Action{{Do: Reject, Refusal: refusal}}
	if refusal.Code == handoff.RefusedMoved { // both are about to start: this one yields
		actions = append(actions, look(s, e)...)
	}
	return actions
}

// judge says why a newcomer may not take over; nil when it may.
func judge(s *State, e Event) *handoff.RefusedError {
	refuse := func(code handoff.RefusalCode, format string, args ...any) *handoff.RefusedError {
		return &handoff.RefusedError{Code: code, Reason: fmt.Sprintf("generation "+s.ID+" "+format, args...)}
	}
	switch {
	case !e.Verdict.TakeOver && !s.Stopping: // else whoever comes is welcome
		return refuse(handoff.RefusedOlder, "serves: %s", e.Verdict.Reason)
	case s.emptying:
		return refuse(handoff.RefusedBusy, "is ending, and its sockets take nobody new")
	case s.Role == handoff.RoleStarting && s.Forced && !e.Forced:
		return refuse(handoff.RefusedBusy, "is starting with --takeover=force")
	case s.taking:
		return refuse(handoff.RefusedBusy, "is taking over itself")
	case !e.Sidecar:
		return refuse(handoff.RefusedMoved, "has nothing to hand over, and stands by")
	case e.Unfit != nil:
		return refuse(handoff.RefusedUnready, "cannot be taken over: %v", e.Unfit)
	}
	return nil
}

func welcomed(s *State, _ Event) []Action {
	s.before, s.Role = s.Role, handoff.RoleHandingOff
	if s.drainingToStop {
		return do(ReadyOn, BeginHandOff) // the drain of the stop took it
	}
	return do(BeginHandOff)
}

// busy: the hand-off's server lets in one newcomer at a time; a second one would wait in vain.
func busy(s *State, _ Event) []Action {
	return []Action{{Do: Refuse, Refusal: &handoff.RefusedError{Code: handoff.RefusedUnready, Reason: "this generation is " + string(s.Role)}}}
}

// failed: the hand-off ended without a successor.
func failed(s *State, e Event) []Action {
	if !e.Ours {
		return nil
	}
	actions := do(FailHandOff, UnrestrictReuseport)
	if !e.Accepting {
		actions = append(actions, Action{Do: Resume})
	}
	s.Role = s.before
	switch {
	case s.drainedToStop:
		return append(actions, emptySockets(s, e)...)
	case s.drainingToStop:
		return append(actions, Action{Do: ReadyOff})
	case !s.Stopping:
		return actions
	}
	var aborted *handoff.AbortedError
	switch podStops := errors.As(e.Err, &aborted) && aborted.Code == handoff.AbortStopping; {
	case !podStops:
		s.orphaned = true // the newcomer may be started again
		return actions
	case s.before == handoff.RoleStarting:
		return append(actions, stopStarting(s, e)...)
	}
	return append(actions, drainToStop(s, e)...)
}

// coldInForce: a cold start came into force while a newcomer was already taking over.
func coldInForce(s *State, e Event) []Action {
	if !e.Current {
		return nil // of one that drains
	}
	s.before, s.Settled = handoff.RoleServing, true
	return do(SettleSockets, GiveMemoryBack)
}

func considerStop(s *State, _ Event) []Action {
	s.Stopping = true
	return awaitSuccessor(s)
}

// reconsiderStop: the newer generation for which this one served on is gone. One that
// died in the middle may be started again, and this one is all that the pod has.
func reconsiderStop(s *State, e Event) []Action {
	if s.orphaned {
		return nil
	}
	return drainToStop(s, e)
}

// drainToStop is the ordinary stop. A newcomer may still take over meanwhile.
func drainToStop(s *State, _ Event) []Action {
	s.drainingToStop = true
	return do(DrainToStop)
}

// postponeStop: the newcomer that is taking over decides.
func postponeStop(s *State, _ Event) []Action {
	s.Stopping = true
	return do(SayPostponed)
}

// postponeEnd: Envoy serves on behind its drain until the newcomer holds the sockets.
func postponeEnd(s *State, _ Event) []Action {
	s.drainedToStop = true
	return nil
}

// emptySockets: the drain of the ordinary stop is over. What came before is served before Envoy ends.
func emptySockets(s *State, e Event) []Action {
	if e.NoDrain {
		return finish(s, e)
	}
	s.emptying = true
	return do(EmptySockets)
}
