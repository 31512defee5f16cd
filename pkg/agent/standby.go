package agent

import (
	"cmp"
	"context"
	"sync"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/envoy"
)

// follower watches the generation that serves instead of this one.
type follower struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (f *follower) close() {
	f.cancel()
	f.done.Wait()
}

// followSuccessor reports when the generation serves, and when it is gone or serves no more.
func (a *Agent) followSuccessor(id string) {
	if a.loop.follow != nil {
		a.loop.follow.close()
	}
	ctx, cancel := context.WithCancel(a.loop.ctx)
	f := &follower{cancel: cancel}
	a.loop.follow = f
	f.done.Go(func() {
		watch, err := a.dir.Watch(ctx, id)
		if err != nil {
			a.log.Debug("the generation that serves cannot be followed", "generation", id, "err", err)
			a.report(ctx, event{kind: peerGone, err: err})
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
					a.report(ctx, event{kind: peerGone, err: watch.Err()})
					return
				case r.Leaving && serves(r.Role):
					a.report(ctx, event{kind: peerLeaves, peer: r.Identity, reason: "it was asked to stop"})
				case serves(r.Role):
					a.report(ctx, event{kind: peerServes})
				case importance(r.Role) == 0:
					a.report(ctx, event{kind: peerGone})
					return
				}
			}
		}
	})
}

// standBy: a newer generation serves, or is about to.
func (a *Agent) standBy(e event) hotrestart.Role {
	if a.loop.stopping {
		return a.stopStarting(e)
	}
	a.log.Info("standing by", "for", e.peer.ID, "because", e.reason)
	a.shownSuccessor(e.peer.ID, false)
	a.followSuccessor(e.peer.ID)
	if a.loop.retiring > 0 {
		return hotrestart.RoleDraining
	}
	a.world.Settled()
	return hotrestart.RoleStandby
}

// followFound is standBy for a generation that drains, or stands by already.
func (a *Agent) followFound(e event) hotrestart.Role {
	a.shownSuccessor(e.peer.ID, false)
	a.followSuccessor(e.peer.ID)
	return a.stay()
}

func (a *Agent) noteSuccessor(event) hotrestart.Role {
	a.shownSuccessor("", true)
	return a.stay()
}

// relieve: the generation for which this one stood by was asked to stop. It lets itself be
// taken over as long as it drains.
func (a *Agent) relieve(e event) hotrestart.Role {
	if a.loop.stopping {
		return a.stay()
	}
	a.adopt(nil) // what drains here goes on by itself
	a.takeOver(e)
	return hotrestart.RoleStarting
}

// comeBack: the generation for which this one stood by is gone.
func (a *Agent) comeBack(e event) hotrestart.Role {
	a.log.Info("the generation that served is gone, or serves no more", "err", e.err)
	a.shownSuccessor("", false)
	a.enter(hotrestart.RoleStarting) // before it looks, see comeForward
	return a.look(e)
}

// comeForward: nobody serves. This generation will, says so, and looks once more: of
// several that come forward at once, all but one see a newer one then. What drains here
// goes on draining.
func (a *Agent) comeForward(e event) hotrestart.Role {
	if a.loop.stopping {
		return a.stay()
	}
	a.log.Warn("nobody serves: this generation starts again")
	a.shownSuccessor("", false)
	a.adopt(nil)
	a.enter(hotrestart.RoleStarting)
	return a.look(e)
}

// sendOn: this generation serves no more; another does.
func (a *Agent) sendOn(e event) hotrestart.Role {
	a.warnUnlessLost(e.newcomer.Refuse(hotrestart.RefusedMoved, "generation "+a.me.ID+" serves no more"))
	return a.stay()
}

// tellDrain passes on how many connections are left.
func (a *Agent) tellDrain(e event) hotrestart.Role {
	if e.sidecar != a.loop.leaving {
		return a.stay()
	}
	a.mu.Lock()
	a.shown.left = e.drained.Left
	a.mu.Unlock()
	a.tellNewcomer(e.drained, e.counters)
	return a.stay()
}

// tellNewcomer passes on how the drain goes, and what Envoy counted since the last word.
func (a *Agent) tellNewcomer(d hotrestart.Drained, counters *envoy.Counters) {
	if a.loop.newcomer == nil || a.loop.role != hotrestart.RoleDraining {
		return
	}
	var news hotrestart.State
	grown := a.loop.counted.Delta(counters)
	if grown != nil {
		news = a.fit(hotrestart.State{stateStats: grown})
	}
	if err := a.loop.newcomer.Drained(d, news); err != nil {
		a.warnUnlessLost(err)
		return
	}
	a.loop.counted = cmp.Or(counters, a.loop.counted)
}

// hurryDrain: whoever took over wants the drain to end now.
func (a *Agent) hurryDrain(event) hotrestart.Role {
	if a.loop.hurry != nil {
		a.loop.hurry()
	}
	return a.stay()
}

// drainThenStop: connections end by themselves, by --upgradeDrainDuration, or by SIGKILL.
func (a *Agent) drainThenStop(event) hotrestart.Role {
	a.loop.stopping = true
	if isClosed(a.noDrain) && a.loop.hurry != nil {
		a.loop.hurry()
	}
	return a.stay()
}

// endRetirement: an old Envoy has exited, and nothing is left of it.
func (a *Agent) endRetirement(e event) hotrestart.Role {
	a.loop.retiring--
	if e.sidecar == a.loop.leaving {
		a.tellNewcomer(hotrestart.Drained{Done: true}, e.counters)
		a.loop.leaving = nil
		if a.loop.role != hotrestart.RoleHandingOff {
			a.loop.counted = nil
		}
		a.mu.Lock()
		a.shown.left = 0
		a.mu.Unlock()
	}
	if e.sidecar == a.loop.sidecar {
		a.adopt(nil)
	}
	a.world.Settled()
	if a.loop.retiring > 0 {
		return a.stay()
	}
	a.loop.hurry = nil
	switch {
	case a.loop.role != hotrestart.RoleDraining:
		return a.stay() // it serves again, or is about to
	case a.loop.stopping:
		return a.finish(e)
	}
	return hotrestart.RoleStandby
}

func (a *Agent) forgetNewcomer(e event) hotrestart.Role {
	if e.newcomer == a.loop.newcomer {
		a.loop.newcomer = nil
	}
	return a.stay()
}

// followDrain reports how the drain of the generation before goes, until it has ended.
// What the Envoy before went on to count goes to s.
func (a *Agent) followDrain(client *hotrestart.Client, s *sidecar) {
	a.setPredecessor(&hotrestart.Drained{})
	a.spawn(func(ctx context.Context) (event, bool) {
		defer client.Close()
		for {
			d, news, err := client.Next(ctx)
			if err != nil {
				d = hotrestart.Drained{Done: true} // it ended
			}
			if data, ok := news[stateStats]; ok {
				s.stats.Add(data, s.log)
			}
			if d.Done {
				return event{kind: predecessor, drained: d}, true
			}
			a.report(ctx, event{kind: predecessor, drained: d})
		}
	})
}

// predecessorDrained tells whether a generation before this one has drained already.
func (a *Agent) predecessorDrained() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shown.predecessor != nil && a.shown.predecessor.Done
}

func (a *Agent) notePredecessor(e event) hotrestart.Role {
	a.setPredecessor(&e.drained)
	if e.drained.Done {
		if a.loop.role == hotrestart.RoleServing { // else it is the successor who narrowed
			a.loop.sidecar.sockets.UnrestrictReuseport()
		}
		a.log.Info("the generation before has drained")
	}
	return a.stay()
}
