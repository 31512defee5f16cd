package agent

import (
	"context"
	"fmt"
	"net/http"

	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
)

// startCold binds everything and serves.
func (a *Agent) startCold() error {
	s, err := a.newSidecar(nil)
	if err != nil {
		return err
	}
	a.adopt(s)
	s.Start()
	a.watch(s)
	return s.Accept()
}

// newSidecar makes the next one, which starts nothing yet.
func (a *Agent) newSidecar(inherited *sidecar.Inheritance) (*sidecar.Sidecar, error) {
	id := a.me.ID
	if n := a.lives.Add(1); n > 1 {
		id = fmt.Sprintf("%s-%d", a.me.ID, n)
	}
	world := sidecar.World{
		Version: a.world.Version,
		Environ: a.world.Environ, Stdout: a.world.Stdout, Stderr: a.world.Stderr, DataDir: a.world.dataDir,
		FileLimit: a.world.FileLimit, Started: a.world.Started, GiveBack: a.world.Settled, Log: a.world.Log,
	}
	return sidecar.New(a.cfg, world, id, sidecar.Hooks{
		Samples: a.upgradeSamples, Quit: a.quitAtOnce, Drain: a.drainEnvoy, Upgrade: newUpgradePage(a.upgradeStatus),
		Overview: http.HandlerFunc(a.overviewPage), OverviewJSON: http.HandlerFunc(a.overviewJSON),
		Learned: func() { a.report(a.loop.ctx, event{kind: roles.Learned}) },
	}, inherited)
}

// watch reports when s is in force, and when it ends.
func (a *Agent) watch(s *sidecar.Sidecar) {
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-s.InForce():
			return event{kind: roles.InForce, sidecar: s}, true
		case <-s.Done():
		case <-ctx.Done():
		}
		return event{}, false
	})
	a.spawn(func(ctx context.Context) (event, bool) {
		select {
		case <-s.Done():
			return event{kind: roles.SidecarEnded, sidecar: s, err: s.Err()}, true
		case <-ctx.Done():
			return event{}, false
		}
	})
}

// adopt makes s the agent's, and shows it; nil: it has none.
func (a *Agent) adopt(s *sidecar.Sidecar) {
	a.loop.sidecar = s
	a.update(func(shown *shown) {
		if shown.sidecar = s; s != nil {
			shown.requests = nil
		}
	})
}
