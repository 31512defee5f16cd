package handoff

import "fmt"

// stage is where one hand-off stands, seen from one side.
type stage uint8

// The stages of the parent (Newcomer, the old generation's side).
const (
	parentGreeting  stage = iota // connected, nothing said
	parentDeciding               // the owner decides whether it may
	parentWarming                // welcomed, has the state, starts its Envoy
	parentChoosing               // wants the sockets; the owner gives
	parentHolding                // has the sockets
	parentReleasing              // accepts on all; the owner lets go
	parentProbation              // let go, copies kept
	parentCommitted              // it holds everything; the probation still runs
	parentSettled                // nothing to take back; drain reports
	parentWatched                // only wants reports

	// The stages of the child (Client, the newcomer's side).
	childGreeting   // hello sent
	childLoading    // welcomed; state arrives
	childWarming    // starting its Envoy
	childFetching   // sockets arrive
	childHolding    // has the sockets
	childReleasing  // said ready
	childServing    // the old one let go
	childCommitting // said committed
	childSettled    // final

	stageOver // ended, either side
)

var stageNames = [...]string{
	parentGreeting: "parent greeting", parentDeciding: "parent deciding", parentWarming: "parent warming", parentChoosing: "parent choosing",
	parentHolding: "parent holding", parentReleasing: "parent releasing", parentProbation: "parent probation", parentCommitted: "parent committed",
	parentSettled: "parent settled", parentWatched: "parent watched",
	childGreeting: "child greeting", childLoading: "child loading", childWarming: "child warming", childFetching: "child fetching",
	childHolding: "child holding", childReleasing: "child releasing", childServing: "child serving", childCommitting: "child committing",
	childSettled: "child settled", stageOver: "over",
}

func (s stage) String() string {
	if int(s) < len(stageNames) {
		return stageNames[s]
	}
	return fmt.Sprintf("stage %d", uint8(s))
}

// event is what moves a stage: a message of the peer's, something the owner does, or
// time. The peer's end moves every stage to stageOver and has no rows.
type event struct {
	message messageKind // when not 0
	act     act         // otherwise
}

// act is an event that is no message.
type act string

const (
	actAccept  act = "accept"  // owner of the parent: welcome it
	actRefuse  act = "refuse"  // owner of the parent: send it away, in any stage before settled
	actGive    act = "give"    // owner of the parent: here are the sockets
	actRelease act = "release" // owner of the parent: I have let go
	actReport  act = "report"  // owner of the parent: tell the drain, or the role
	actTimeout act = "timeout" // the stage's deadline passed
	actFetch   act = "fetch"   // owner of the child: get the sockets
	actReady   act = "ready"   // owner of the child: I accept
	actCommit  act = "commit"  // owner of the child: I hold everything
)

func (e event) String() string {
	if e.message != 0 {
		return "got " + e.message.String()
	}
	return string(e.act)
}

func got(k messageKind) event { return event{message: k} }
func did(a act) event         { return event{act: a} }

// move is one row: in stage from, event on leads to stage to. What is done on the way
// is named after the event and lives with each side.
type move struct {
	from stage
	on   event
	to   stage
}

// moves is the whole protocol. What has no row is a violation when the peer did it, and
// an error of the call when the owner did. Order does not matter.
var moves = []move{
	{parentGreeting, got(msgHello), parentDeciding},
	{parentGreeting, got(msgInquire), parentWatched},
	{parentGreeting, did(actTimeout), stageOver},

	{parentDeciding, did(actAccept), parentWarming},
	{parentDeciding, did(actRefuse), stageOver},
	{parentDeciding, did(actTimeout), stageOver},

	{parentWarming, got(msgWant), parentChoosing},
	{parentWarming, did(actRefuse), stageOver},
	{parentWarming, did(actTimeout), stageOver},

	{parentChoosing, did(actGive), parentHolding},
	{parentChoosing, did(actRefuse), stageOver},
	{parentChoosing, did(actTimeout), stageOver},

	{parentHolding, got(msgWant), parentChoosing}, // once more: listeners have come or gone
	{parentHolding, got(msgReady), parentReleasing},
	{parentHolding, did(actRefuse), stageOver},
	{parentHolding, did(actTimeout), stageOver},

	{parentReleasing, did(actRelease), parentProbation},
	{parentReleasing, did(actRefuse), stageOver},
	{parentReleasing, did(actTimeout), stageOver},

	{parentProbation, got(msgCommitted), parentCommitted},
	{parentProbation, did(actRefuse), stageOver},
	{parentProbation, did(actTimeout), stageOver}, // it hangs: take back

	{parentCommitted, did(actTimeout), parentSettled}, // the probation is over
	{parentCommitted, did(actRefuse), stageOver},

	{parentSettled, did(actReport), parentSettled},
	{parentSettled, got(msgTerminate), parentSettled}, // of no consequence

	{parentWatched, did(actReport), parentWatched},

	{childGreeting, got(msgWelcome), childLoading},
	{childGreeting, got(msgRefused), stageOver},
	{childLoading, got(msgState), childLoading},
	{childLoading, got(msgStateEnd), childWarming},
	{childWarming, did(actFetch), childFetching},
	{childFetching, got(msgSockets), childFetching},
	{childFetching, got(msgSocketsEnd), childHolding},
	{childHolding, did(actFetch), childFetching},
	{childHolding, did(actReady), childReleasing},
	{childReleasing, got(msgSockets), childReleasing}, // what came or went since
	{childReleasing, got(msgSocketsEnd), childReleasing},
	{childReleasing, got(msgState), childReleasing}, // what changed since
	{childReleasing, got(msgStateEnd), childReleasing},
	{childReleasing, got(msgReleased), childServing},
	{childServing, did(actCommit), childCommitting},
	{childCommitting, got(msgSettled), childSettled},
	{childSettled, got(msgState), childSettled}, // news, before the word that they come with
	{childSettled, got(msgStateEnd), childSettled},
	{childSettled, got(msgDrained), childSettled},
}

// next looks the row up.
func (s stage) next(e event) (stage, error) {
	for _, m := range moves {
		if m.from == s && m.on == e {
			return m.to, nil
		}
	}
	return s, fmt.Errorf("%s does not belong to the stage %q of a hand-off", e, s)
}
