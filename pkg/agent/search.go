package agent

import (
	"cmp"
	"context"
	"slices"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
)

// look finds out who else there is.
func (a *Agent) look() {
	a.unfollow()
	search, replaced := a.loop.Search, a.loop.Replaced
	a.spawn(func(ctx context.Context) (event, bool) {
		e := a.survey(ctx, replaced)
		e.search = search
		return e, true
	})
}

// lookLater looks after a pause.
func (a *Agent) lookLater(pause time.Duration) {
	search := a.loop.Search
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-ctx.Done():
			return event{}, false
		case <-time.After(pause):
			return event{kind: roles.LookAgain, search: search}, true
		}
	})
}

// survey asks every other generation for its role and compares itself with the foremost of those
// that serve or are about to. One that does not answer counts as dead; if it lives, it has its
// ports, and this generation fails to bind them.
func (a *Agent) survey(ctx context.Context, replaced bool) event {
	if a.dir == nil {
		return event{kind: roles.FoundNobody}
	}
	neighbours, err := a.dir.Look(ctx)
	if err != nil {
		a.log.Warn("the hand-off directory cannot be read: this generation believes to be alone", "err", err)
	}
	live := slices.DeleteFunc(neighbours, func(n handoff.Neighbour) bool {
		if n.Err != nil {
			a.log.Warn("a generation does not answer and is taken for dead", "generation", n.ID, "err", n.Err)
		}
		return n.Err != nil || importance(n.Report.Role) == 0
	})
	if len(live) == 0 {
		return event{kind: roles.FoundNobody}
	}
	first := slices.MaxFunc(live, func(x, y handoff.Neighbour) int {
		if by := cmp.Compare(importance(x.Report.Role), importance(y.Report.Role)); by != 0 {
			return by
		}
		if handoff.Newer(x.Report.Identity, y.Report.Identity).TakeOver {
			return 1
		}
		return -1
	}).Report
	verdict := handoff.Newer(a.me, first.Identity)
	if verdict.Warning != "" {
		a.log.Warn(verdict.Warning)
	}
	switch {
	case first.Leaving && serves(first.Role):
		return event{kind: roles.FoundOlder, peer: first.Identity, reason: "it was asked to stop"}
	case first.Role == handoff.RoleStarting && first.Identity.Force && !a.me.Force:
		return event{kind: roles.FoundNewer, peer: first.Identity, reason: "it starts with --takeover=force"}
	case replaced && first.Role != handoff.RoleStarting, !verdict.TakeOver:
		return event{kind: roles.FoundNewer, peer: first.Identity, reason: verdict.Reason}
	}
	return event{kind: roles.FoundOlder, peer: first.Identity, reason: verdict.Reason}
}

// importance orders roles by how near they are to serving; 0: they do not serve while somebody
// else does.
func importance(r handoff.Role) int {
	switch r {
	case handoff.RoleServing, handoff.RoleHandingOff:
		return 2
	case handoff.RoleStarting:
		return 1
	}
	return 0
}

// serves tells whether a generation in that role does.
func serves(r handoff.Role) bool { return importance(r) == importance(handoff.RoleServing) }

// followSuccessor reports when the generation serves, and when it is gone or serves no more.
func (a *Agent) followSuccessor(id string) {
	a.unfollow()
	ctx, cancel := context.WithCancel(a.loop.ctx)
	f := &follower{cancel: cancel}
	a.loop.follow = f
	f.done.Go(func() {
		watch, err := a.dir.Watch(ctx, id)
		if err != nil {
			a.log.Debug("the generation that serves cannot be followed", "generation", id, "err", err)
			a.report(ctx, event{kind: roles.PeerGone, err: err})
			return
		}
		defer watch.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case r, ok := <-watch.Reports():
				switch {
				case !ok:
					a.report(ctx, event{kind: roles.PeerGone, err: watch.Err()})
					return
				case r.Leaving && serves(r.Role):
					a.report(ctx, event{kind: roles.PeerLeaves, peer: r.Identity, reason: "it was asked to stop"})
				case serves(r.Role):
					a.report(ctx, event{kind: roles.PeerServes})
				case importance(r.Role) == 0:
					a.report(ctx, event{kind: roles.PeerGone})
					return
				}
			}
		}
	})
}

// unfollow follows nobody any more.
func (a *Agent) unfollow() {
	if f := a.loop.follow; f != nil {
		f.cancel()
		f.done.Wait()
		a.loop.follow = nil
	}
}

func (a *Agent) followFound(e event) {
	a.update(func(s *shown) { s.successor, s.successorServes = e.peer.ID, false })
	a.followSuccessor(e.peer.ID)
}

func (a *Agent) sayStandBy(e event) {
	a.log.Info("standing by", "for", e.peer.ID, "because", e.reason)
}

func (a *Agent) sayStepIn(e event) {
	a.log.Info("the generation that served is gone, or serves no more", "err", e.err)
	a.update(func(s *shown) { s.successorServes = false })
}

func (a *Agent) sayPromoted(event) {
	a.log.Warn("nobody serves: this generation starts again")
	a.update(func(s *shown) { s.successorServes = false })
}
