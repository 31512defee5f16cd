package roles

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/hotrestart/handoff"
)

const (
	starting   = handoff.RoleStarting
	serving    = handoff.RoleServing
	handingOff = handoff.RoleHandingOff
	draining   = handoff.RoleDraining
	standby    = handoff.RoleStandby
)

// row is an event in a state, and what must become of it.
type row struct {
	why  string
	in   State
	e    Event
	then func(*State) // what becomes different; nil: nothing
	do   []Action
}

var (
	errFault = errors.New("a fault")
	newer    = handoff.Verdict{TakeOver: true, Reason: "it is newer"}
	older    = handoff.Verdict{Reason: "it is older"}
)

func becomes(role handoff.Role) func(*State) { return func(s *State) { s.Role = role } }
func isOver(s *State)                        { s.Over = true }
func looked(s *State)                        { s.Search++ }
func stopping(s *State)                      { s.Stopping = true }

// all applies one change after the other.
func all(changes ...func(*State)) func(*State) {
	return func(s *State) {
		for _, change := range changes {
			change(s)
		}
	}
}

func paused(say Do, pause time.Duration) []Action {
	return []Action{{Do: say, Pause: pause}, {Do: LookLater, Pause: pause}}
}

func refusal(how Do, code handoff.RefusalCode, reason string) []Action {
	return []Action{{Do: how, Refusal: &handoff.RefusedError{Code: code, Reason: reason}}}
}

func refused(code handoff.RefusalCode) error { return &handoff.RefusedError{Code: code} }

