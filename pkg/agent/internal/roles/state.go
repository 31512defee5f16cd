package roles

import (
	"time"

	"understudy.mesh/hotrestart/handoff"
)

// State is what a generation knows of itself.
type State struct {
	ID     string
	Forced bool // started with --takeover=force

	Role     handoff.Role
	Before   handoff.Role // the role to go back to when the newcomer fails
	Over     bool         // its life is
	Stopping bool         // a stop was asked for
	Settled  bool         // it was ready once, or stood by
	Replaced bool         // a newer generation has taken over: never take over from a live one again
	Taking   bool         // an attempt to take over runs
	Orphaned bool         // a newcomer died for which a stop was put off
	Draining bool         // the drain of the ordinary stop has begun
	Drained  bool         // it is over, and waits for the newcomer
	Emptying bool         // it is over, and the sockets take nobody new
	Retiring int          // drains after hand-offs: a generation whose successor died serves again, and may be taken over from again
	Search   int          // counts looks: what an earlier one found, or wanted, is of no consequence
	Failures int          // to take over, in a row
}

// Action is one thing to do.
type Action struct {
	Do      Do
	Pause   time.Duration         // of LookLater, and of what says when it comes
	Refusal *handoff.RefusedError // of Refuse and Reject
}

// Do says what.
type Do uint8

// What a role asks for.
const (
	Show      Do = iota // tell everybody of the role before what follows; in the end it is told anyway
	Look                // find out who else there is
	LookLater           // after Pause
	StandBy             // for the generation that was found
	Follow              // it
	Unfollow
	Promote    // say that nobody serves
	StepIn     // say that the one that was followed does not any more
	NoteServes // the followed one serves

	StartCold
	DropSidecar // what drains goes on by itself
	TakeOver    // begin to
	CancelTakeOver
	FinishTakeOver
	AdoptOrphanedSockets // those of a generation that died
	ReportRefused
	ReportLost
	ReportFailed
	SayRetry // that it cannot serve now, and tries after Pause

	Accept // on the agent's sockets
	SettleSockets
	UnrestrictReuseport
	GiveMemoryBack

	Reject // a newcomer, with a line in the log
	Refuse
	Welcome
	ReadyOn
	BeginHandOff
	GiveSockets
	ReleaseListeners
	FailHandOff
	Resume // to accept and to publish
	ReadyOff
	Retire // let connections end, after the hand-off
	ForgetNewcomer

	NotePredecessor
	NotePredecessorDrained
	ShowDrain
	TellNewcomer // how the drain goes
	EndDrain     // one after a hand-off
	HurryDrains

	AwaitSuccessor
	SayPostponed // the stop
	DrainToStop
	CutDrain // of the ordinary stop
	EmptySockets
	Finish
	Fail
)

func do(what ...Do) []Action {
	actions := make([]Action, len(what))
	for i, d := range what {
		actions[i].Do = d
	}
	return actions
}
