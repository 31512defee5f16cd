package roles

import (
	"fmt"
	"time"

	"understudy.mesh/hotrestart/handoff"
)

// Kind says what has happened: one of this package's, or a [handoff.EventKind].
type Kind = fmt.Stringer

// own are the kinds besides those of a hand-off.
type own uint8

// What happens to a generation, besides what a newcomer wants of it.
const (
	// What was found in the hand-off directory.
	FoundNobody own = iota // nobody serves, or is about to
	FoundOlder             // an older generation serves, or is about to
	FoundNewer             // a newer generation does
	LookAgain              // time to look
	PeerServes             // the generation that is followed serves
	PeerLeaves             // it was asked to stop
	PeerGone               // it serves no more

	// What became of this generation's own work.
	InForce         // the sidecar serves all its configuration
	Learned         // what it tells others of its Envoy is something else now
	PredecessorDied // in the middle of the hand-off; its sockets are here
	TookOver        // everything is here for good
	FailedToTake    // the generation before serves on
	Hopeless        // so it does, and no further attempt would end otherwise
	HookCutOff      // nobody waits for this generation any more, and the kubelet is about to count it as ready
	Welcomed        // the newcomer knows that it may take over
	CannotServe     // the sockets cannot be had, or not be served
	SidecarEnded    // by itself
	PredecessorNews // about the drain of the generation before
	DrainedToStop   // the drain of an ordinary stop is over
	Emptied         // and after it nobody waits in a socket any more
	Retired         // a drain after a hand-off is over
	DrainNews       // about such a drain
	StopAsked       // as soon as nobody needs it
	QuitAsked       // now, whatever is under way
	NobodyTakesOver // from the one that was asked to stop
	kinds           = int(NobodyTakesOver) + 1
)

var names = [kinds]string{
	FoundNobody: "found nobody", FoundOlder: "found an older one", FoundNewer: "found a newer one", LookAgain: "look again",
	PeerServes: "the followed one serves", PeerLeaves: "the followed one leaves", PeerGone: "the followed one is gone",
	InForce: "in force", Learned: "learned of its Envoy", PredecessorDied: "the one before died", TookOver: "took over", FailedToTake: "failed to take over", Hopeless: "cannot take over", HookCutOff: "hook cut off",
	Welcomed: "welcomed", CannotServe: "cannot serve", SidecarEnded: "sidecar ended", PredecessorNews: "news of the one before",
	DrainedToStop: "drained to stop", Emptied: "emptied", Retired: "retired", DrainNews: "news of the drain",
	StopAsked: "stop asked", QuitAsked: "quit asked", NobodyTakesOver: "nobody takes over",
}

// String names the kind for the log.
func (k own) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// Event is one thing that happened, with all that a role makes depend on it.
type Event struct {
	Kind   Kind
	Search int // the State.Search that it answers; 0: none
	Err    error

	Current bool // it is about the sidecar that the agent has, or that it has none
	Leaving bool // it is about the sidecar that drains for the newcomer
	Ours    bool // it is about the newcomer that was welcomed
	Done    bool // of PredecessorNews: that drain is over

	Sidecar            bool // the agent has one
	InForce, Accepting bool // the sidecar that it is about, else the agent's
	NoDrain            bool // connections were drained already
	PredecessorDrained bool // a generation before this one has

	// Of Arrived.
	Verdict handoff.Verdict // whether the newcomer is the newer one
	Forced  bool            // it is started with --takeover=force
	Unfit   error           // why the sidecar cannot be taken over
}

// State is what a generation knows of itself.
type State struct {
	ID     string
	Forced bool // started with --takeover=force

	Role           handoff.Role
	before         handoff.Role // the role to go back to when the newcomer fails
	Over           bool         // its life is
	Stopping       bool         // a stop was asked for
	Settled        bool         // it was ready once, or stood by
	Replaced       bool         // a newer generation has taken over: never take over from a live one again
	taking         bool         // an attempt to take over runs
	orphaned       bool         // a newcomer died for which a stop was put off
	drainingToStop bool         // the drain of the ordinary stop has begun
	drainedToStop  bool         // it is over, and waits for the newcomer
	emptying       bool         // it is over, and the sockets take nobody new
	Retiring       int          // drains after hand-offs: a generation whose successor died serves again, and may be taken over from again
	Search         int          // counts looks: what an earlier one found, or wanted, is of no consequence
	failures       int          // to take over, in a row
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
	ReportHopeless
	ReportCutOff
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