var startingRows = []row{
	{"nobody is there", State{Role: starting}, Event{Kind: FoundNobody}, nil, do(StartCold)},
	{"nobody is there, and it is to stop", State{Role: starting, Stopping: true}, Event{Kind: FoundNobody}, isOver, do(Finish)},
	{"it is to stop, but still drains", State{Role: starting, Stopping: true, Retiring: 1}, Event{Kind: FoundNobody}, becomes(draining), nil},
	{"an older one is there", State{Role: starting, Search: 3}, Event{Kind: FoundOlder, Search: 3}, all(looked, func(s *State) { s.taking = true }), do(TakeOver)},
	{"an older one is there, and it is to stop", State{Role: starting, Stopping: true}, Event{Kind: FoundOlder}, isOver, do(Finish)},
	{"a newer one is there", State{Role: starting}, Event{Kind: FoundNewer}, becomes(standby), do(StandBy, Follow, GiveMemoryBack)},
	{"a newer one is there, and its own drain goes on", State{Role: starting, Retiring: 2}, Event{Kind: FoundNewer}, becomes(draining), do(StandBy, Follow)},
	{"a newer one is there, and it is to stop", State{Role: starting, Stopping: true}, Event{Kind: FoundNewer}, isOver, do(Finish)},
	{"time to look", State{Role: starting, Search: 1}, Event{Kind: LookAgain, Search: 1}, looked, do(Look)},
	{"the generation before drains", State{Role: starting}, Event{Kind: PredecessorNews}, nil, do(NotePredecessor)},
	{"the generation before has drained", State{Role: starting}, Event{Kind: PredecessorNews, Done: true}, nil, do(NotePredecessor, NotePredecessorDrained)},
	{"what drained here drains on", State{Role: starting, Retiring: 1}, Event{Kind: DrainNews, Leaving: true}, nil, do(ShowDrain)},
	{"an earlier drain of two", State{Role: starting, Retiring: 2}, Event{Kind: DrainNews}, nil, nil},
	{"what drained here has ended", State{Role: starting, Retiring: 1}, Event{Kind: Retired, Leaving: true}, func(s *State) { s.Retiring = 0 }, do(EndDrain, GiveMemoryBack)},
	{"the generation before died, before this one is in force", State{Role: starting, taking: true}, Event{Kind: PredecessorDied}, func(s *State) { s.taking = false }, do(AdoptOrphanedSockets, Accept)},
	{"it died while both accept", State{Role: starting, taking: true}, Event{Kind: PredecessorDied, Accepting: true}, func(s *State) { s.taking = false }, do(AdoptOrphanedSockets)},
	{"it died, and this one is to stop", State{Role: starting, taking: true, Stopping: true}, Event{Kind: PredecessorDied, Accepting: true}, func(s *State) { s.taking, s.Over = false, true }, do(AdoptOrphanedSockets, Finish)},
	{"it died, and this one is to stop, but serves", State{Role: starting, taking: true, Stopping: true}, Event{Kind: PredecessorDied, InForce: true}, func(s *State) { s.taking = false }, do(AdoptOrphanedSockets, Accept)},
	{"in force", State{Role: starting, failures: 2, Replaced: true}, Event{Kind: InForce, Current: true}, func(s *State) { s.Role, s.failures, s.Replaced = serving, 0, false }, do(Unfollow, SettleSockets, GiveMemoryBack, UnrestrictReuseport)},
	{"in force, though it is to stop", State{Role: starting, Stopping: true}, Event{Kind: InForce, Current: true}, becomes(serving), do(Unfollow, SettleSockets, GiveMemoryBack, UnrestrictReuseport, AwaitSuccessor)},
	{"the one before came into force", State{Role: starting}, Event{Kind: InForce}, nil, nil},
	{"more is known of Envoy", State{Role: starting}, Event{Kind: Learned}, nil, nil},
	{"it took over", State{Role: starting, taking: true, failures: 1, Replaced: true}, Event{Kind: TookOver}, func(s *State) { s.Role, s.taking, s.failures, s.Replaced = serving, false, 0, false }, do(FinishTakeOver, Unfollow, SettleSockets, GiveMemoryBack)},
	{"it took over, and the one before has drained", State{Role: starting, taking: true}, Event{Kind: TookOver, PredecessorDrained: true}, func(s *State) { s.Role, s.taking = serving, false }, do(FinishTakeOver, Unfollow, SettleSockets, GiveMemoryBack, UnrestrictReuseport)},
	{"it took over, though it is to stop", State{Role: starting, taking: true, Stopping: true}, Event{Kind: TookOver}, func(s *State) { s.Role, s.taking = serving, false }, do(FinishTakeOver, Unfollow, SettleSockets, GiveMemoryBack, AwaitSuccessor)},
	{"taking over failed", State{Role: starting, taking: true}, Event{Kind: FailedToTake, Err: errFault}, func(s *State) { s.taking, s.failures, s.Search = false, 1, 1 }, paused(ReportFailed, time.Second)},
	{"it failed for the third time", State{Role: starting, taking: true, failures: 2}, Event{Kind: FailedToTake, Err: errFault}, func(s *State) { s.taking, s.failures, s.Search = false, 3, 1 }, paused(ReportFailed, 4*time.Second)},
	{"it failed again and again", State{Role: starting, taking: true, failures: 99}, Event{Kind: FailedToTake, Err: errFault}, func(s *State) { s.taking, s.failures, s.Search = false, 100, 1 }, paused(ReportFailed, 30*time.Second)},
	{"the other is busy", State{Role: starting, taking: true}, Event{Kind: FailedToTake, Err: refused(handoff.RefusedBusy)}, func(s *State) { s.taking, s.failures, s.Search = false, 1, 1 }, paused(ReportRefused, 100*time.Millisecond)},
	{"the other is busy for long", State{Role: starting, taking: true, failures: 8}, Event{Kind: FailedToTake, Err: refused(handoff.RefusedBusy)}, func(s *State) { s.taking, s.failures, s.Search = false, 9, 1 }, paused(ReportRefused, time.Second)},
	{"the other has moved on", State{Role: starting, taking: true, failures: 1}, Event{Kind: FailedToTake, Err: refused(handoff.RefusedMoved)}, func(s *State) { s.taking, s.failures, s.Search = false, 2, 1 }, paused(ReportRefused, 200*time.Millisecond)},
	{"the other refuses", State{Role: starting, taking: true, failures: 1}, Event{Kind: FailedToTake, Err: refused(handoff.RefusedOlder)}, func(s *State) { s.taking, s.failures, s.Search = false, 2, 1 }, paused(ReportRefused, 2*time.Second)},
	{"the other is gone", State{Role: starting, taking: true}, Event{Kind: FailedToTake, Err: fmt.Errorf("x: %w", handoff.ErrLost)}, func(s *State) { s.taking, s.failures, s.Search = false, 1, 1 }, do(ReportLost, Look)},
	{"it failed, and this one is to stop", State{Role: starting, taking: true, Stopping: true}, Event{Kind: FailedToTake, Err: errFault}, func(s *State) { s.taking, s.Over = false, true }, do(Finish)},
	{"it can never take over", State{Role: starting, taking: true}, Event{Kind: Hopeless, Err: errFault}, func(s *State) { s.taking, s.Over = false, true }, do(ReportHopeless, Fail)},
	{"it can never take over, but stood by", State{Role: starting, taking: true, Settled: true}, Event{Kind: Hopeless, Err: errFault}, func(s *State) { s.taking, s.failures, s.Search = false, 1, 1 }, paused(ReportFailed, time.Second)},
	{"it can never take over, but drains", State{Role: starting, taking: true, Retiring: 1}, Event{Kind: Hopeless, Err: errFault}, func(s *State) { s.taking, s.failures, s.Search = false, 1, 1 }, paused(ReportFailed, time.Second)},
	{"it can never take over, and is to stop", State{Role: starting, taking: true, Stopping: true}, Event{Kind: Hopeless, Err: errFault}, func(s *State) { s.taking, s.Over = false, true }, do(Finish)},
	{"its hook is cut off while it takes over", State{Role: starting, taking: true}, Event{Kind: HookCutOff, Err: errFault}, isOver, do(ReportCutOff, Fail)},
	{"its hook is cut off between two attempts", State{Role: starting, failures: 1}, Event{Kind: HookCutOff, Err: errFault}, isOver, do(ReportCutOff, Fail)},
	{"its hook is cut off, but it is the only one", State{Role: starting}, Event{Kind: HookCutOff, Err: errFault}, nil, nil},
	{"its hook is cut off, but it is in force", State{Role: starting, taking: true}, Event{Kind: HookCutOff, Err: errFault, InForce: true}, nil, nil},
	{"its hook is cut off, but it stood by", State{Role: starting, taking: true, Settled: true}, Event{Kind: HookCutOff, Err: errFault}, nil, nil},
	{"its hook is cut off, but it drains", State{Role: starting, taking: true, Retiring: 1}, Event{Kind: HookCutOff, Err: errFault}, nil, nil},
	{"its hook is cut off, and it is to stop", State{Role: starting, taking: true, Stopping: true}, Event{Kind: HookCutOff, Err: errFault}, nil, nil},
	{"it cannot serve", State{Role: starting}, Event{Kind: CannotServe, Err: errFault}, isOver, do(Fail)},
	{"it cannot serve beside its drain", State{Role: starting, Retiring: 1}, Event{Kind: CannotServe, Err: errFault}, looked, paused(SayRetry, time.Second)},
	{"it cannot accept", State{Role: starting, Retiring: 1}, Event{Kind: CannotServe, Err: errFault, Sidecar: true}, isOver, do(Fail)},
	{"its sidecar ended", State{Role: starting}, Event{Kind: SidecarEnded, Current: true}, isOver, do(Fail)},
	{"its sidecar ended of a fault as it is to stop", State{Role: starting, Stopping: true}, Event{Kind: SidecarEnded, Current: true, Err: errFault}, isOver, do(Fail)},
	{"one that drained ended", State{Role: starting}, Event{Kind: SidecarEnded, Err: errFault}, nil, nil},
	{"a newer one comes", State{Role: starting}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true}, nil, do(Welcome)},
	{"an older one comes", State{Role: starting}, Event{Kind: handoff.Arrived, Verdict: older, Sidecar: true}, nil, refusal(Reject, handoff.RefusedOlder, "generation me serves: it is older")},
	{"one comes before there is anything", State{Role: starting}, Event{Kind: handoff.Arrived, Verdict: newer}, looked,
		append(refusal(Reject, handoff.RefusedMoved, "generation me has nothing to hand over, and stands by"), do(Look)...)},
	{"one comes while it takes over", State{Role: starting, taking: true}, Event{Kind: handoff.Arrived, Verdict: newer}, nil, refusal(Reject, handoff.RefusedBusy, "generation me is taking over itself")},
	{"one comes, and this one uses force", State{Role: starting, Forced: true}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true}, nil, refusal(Reject, handoff.RefusedBusy, "generation me is starting with --takeover=force")},
	{"one comes with force, too", State{Role: starting, Forced: true}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true, Forced: true}, nil, do(Welcome)},
	{"it was welcomed", State{Role: starting}, Event{Kind: Welcomed}, func(s *State) { s.before, s.Role = starting, handingOff }, do(BeginHandOff)},
	{"to stop", State{Role: starting}, Event{Kind: StopAsked, Sidecar: true}, all(stopping, isOver), do(Finish)},
	{"to stop while it takes over", State{Role: starting, taking: true}, Event{Kind: StopAsked}, stopping, do(CancelTakeOver)},
	{"to stop while it drains", State{Role: starting, Retiring: 1}, Event{Kind: StopAsked}, all(stopping, becomes(draining)), nil},
	{"to stop beside its drain", State{Role: starting, Retiring: 1}, Event{Kind: StopAsked, Sidecar: true}, all(stopping, isOver), do(Finish)},
	{"to quit", State{Role: starting, taking: true}, Event{Kind: QuitAsked}, isOver, do(Finish)},
}

