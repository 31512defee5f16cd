package roles

import (
	"errors"
	"time"

	"understudy.mesh/hotrestart/handoff"
)

const (
	// lookSoon is the pause before another look when somebody else is at work:
	// taking over, or about to stand by.
	lookSoon = 100 * time.Millisecond
	// retryFirst doubles with each failed take-over, up to retryLast: the generation
	// before serves on, and each attempt costs it a little.
	retryFirst = time.Second
	retryLast  = 30 * time.Second
	// maxDoublings bounds the shift; retryLast is reached long before.
	maxDoublings = 10
)

func look(s *State, _ Event) []Action {
	s.Search++
	return do(Look)
}

// lookLater reports as said, and looks after a pause.
func lookLater(s *State, said Do, pause time.Duration) []Action {
	s.Search++
	return []Action{{Do: said, Pause: pause}, {Do: LookLater, Pause: pause}}
}

// startCold: nobody else serves.
func startCold(s *State, e Event) []Action {
	if s.Stopping {
		return stopStarting(s, e)
	}
	return do(StartCold)
}

// cannotServe ends the life, unless that would cut the connections that it drains.
func cannotServe(s *State, e Event) []Action {
	if !e.Sidecar && s.Retiring > 0 {
		return lookLater(s, SayRetry, retryFirst)
	}
	s.Over = true
	return do(Fail)
}

func takeOver(s *State, e Event) []Action {
	if s.Stopping {
		return stopStarting(s, e)
	}
	s.taking = true
	s.Search++ // what is found meanwhile is of no consequence
	return do(TakeOver)
}

// standBy: a newer generation serves, or is about to.
func standBy(s *State, e Event) []Action {
	if s.Stopping {
		return stopStarting(s, e)
	}
	if s.Retiring > 0 {
		s.Role = handoff.RoleDraining
		return do(StandBy, Follow)
	}
	s.Role = handoff.RoleStandby
	return do(StandBy, Follow, GiveMemoryBack)
}

// tookOver: this generation is the one that serves, and holds every socket.
func tookOver(s *State, e Event) []Action {
	actions := append(do(FinishTakeOver), serve(s)...)
	if e.PredecessorDrained {
		actions = append(actions, Action{Do: UnrestrictReuseport}) // nobody is left who would empty a surplus socket
	}
	return append(actions, awaitSuccessor(s)...)
}

func inForce(s *State, e Event) []Action {
	if !e.Current {
		return nil // of one that drains
	}
	return append(append(serve(s), Action{Do: UnrestrictReuseport}), awaitSuccessor(s)...)
}

func serve(s *State) []Action {
	s.Role, s.taking, s.failures, s.Replaced = handoff.RoleServing, false, 0, false
	return do(Unfollow, SettleSockets, GiveMemoryBack)
}

// awaitSuccessor: a generation that was asked to stop serves on while a newer one is about to
// take over from it.
func awaitSuccessor(s *State) []Action {
	if s.Stopping {
		return do(AwaitSuccessor)
	}
	return nil
}

// adoptOrphanedSockets: the generation before died in the middle. Nobody else reads its sockets.
func adoptOrphanedSockets(s *State, e Event) []Action {
	s.taking = false
	switch {
	case s.Stopping && !e.InForce:
		s.Over = true
		return do(AdoptOrphanedSockets, Finish)
	case !e.Accepting:
		return do(AdoptOrphanedSockets, Accept)
	}
	return do(AdoptOrphanedSockets)
}

// tryLater: the generation before serves on; what this one had begun is undone.
func tryLater(s *State, e Event) []Action {
	s.taking = false
	if s.Stopping {
		return stopStarting(s, e)
	}
	doublings := min(s.failures, maxDoublings)
	s.failures++
	pause := min(retryFirst<<doublings, retryLast)
	var refused *handoff.RefusedError
	switch {
	case errors.As(e.Err, &refused):
		if refused.Code == handoff.RefusedBusy || refused.Code == handoff.RefusedMoved {
			pause = min(lookSoon<<doublings, retryFirst) // until somebody else is done
		}
		return lookLater(s, ReportRefused, pause)
	case errors.Is(e.Err, handoff.ErrLost):
		return append(do(ReportLost), look(s, e)...)
	}
	return lookLater(s, ReportFailed, pause)
}

// giveUp: a newcomer that can never take over ends, so that its container is not ready and says why; as long as it
// ran, it would count as the pod's new one. Who was ready once, or drains, is more than that to the pod.
func giveUp(s *State, e Event) []Action {
	if s.Stopping || s.Settled || s.Retiring > 0 {
		return tryLater(s, e)
	}
	s.taking, s.Over = false, true
	return do(ReportHopeless, Fail)
}

// cutOff: the hook of this generation is gone with its kubelet, and the next kubelet reports the container as ready. So a newcomer
// that cannot serve yet ends, as it does when its hook fails: its slot must not count as ready while another one serves.
func cutOff(s *State, e Event) []Action {
	hasPredecessor := s.taking || s.failures > 0
	if !hasPredecessor || e.InForce || s.Stopping || s.Settled || s.Retiring > 0 {
		return nil
	}
	s.Over = true
	return do(ReportCutOff, Fail)
}

// stopStarting: nothing serves here yet, so that nothing has to be drained.
func stopStarting(s *State, e Event) []Action {
	s.Stopping = true
	switch {
	case s.taking:
		return do(CancelTakeOver) // tells the generation before; what has become of it then, an event says
	case !e.Sidecar && s.Retiring > 0:
		s.Role = handoff.RoleDraining
		return nil
	}
	return finish(s, e)
}

func finish(s *State, _ Event) []Action {
	s.Over = true
	return do(Finish)
}

// sidecarEnded by itself: the life has, unless it was one of before.
func sidecarEnded(s *State, e Event) []Action {
	switch {
	case !e.Current:
		return nil
	case e.Err == nil && s.Stopping:
		return finish(s, e)
	}
	s.Over = true
	return do(Fail)
}
