package agent

import (
	"log/slog"
	"slices"
	"testing"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
)

// bareAgent has a loop that nobody runs.
func bareAgent(t *testing.T, role handoff.Role) *Agent {
	a := &Agent{
		cfg: &config.Config{}, world: World{Settled: func() {}}, log: slog.New(slog.DiscardHandler), me: handoff.Identity{ID: "me"},
		events: make(chan event, eventQueue), noDrain: make(chan struct{}), quit: make(chan struct{}), told: make(chan struct{}),
	}
	a.loop.ctx, a.loop.Role = t.Context(), role
	a.shown.role = role
	return a
}

// bareSockets are those of an agent in no pod.
func bareSockets(t *testing.T) *sockets.Set {
	t.Helper()
	cfg := newPod(t).cfg
	s, err := sockets.New(&cfg, nil, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestLateEvents: what concerns a search or a sidecar of before changes nothing.
func TestLateEvents(t *testing.T) {
	before, now := &sidecar.Sidecar{}, &sidecar.Sidecar{}
	for name, tc := range map[string]struct {
		role handoff.Role
		late event
	}{
		"a search that was superseded found nobody": {handoff.RoleStarting, event{kind: roles.FoundNobody, search: 1}},
		"one found an older generation":             {handoff.RoleStarting, event{kind: roles.FoundOlder, search: 1}},
		"one found a newer generation":              {handoff.RoleStarting, event{kind: roles.FoundNewer, search: 1}},
		"one wanted to look":                        {handoff.RoleStarting, event{kind: roles.LookAgain, search: 1}},
		"the one before came into force":            {handoff.RoleStarting, event{kind: roles.InForce, sidecar: before}},
		"it did while this one hands off":           {handoff.RoleHandingOff, event{kind: roles.InForce, sidecar: before}},
		"the one before ended":                      {handoff.RoleServing, event{kind: roles.SidecarEnded, sidecar: before}},
		"it counts its connections":                 {handoff.RoleDraining, event{kind: roles.DrainNews, sidecar: before, drained: handoff.Drained{Left: 3}}},
	} {
		t.Run(name, func(t *testing.T) {
			a := bareAgent(t, tc.role)
			a.loop.Search, a.loop.sidecar, a.loop.drains.leaving = 2, now, now
			a.handle(tc.late)
			a.loop.children.Wait()
			l := &a.loop
			if l.Role != tc.role || l.Over || l.sidecar != now || l.Search != 2 || l.follow != nil || l.taking != nil || a.shown.left != 0 {
				t.Errorf("it is %s, over: %v, with search %d", l.Role, l.Over, l.Search)
			}
		})
	}
}

// TestPredecessorsDrainIsNotedInEveryRole: `wait --for=drained` depends on it.
func TestPredecessorsDrainIsNotedInEveryRole(t *testing.T) {
	for _, role := range []handoff.Role{handoff.RoleStarting, handoff.RoleServing, handoff.RoleHandingOff, handoff.RoleDraining, handoff.RoleStandby} {
		a := bareAgent(t, role)
		a.loop.sidecar = &sidecar.Sidecar{Sockets: bareSockets(t)}
		a.handle(event{kind: roles.PredecessorNews, drained: handoff.Drained{Done: true}})
		if a.shown.predecessor == nil || !a.shown.predecessor.Done {
			t.Errorf("%s: the news is lost", role)
		}
	}
}

// TestServesAlthoughAskedToStop: the role is entered, before a successor is looked for.
func TestServesAlthoughAskedToStop(t *testing.T) {
	a := bareAgent(t, handoff.RoleStarting)
	log := &roleLog{Handler: slog.DiscardHandler}
	a.log = slog.New(log)
	s := &sidecar.Sidecar{Sockets: bareSockets(t)}
	a.loop.sidecar, a.loop.Stopping = s, true
	a.handle(event{kind: roles.InForce, sidecar: s})
	a.loop.children.Wait()
	if want := []handoff.Role{handoff.RoleServing}; !slices.Equal(log.roles, want) || a.shown.role != want[0] || a.shown.since.IsZero() {
		t.Errorf("logged %q, shown as %q since %v; want %q", log.roles, a.shown.role, a.shown.since, want)
	}
	if e := <-a.events; e.kind != roles.NobodyTakesOver {
		t.Errorf("%s, want to have looked for a successor", e.kind)
	}
}

// TestNobodyServesIsNeverLost: the drain of a generation may end while it looks.
func TestNobodyServesIsNeverLost(t *testing.T) {
	for _, role := range []handoff.Role{handoff.RoleDraining, handoff.RoleStandby} {
		a := bareAgent(t, role)
		a.loop.Search = 1
		a.handle(event{kind: roles.FoundNobody, search: 1})
		if a.loop.Role != handoff.RoleStarting {
			t.Errorf("%s: it is %s, want it to come forward", role, a.loop.Role)
		}
		a.loop.children.Wait()
		if e := <-a.events; e.kind != roles.FoundNobody || e.search != a.loop.Search {
			t.Errorf("%s: it found %s, want to have looked again", role, e.kind)
		}
	}
}