var servingRows = []row{
	{"more is known of Envoy", State{Role: serving}, Event{Kind: Learned}, nil, nil},
	{"the generation before drains", State{Role: serving}, Event{Kind: PredecessorNews}, nil, do(NotePredecessor)},
	{"the generation before has drained", State{Role: serving}, Event{Kind: PredecessorNews, Done: true}, nil, do(NotePredecessor, UnrestrictReuseport, NotePredecessorDrained)},
	{"what drained here drains on", State{Role: serving, Retiring: 1}, Event{Kind: DrainNews, Leaving: true}, nil, do(ShowDrain)},
	{"what drained here has ended", State{Role: serving, Retiring: 1, Stopping: true}, Event{Kind: Retired, Leaving: true}, func(s *State) { s.Retiring = 0 }, do(EndDrain, GiveMemoryBack)},
	{"a newer one comes", State{Role: serving}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true}, nil, do(Welcome)},
	{"a newer one comes to one with force", State{Role: serving, Forced: true}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true}, nil, do(Welcome)},
	{"an older one comes", State{Role: serving}, Event{Kind: handoff.Arrived, Verdict: older, Sidecar: true}, nil, refusal(Reject, handoff.RefusedOlder, "generation me serves: it is older")},
	{"an older one comes to one that is to stop", State{Role: serving, Stopping: true}, Event{Kind: handoff.Arrived, Verdict: older, Sidecar: true}, nil, do(Welcome)},
	{"one comes too late", State{Role: serving, Stopping: true, emptying: true}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true}, nil, refusal(Reject, handoff.RefusedBusy, "generation me is ending, and its sockets take nobody new")},
	{"its Envoy cannot be taken over", State{Role: serving}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true, Unfit: errFault}, nil, refusal(Reject, handoff.RefusedUnready, "generation me cannot be taken over: a fault")},
	{"it was welcomed", State{Role: serving}, Event{Kind: Welcomed}, func(s *State) { s.before, s.Role = serving, handingOff }, do(BeginHandOff)},
	{"it was welcomed in the drain of a stop", State{Role: serving, Stopping: true, drainingToStop: true}, Event{Kind: Welcomed}, func(s *State) { s.before, s.Role = serving, handingOff }, do(ReadyOn, BeginHandOff)},
	{"it cannot serve again", State{Role: serving}, Event{Kind: CannotServe, Err: errFault, Sidecar: true}, isOver, do(Fail)},
	{"its sidecar ended", State{Role: serving}, Event{Kind: SidecarEnded, Current: true, Err: errFault}, isOver, do(Fail)},
	{"its sidecar ended, as it was to stop", State{Role: serving, Stopping: true}, Event{Kind: SidecarEnded, Current: true}, isOver, do(Finish)},
	{"one that drained ended", State{Role: serving}, Event{Kind: SidecarEnded, Err: errFault}, nil, nil},
	{"to stop", State{Role: serving}, Event{Kind: StopAsked}, stopping, do(AwaitSuccessor)},
	{"to quit", State{Role: serving}, Event{Kind: QuitAsked}, isOver, do(Finish)},
	{"nobody takes over", State{Role: serving, Stopping: true}, Event{Kind: NobodyTakesOver}, func(s *State) { s.drainingToStop = true }, do(DrainToStop)},
	{"nobody takes over any more, but the newcomer may be started again", State{Role: serving, Stopping: true, orphaned: true}, Event{Kind: NobodyTakesOver}, nil, nil},
	{"drained", State{Role: serving, Stopping: true, drainingToStop: true}, Event{Kind: DrainedToStop}, func(s *State) { s.emptying = true }, do(EmptySockets)},
	{"drained, and /drain had asked before", State{Role: serving, Stopping: true, drainingToStop: true}, Event{Kind: DrainedToStop, NoDrain: true}, isOver, do(Finish)},
	{"nobody waits any more", State{Role: serving, Stopping: true, emptying: true}, Event{Kind: Emptied}, isOver, do(Finish)},
}

