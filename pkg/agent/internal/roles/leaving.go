package roles

import "understudy.mesh/hotrestart/handoff"

// retire: the newcomer holds everything for good. What is left here is to let
// connections end.
func retire(s *State, _ Event) []Action {
	actions := do(Retire)
	if s.drainingToStop {
		actions = do(CutDrain, Retire)
	}
	s.Role, s.drainingToStop, s.drainedToStop, s.Replaced = handoff.RoleDraining, false, false, true
	s.Retiring++
	return actions
}

// retired: an old Envoy has exited, and nothing is left of it.
func retired(s *State, e Event) []Action {
	s.Retiring--
	var actions []Action
	if e.Leaving && s.Role == handoff.RoleDraining {
		actions = do(TellNewcomer)
	}
	actions = append(actions, Action{Do: EndDrain})
	if e.Current {
		actions = append(actions, Action{Do: DropSidecar})
	}
	actions = append(actions, Action{Do: GiveMemoryBack})
	switch {
	case s.Retiring > 0, s.Role != handoff.RoleDraining: // it serves again, or is about to
		return actions
	case s.Stopping:
		return append(actions, finish(s, e)...)
	}
	s.Role = handoff.RoleStandby
	return actions
}

// drainNews passes on how many connections are left.
func drainNews(s *State, e Event) []Action {
	switch {
	case !e.Leaving:
		return nil
	case s.Role != handoff.RoleDraining:
		return do(ShowDrain)
	}
	return do(ShowDrain, TellNewcomer)
}

// predecessorNews: `wait --for=drained` depends on them.
func predecessorNews(s *State, e Event) []Action {
	switch {
	case !e.Done:
		return do(NotePredecessor)
	case s.Role == handoff.RoleServing: // else it is the successor who restricted it
		return do(NotePredecessor, UnrestrictReuseport, NotePredecessorDrained)
	}
	return do(NotePredecessor, NotePredecessorDrained)
}

// stopLeaving: connections end by themselves, by --upgradeDrainDuration, or by SIGKILL.
func stopLeaving(s *State, e Event) []Action {
	s.Stopping = true
	if e.NoDrain {
		return do(HurryDrains)
	}
	return nil
}

// takeOverFromLeaving: the generation for which this one stood by was asked to stop. It lets
// itself be taken over as long as it drains.
func takeOverFromLeaving(s *State, e Event) []Action {
	if s.Stopping {
		return nil
	}
	s.Role = handoff.RoleStarting
	return append(do(DropSidecar), takeOver(s, e)...)
}

// stepIn: the generation for which this one stood by is gone.
func stepIn(s *State, e Event) []Action {
	s.Role = handoff.RoleStarting
	return append(do(StepIn, Show), look(s, e)...) // shown before it looks, see promote
}

// promote: nobody serves. This generation will, says so, and looks once more: of
// several that are promoted at once, all but one see a newer one then. What drains here
// goes on draining.
func promote(s *State, e Event) []Action {
	if s.Stopping {
		return nil
	}
	s.Role = handoff.RoleStarting
	return append(do(Promote, DropSidecar, Show), look(s, e)...)
}

// sendOn: this generation serves no more; another does.
func sendOn(s *State, _ Event) []Action {
	return []Action{{Do: Refuse, Refusal: &handoff.RefusedError{Code: handoff.RefusedMoved, Reason: "generation " + s.ID + " serves no more"}}}
}

func forgetNewcomer(_ *State, e Event) []Action {
	if e.Ours {
		return do(ForgetNewcomer)
	}
	return nil
}
