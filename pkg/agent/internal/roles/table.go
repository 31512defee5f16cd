// Package roles owns what each event means in each role of a generation: which role
// follows, and what is to be done. It does nothing itself, and waits for nothing.
package roles

import "understudy.mesh/hotrestart/handoff"

// rule changes the state as an event asks for, and returns what is to be done.
type rule func(*State, Event) []Action

// always is a rule that depends on nothing.
func always(what ...Do) rule {
	return func(*State, Event) []Action { return do(what...) }
}

// table is the whole life of a generation. What has no row is of no consequence in
// that role: it came too late.
var table = map[handoff.Role]map[Kind]rule{
	handoff.RoleStarting: {
		FoundNobody:     startCold,
		FoundOlder:      takeOver,
		FoundNewer:      standBy,
		LookAgain:       look,
		PredecessorNews: predecessorNews,
		DrainNews:       drainNews,
		Retired:         retired,
		PredecessorDied: adoptOrphanedSockets,
		InForce:         inForce,
		Learned:         always(), // it is told with the role
		TookOver:        tookOver,
		FailedToTake:    tryLater,
		Hopeless:        giveUp,
		HookCutOff:      cutOff,
		CannotServe:     cannotServe,
		SidecarEnded:    sidecarEnded,
		handoff.Arrived: arrived,
		Welcomed:        welcomed,
		StopAsked:       stopStarting,
		QuitAsked:       finish,
	},
	handoff.RoleServing: {
		Learned:         always(),
		PredecessorNews: predecessorNews,
		DrainNews:       drainNews,
		Retired:         retired,
		handoff.Arrived: arrived,
		Welcomed:        welcomed,
		CannotServe:     cannotServe,
		SidecarEnded:    sidecarEnded,
		StopAsked:       considerStop,
		QuitAsked:       finish,
		NobodyTakesOver: reconsiderStop,
		DrainedToStop:   emptySockets,
		Emptied:         finish,
	},
	handoff.RoleHandingOff: {
		PredecessorNews:     predecessorNews,
		DrainNews:           drainNews,
		Retired:             retired,
		InForce:             coldInForce,
		Learned:             always(),
		handoff.Arrived:     busy,
		handoff.WantSockets: always(GiveSockets), // nothing changes for this generation
		handoff.Ready:       always(ReleaseListeners),
		handoff.Settled:     retire,
		handoff.Ended:       failed,
		SidecarEnded:        sidecarEnded,
		StopAsked:           postponeStop,
		QuitAsked:           finish,
		DrainedToStop:       postponeEnd,
	},
	handoff.RoleDraining: {
		PredecessorNews: predecessorNews,
		DrainNews:       drainNews,
		Retired:         retired,
		PeerServes:      always(NoteServes),
		PeerLeaves:      takeOverFromLeaving,
		PeerGone:        look,
		LookAgain:       look,
		FoundNobody:     promote,
		FoundOlder:      always(Follow),
		FoundNewer:      always(Follow),
		handoff.Ended:   forgetNewcomer,
		handoff.Arrived: sendOn,
		StopAsked:       stopLeaving,
		QuitAsked:       finish,
	},
	handoff.RoleStandby: {
		PredecessorNews: predecessorNews,
		PeerServes:      always(NoteServes),
		PeerLeaves:      takeOverFromLeaving,
		PeerGone:        stepIn,
		LookAgain:       look,
		FoundNobody:     promote,
		FoundOlder:      always(Follow),
		FoundNewer:      always(Follow),
		handoff.Ended:   forgetNewcomer,
		handoff.Arrived: sendOn,
		StopAsked:       finish,
		QuitAsked:       finish,
	},
}

// On returns the state after an event, and what is to be done, in this order. known is false
// for what is of no consequence: nothing changes.
func (s State) On(e Event) (next State, actions []Action, known bool) {
	react, known := table[s.Role][e.Kind]
	if !known || e.Search != 0 && e.Search != s.Search {
		return s, nil, false
	}
	actions = react(&s, e)
	s.Settled = s.Settled || s.Role == handoff.RoleServing || s.Role == handoff.RoleStandby
	return s, actions, true
}