var handingOffRows = []row{
	{"the generation before drains", State{Role: handingOff}, Event{Kind: PredecessorNews}, nil, do(NotePredecessor)},
	{"the generation before has drained", State{Role: handingOff}, Event{Kind: PredecessorNews, Done: true}, nil, do(NotePredecessor, NotePredecessorDrained)},
	{"what drained here drains on", State{Role: handingOff, Retiring: 1}, Event{Kind: DrainNews, Leaving: true}, nil, do(ShowDrain)},
	{"what drained here has ended", State{Role: handingOff, Retiring: 1}, Event{Kind: Retired, Leaving: true}, func(s *State) { s.Retiring = 0 }, do(EndDrain, GiveMemoryBack)},
	{"a cold start comes into force", State{Role: handingOff, before: starting}, Event{Kind: InForce, Current: true}, func(s *State) { s.before, s.Settled = serving, true }, do(SettleSockets, GiveMemoryBack)},
	{"the one before came into force", State{Role: handingOff, before: starting}, Event{Kind: InForce}, nil, nil},
	{"more is known of Envoy", State{Role: handingOff}, Event{Kind: Learned}, nil, nil},
	{"a second one comes", State{Role: handingOff}, Event{Kind: handoff.Arrived, Verdict: newer, Sidecar: true}, nil, refusal(Refuse, handoff.RefusedUnready, "this generation is handing-off")},
	{"the newcomer wants the sockets", State{Role: handingOff}, Event{Kind: handoff.WantSockets, Ours: true}, nil, do(GiveSockets)},
	{"the newcomer is ready", State{Role: handingOff}, Event{Kind: handoff.Ready, Ours: true}, nil, do(ReleaseListeners)},
	{"the newcomer has settled", State{Role: handingOff, before: serving}, Event{Kind: handoff.Settled, Ours: true}, func(s *State) { s.Role, s.Replaced, s.Retiring = draining, true, 1 }, do(Retire)},
	{"it has settled in the drain of a stop", State{Role: handingOff, before: serving, Stopping: true, drainingToStop: true, drainedToStop: true, Retiring: 1}, Event{Kind: handoff.Settled, Ours: true},
		func(s *State) {
			s.Role, s.Replaced, s.Retiring, s.drainingToStop, s.drainedToStop = draining, true, 2, false, false
		}, do(CutDrain, Retire)},
	{"the newcomer failed early", State{Role: handingOff, before: serving}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, Err: errFault}, becomes(serving), do(FailHandOff, UnrestrictReuseport)},
	{"the newcomer failed late", State{Role: handingOff, before: serving}, Event{Kind: handoff.Ended, Ours: true, Err: errFault}, becomes(serving), do(FailHandOff, UnrestrictReuseport, Resume)},
	{"the newcomer of a cold start failed", State{Role: handingOff, before: starting}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, Err: errFault}, becomes(starting), do(FailHandOff, UnrestrictReuseport)},
	{"another one ended", State{Role: handingOff, before: serving}, Event{Kind: handoff.Ended, Err: errFault}, nil, nil},
	{"it failed in the drain of a stop", State{Role: handingOff, before: serving, Stopping: true, drainingToStop: true}, Event{Kind: handoff.Ended, Ours: true, Err: errFault}, becomes(serving), do(FailHandOff, UnrestrictReuseport, Resume, ReadyOff)},
	{"it failed after the drain of a stop", State{Role: handingOff, before: serving, Stopping: true, drainingToStop: true, drainedToStop: true}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, Err: errFault},
		func(s *State) { s.Role, s.emptying = serving, true }, do(FailHandOff, UnrestrictReuseport, EmptySockets)},
	{"it failed after that, and /drain had asked", State{Role: handingOff, before: serving, Stopping: true, drainingToStop: true, drainedToStop: true}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, NoDrain: true, Err: errFault},
		all(becomes(serving), isOver), do(FailHandOff, UnrestrictReuseport, Finish)},
	{"it failed, and a stop was put off for it", State{Role: handingOff, before: serving, Stopping: true}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, Err: &handoff.AbortedError{Code: handoff.AbortFailed}},
		func(s *State) { s.Role, s.orphaned = serving, true }, do(FailHandOff, UnrestrictReuseport)},
	{"it stops as well", State{Role: handingOff, before: serving, Stopping: true}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, Err: &handoff.AbortedError{Code: handoff.AbortStopping}},
		func(s *State) { s.Role, s.drainingToStop = serving, true }, do(FailHandOff, UnrestrictReuseport, DrainToStop)},
	{"it stops as well, and nothing served yet", State{Role: handingOff, before: starting, Stopping: true}, Event{Kind: handoff.Ended, Ours: true, Accepting: true, Sidecar: true, Err: &handoff.AbortedError{Code: handoff.AbortStopping}},
		all(becomes(starting), isOver), do(FailHandOff, UnrestrictReuseport, Finish)},
	{"its sidecar ended", State{Role: handingOff}, Event{Kind: SidecarEnded, Current: true, Err: errFault}, isOver, do(Fail)},
	{"to stop", State{Role: handingOff}, Event{Kind: StopAsked}, stopping, do(SayPostponed)},
	{"to quit", State{Role: handingOff}, Event{Kind: QuitAsked}, isOver, do(Finish)},
	{"the drain of a stop is over", State{Role: handingOff, drainingToStop: true}, Event{Kind: DrainedToStop}, func(s *State) { s.drainedToStop = true }, nil},
}

