package agent

import (
	"context"
	"fmt"

	"understudy.mesh/pkg/agent/internal/roles"
)

// startCold binds everything and serves.
func (a *Agent) startCold() error {
	s, err := a.newSidecar(nil)
	if err != nil {
		return err
	}
	a.adopt(s)
	s.start()
	a.watch(s)
	return s.accept()
}

func (a *Agent) newSidecar(inherited *inheritance) (*sidecar, error) {
	id := a.me.ID
	if n := a.lives.Add(1); n > 1 {
		id = fmt.Sprintf("%s-%d", a.me.ID, n)
	}
	return newSidecar(a.cfg, a.world, id, hooks{
		samples: a.upgradeSamples, quit: a.Quit, drain: a.Drain,
		learned: func() { a.report(a.loop.ctx, event{kind: roles.Learned}) },
	}, inherited)
}

// watch reports when s is in force, and when it ends.
func (a *Agent) watch(s *sidecar) {
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-s.inForce:
			return event{kind: roles.InForce, sidecar: s}, true
		case <-s.done:
		case <-ctx.Done():
		}
		return event{}, false
	})
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-s.done:
			return event{kind: roles.SidecarEnded, sidecar: s, err: s.err}, true
		case <-ctx.Done():
			return event{}, false
		}
	})
}
