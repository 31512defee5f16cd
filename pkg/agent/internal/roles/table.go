// Package roles owns what each event means in each role of a generation: which role
// follows, and what is to be done. It does nothing itself, and waits for nothing.
package roles

import "understudy.mesh/hotrestart"

// rule changes the state as an event asks for, and returns what is to be done.
type rule func(*State, Event) []Action

// always is a rule that depends on nothing.
func always(what ...Do) rule {
	return func(*State, Event) []Action { return do(what...) }
}

// table is the whole life of a generation. What has no row is of no consequence in
// that role: it came too late.
var table = map[hotrestart.Role]map[Kind]rule{
	hotrestart.RoleStarting: {
		FoundNobody:        startCold,
		FoundOlder:         takeOver,
		FoundNewer:         standBy,
		LookAgain:          look,
		PredecessorNews:    predecessorNews,
		DrainNews:          drainNews,
		Retired:            retired,
		PredecessorDied:    adoptOrphanedSockets,
		InForce:            inForce,
		Learned:            always(), // it is told with the role
		TookOver:           tookOver,
		FailedToTake:       tryLater,
		CannotServe:        cannotServe,
		SidecarEnded:       sidecarEnded,
		hotrestart.Arrived: arrived,
		Welcomed:           welcomed,
		StopAsked:          stopStarting,
		QuitAsked:          finish,
	},
	hotrestart.RoleServing: {
		Learned:            always(),
		PredecessorNews:    predecessorNews,
		DrainNews:          drainNews,
		Retired:            retired,
		hotrestart.Arrived: arrived,
		Welcomed:           welcomed,
		CannotServe:        cannotServe,
		SidecarEnded:       sidecarEnded,
		StopAsked:          considerStop,
		QuitAsked:          finish,
		NobodyTakesOver:    reconsiderStop,
		DrainedToStop:      emptySockets,
		Emptied:            finish,
	},
	hotrestart.RoleHandingOff: {
		PredecessorNews:        predecessorNews,
		DrainNews:              drainNews,
		Retired:                retired,
		InForce:                coldInForce,
		Learned:                always(),
		hotrestart.Arrived:     busy,
		hotrestart.WantSockets: always(GiveSockets), // nothing changes for this generation
		hotrestart.Ready:       always(ReleaseListeners),
		hotrestart.Settled:     retire,
		hotrestart.Ended:       failed,
		SidecarEnded:           sidecarEnded,
		StopAsked:              postponeStop,
		QuitAsked:              finish,
		DrainedToStop:          postponeEnd,
	},
	hotrestart.RoleDraining: {
		PredecessorNews:      predecessorNews,
		DrainNews:            drainNews,
		hotrestart.Terminate: always(HurryDrains),
		Retired:              retired,
		PeerServes:           always(NoteServes),
		PeerLeaves:           takeOverFromLeaving,
		PeerGone:             look,
		LookAgain:            look,
		FoundNobody:          promote,
		FoundOlder:           always(Follow),
		FoundNewer:           always(Follow),
		hotrestart.Ended:     forgetNewcomer,
		hotrestart.Arrived:   sendOn,
		StopAsked:            stopLeaving,
		QuitAsked:            finish,
	},
	hotrestart.RoleStandby: {
		PredecessorNews:    predecessorNews,
		PeerServes:         always(NoteServes),
		PeerLeaves:         takeOverFromLeaving,
		PeerGone:           stepIn,
		LookAgain:          look,
		FoundNobody:        promote,
		FoundOlder:         always(Follow),
		FoundNewer:         always(Follow),
		hotrestart.Ended:   forgetNewcomer,
		hotrestart.Arrived: sendOn,
		StopAsked:          finish,
		QuitAsked:          finish,
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
	s.Settled = s.Settled || s.Role == hotrestart.RoleServing || s.Role == hotrestart.RoleStandby
	return s, actions, true
}