var drainingRows = []row{
	{"the generation before has drained", State{Role: draining}, Event{Kind: PredecessorNews, Done: true}, nil, do(NotePredecessor, NotePredecessorDrained)},
	{"connections end", State{Role: draining, Retiring: 1}, Event{Kind: DrainNews, Leaving: true}, nil, do(ShowDrain, TellNewcomer)},
	{"connections of an earlier drain end", State{Role: draining, Retiring: 2}, Event{Kind: DrainNews}, nil, nil},
	{"drained", State{Role: draining, Retiring: 1}, Event{Kind: Retired, Leaving: true, Current: true}, func(s *State) { s.Role, s.Retiring = standby, 0 }, do(TellNewcomer, EndDrain, DropSidecar, GiveMemoryBack)},
	{"drained, and it is to stop", State{Role: draining, Retiring: 1, Stopping: true}, Event{Kind: Retired, Leaving: true, Current: true}, func(s *State) { s.Over, s.Retiring = true, 0 }, do(TellNewcomer, EndDrain, DropSidecar, GiveMemoryBack, Finish)},
	{"one drain of two is over", State{Role: draining, Retiring: 2, Stopping: true}, Event{Kind: Retired}, func(s *State) { s.Retiring = 1 }, do(EndDrain, GiveMemoryBack)},
	{"the successor serves", State{Role: draining}, Event{Kind: PeerServes}, nil, do(NoteServes)},
	{"the successor leaves", State{Role: draining, Retiring: 1}, Event{Kind: PeerLeaves}, all(looked, func(s *State) { s.Role, s.taking = starting, true }), do(DropSidecar, TakeOver)},
	{"the successor leaves, and so does this one", State{Role: draining, Stopping: true}, Event{Kind: PeerLeaves}, nil, nil},
	{"the successor is gone", State{Role: draining}, Event{Kind: PeerGone}, looked, do(Look)},
	{"time to look", State{Role: draining, Search: 4}, Event{Kind: LookAgain, Search: 4}, looked, do(Look)},
	{"nobody serves", State{Role: draining, Retiring: 1}, Event{Kind: FoundNobody}, all(looked, becomes(starting)), do(Promote, DropSidecar, Show, Look)},
	{"nobody serves, and it is to stop", State{Role: draining, Stopping: true}, Event{Kind: FoundNobody}, nil, nil},
	{"an older one serves", State{Role: draining}, Event{Kind: FoundOlder}, nil, do(Follow)},
	{"a newer one serves", State{Role: draining}, Event{Kind: FoundNewer}, nil, do(Follow)},
	{"the newcomer ended", State{Role: draining}, Event{Kind: handoff.Ended, Ours: true}, nil, do(ForgetNewcomer)},
	{"one that was refused ended", State{Role: draining}, Event{Kind: handoff.Ended}, nil, nil},
	{"one comes", State{Role: draining}, Event{Kind: handoff.Arrived, Verdict: newer}, nil, refusal(Refuse, handoff.RefusedMoved, "generation me serves no more")},
	{"to stop", State{Role: draining}, Event{Kind: StopAsked}, stopping, nil},
	{"to stop without a drain", State{Role: draining}, Event{Kind: StopAsked, NoDrain: true}, stopping, do(HurryDrains)},
	{"to quit", State{Role: draining}, Event{Kind: QuitAsked}, isOver, do(Finish)},
}

var standbyRows = []row{
	{"the generation before has drained", State{Role: standby}, Event{Kind: PredecessorNews, Done: true}, nil, do(NotePredecessor, NotePredecessorDrained)},
	{"the followed one serves", State{Role: standby}, Event{Kind: PeerServes}, nil, do(NoteServes)},
	{"the followed one leaves", State{Role: standby}, Event{Kind: PeerLeaves}, all(looked, func(s *State) { s.Role, s.taking = starting, true }), do(DropSidecar, TakeOver)},
	{"the followed one leaves, and so does this one", State{Role: standby, Stopping: true}, Event{Kind: PeerLeaves}, nil, nil},
	{"the followed one is gone", State{Role: standby}, Event{Kind: PeerGone}, all(looked, becomes(starting)), do(StepIn, Show, Look)},
	{"time to look", State{Role: standby}, Event{Kind: LookAgain}, looked, do(Look)},
	{"nobody serves", State{Role: standby}, Event{Kind: FoundNobody}, all(looked, becomes(starting)), do(Promote, DropSidecar, Show, Look)},
	{"an older one serves", State{Role: standby}, Event{Kind: FoundOlder}, nil, do(Follow)},
	{"a newer one serves", State{Role: standby}, Event{Kind: FoundNewer}, nil, do(Follow)},
	{"the newcomer ended", State{Role: standby}, Event{Kind: handoff.Ended, Ours: true}, nil, do(ForgetNewcomer)},
	{"one comes", State{Role: standby}, Event{Kind: handoff.Arrived, Verdict: newer}, nil, refusal(Refuse, handoff.RefusedMoved, "generation me serves no more")},
	{"to stop", State{Role: standby}, Event{Kind: StopAsked}, isOver, do(Finish)},
	{"to quit", State{Role: standby}, Event{Kind: QuitAsked}, isOver, do(Finish)},
}

// ofNoConsequence says why an event has no row in a role.
var ofNoConsequence = map[handoff.Role]map[Kind]string{
	starting: {
		PeerServes: "nobody is followed while this one looks for itself", PeerLeaves: "a look finds it", PeerGone: "nobody is followed",
		DrainedToStop: "only what serves drains to stop", Emptied: "so does what empties its sockets", NobodyTakesOver: "only what serves waits for a successor",
		handoff.WantSockets: "a welcomed newcomer makes it handing-off", handoff.Ready: "so does one that is ready", handoff.Settled: "and one that settles",
		handoff.Ended: "of one that was refused",
	},
	serving: {
		FoundNobody: "it looks for nobody", FoundOlder: "it looks for nobody", FoundNewer: "a newer one comes by itself", LookAgain: "it looks for nobody",
		PeerServes: "it follows nobody", PeerLeaves: "it follows nobody", PeerGone: "it follows nobody",
		InForce:         "the take-over that is done was in force before",
		PredecessorDied: "there is no attempt", TookOver: "there is no attempt", FailedToTake: "there is no attempt", Hopeless: "there is no attempt", HookCutOff: "it was ready once",
		handoff.WantSockets: "a welcomed newcomer makes it handing-off", handoff.Ready: "so does one that is ready", handoff.Settled: "and one that settles",
		handoff.Ended: "of one that was refused, or died long after it took over",
	},
	handingOff: {
		FoundNobody: "it looks for nobody", FoundOlder: "it looks for nobody", FoundNewer: "it looks for nobody", LookAgain: "it looks for nobody",
		PeerServes: "it follows nobody", PeerLeaves: "it follows nobody", PeerGone: "it follows nobody",
		PredecessorDied: "there is no attempt", TookOver: "there is no attempt", FailedToTake: "there is no attempt", Hopeless: "there is no attempt", HookCutOff: "it was ready once",
		Welcomed: "it was", CannotServe: "it does",
		NobodyTakesOver: "somebody does: the newcomer", Emptied: "what empties its sockets welcomes nobody",
	},
	draining: {
		InForce: "too late", Learned: "the sockets are the successor's", SidecarEnded: "which Retired says", DrainedToStop: "the drain goes on, and stops the agent",
		PredecessorDied: "there is no attempt", TookOver: "there is no attempt", FailedToTake: "there is no attempt", Hopeless: "there is no attempt", HookCutOff: "it was ready once",
		handoff.WantSockets: "it has them all", handoff.Ready: "it was", handoff.Settled: "it has",
		Welcomed: "newcomers are sent on", CannotServe: "it need not",
		NobodyTakesOver: "somebody did", Emptied: "what empties its sockets hands them to nobody",
	},
	standby: {
		InForce: "of what drained", Learned: "of what drained", SidecarEnded: "of what drained", DrainedToStop: "of what drained", Emptied: "of what drained", Retired: "only a drain makes it a standby again", DrainNews: "there is no drain",
		PredecessorDied: "there is no attempt", TookOver: "there is no attempt", FailedToTake: "there is no attempt", Hopeless: "there is no attempt", HookCutOff: "it was ready once",
		handoff.WantSockets: "newcomers are sent on", handoff.Ready: "newcomers are sent on", handoff.Settled: "newcomers are sent on",
		Welcomed: "newcomers are sent on", CannotServe: "it need not", NobodyTakesOver: "a stop ends it at once",
	},
}

func rows() map[handoff.Role][]row {
	return map[handoff.Role][]row{starting: startingRows, serving: servingRows, handingOff: handingOffRows, draining: drainingRows, standby: standbyRows}
}

// everyKind are all that can happen.
func everyKind() (every []Kind) {
	for k := range kinds {
		every = append(every, own(k))
	}
	for _, k := range []handoff.EventKind{handoff.Arrived, handoff.WantSockets, handoff.Ready, handoff.Settled, handoff.Ended} {
		every = append(every, k)
	}
	return every
}

func TestRows(t *testing.T) {
	for role, rows := range rows() {
		for _, r := range rows {
			r.in.ID = "me"
			want := r.in
			if r.then != nil {
				r.then(&want)
			}
			want.Settled = want.Settled || want.Role == serving || want.Role == standby
			got, actions, known := r.in.On(r.e)
			if !known || r.in.Role != role {
				t.Errorf("%s, %s (%s): known: %v, as %s", role, r.e.Kind, r.why, known, r.in.Role)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(State{})); diff != "" {
				t.Errorf("%s, %s (%s): the state is another one than wanted (-):\n%s", role, r.e.Kind, r.why, diff)
			}
			if diff := cmp.Diff(r.do, actions); diff != "" && len(r.do)+len(actions) > 0 {
				t.Errorf("%s, %s (%s): the actions are others than wanted (-):\n%s", role, r.e.Kind, r.why, diff)
			}
		}
	}
}

func TestEveryEventHasRowsOrAReason(t *testing.T) {
	if len(table) != len(rows()) || len(table) != len(ofNoConsequence) {
		t.Fatalf("%d roles, %d have rows, %d have reasons", len(table), len(rows()), len(ofNoConsequence))
	}
	for role := range table {
		tested := map[Kind]bool{}
		for _, r := range rows()[role] {
			tested[r.e.Kind] = true
		}
		for _, kind := range everyKind() {
			_, known := table[role][kind]
			if reason := ofNoConsequence[role][kind]; known == (reason != "") || known != tested[kind] {
				t.Errorf("%s, %s: a rule: %v, rows here: %v, a reason for none: %q", role, kind, known, tested[kind], reason)
			}
			before := State{ID: "me", Role: role, Search: 7}
			late := Event{Kind: kind, Search: 6}
			if got, actions, known := before.On(late); known || got != before || len(actions) > 0 {
				t.Errorf("%s, %s of a look before: it does %v, and is %+v", role, kind, actions, got)
			}
			if known {
				continue
			}
			if got, actions, known := before.On(Event{Kind: kind}); known || got != before || len(actions) > 0 {
				t.Errorf("%s, %s: it does %v, and is %+v", role, kind, actions, got)
			}
			if kind.String() == "" {
				t.Errorf("%#v has no name", kind)
			}
		}
	}
}
