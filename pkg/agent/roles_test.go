package agent

import (
	"log/slog"
	"slices"
	"testing"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/agent/internal/sockets"
)

// ofNoConsequence says why an event has no row in a role.
var ofNoConsequence = map[hotrestart.Role]map[eventKind]string{
	hotrestart.RoleStarting: {
		peerServes: "nobody is followed while this one looks for itself", peerLeaves: "a look finds it", peerGone: "nobody is followed",
		drainedToStop: "only what serves drains to stop", emptied: "so does what empties its sockets", nobodyStarts: "only what serves waits for an heir",
		wantsSockets: "a welcomed newcomer makes it handing-off", isReady: "so does one that is ready", settledIn: "and one that settles",
		terminates: "its word ends with its connection", handoffEnded: "of one that was refused",
	},
	hotrestart.RoleServing: {
		foundNobody: "it looks for nobody", foundOlder: "it looks for nobody", foundNewer: "a newer one comes by itself", lookAgain: "it looks for nobody",
		peerServes: "it follows nobody", peerLeaves: "it follows nobody", peerGone: "it follows nobody",
		inForce:   "the take-over that is done was in force before",
		wentAlone: "there is no attempt", tookOver: "there is no attempt", failedToTake: "there is no attempt",
		wantsSockets: "a welcomed newcomer makes it handing-off", isReady: "so does one that is ready", settledIn: "and one that settles",
		terminates: "of a drain that is over", handoffEnded: "of one that was refused, or died long after it took over",
	},
	hotrestart.RoleHandingOff: {
		foundNobody: "it looks for nobody", foundOlder: "it looks for nobody", foundNewer: "it looks for nobody", lookAgain: "it looks for nobody",
		peerServes: "it follows nobody", peerLeaves: "it follows nobody", peerGone: "it follows nobody",
		wentAlone: "there is no attempt", tookOver: "there is no attempt", failedToTake: "there is no attempt",
		arrived: "the server refuses a second one; decline does what comes through", terminates: "nothing drains for this newcomer",
		nobodyStarts: "somebody does: the newcomer", emptied: "what empties its sockets welcomes nobody",
	},
	hotrestart.RoleDraining: {
		inForce: "too late", learned: "the sockets are the successor's", sidecarEnded: "which retired says", drainedToStop: "the drain goes on, and stops the agent",
		wentAlone: "there is no attempt", tookOver: "there is no attempt", failedToTake: "there is no attempt",
		wantsSockets: "it has them all", isReady: "it was", settledIn: "it has",
		nobodyStarts: "somebody did", emptied: "what empties its sockets hands them to nobody",
	},
	hotrestart.RoleStandby: {
		inForce: "of what drained", learned: "of what drained", sidecarEnded: "of what drained", drainedToStop: "of what drained", emptied: "of what drained", retired: "only a drain makes it a standby again", draining: "there is no drain",
		wentAlone: "there is no attempt", tookOver: "there is no attempt", failedToTake: "there is no attempt",
		wantsSockets: "newcomers are sent on", isReady: "newcomers are sent on", settledIn: "newcomers are sent on", terminates: "there is no drain",
		nobodyStarts: "a stop ends it at once",
	},
}

func TestEveryEventHasARowOrAReason(t *testing.T) {
	if len(roles) != len(ofNoConsequence) {
		t.Fatalf("%d roles have rows, %d have reasons", len(roles), len(ofNoConsequence))
	}
	for role, rows := range roles {
		for kind := foundNobody; kind <= nobodyStarts; kind++ {
			if kind.String() == "" {
				t.Errorf("event %d has no name", kind)
			}
			reason := ofNoConsequence[role][kind]
			if _, ok := rows[kind]; ok == (reason != "") {
				t.Errorf("%s, %s: a row: %v, a reason: %q; want one of the two", role, kind, ok, reason)
			}
		}
	}
}

// bareAgent has a loop that nobody runs.
func bareAgent(t *testing.T, role hotrestart.Role) *Agent {
	a := &Agent{
		world: World{Settled: func() {}}, log: slog.New(slog.DiscardHandler), me: hotrestart.Identity{ID: "me"},
		events: make(chan event, eventQueue), noDrain: make(chan struct{}),
	}
	a.loop.ctx, a.loop.role = t.Context(), role
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
	before, now := &sidecar{}, &sidecar{}
	for name, tc := range map[string]struct {
		role hotrestart.Role
		late event
	}{
		"a search that was superseded found nobody": {hotrestart.RoleStarting, event{kind: foundNobody, search: 1}},
		"one found an older generation":             {hotrestart.RoleStarting, event{kind: foundOlder, search: 1}},
		"one found a newer generation":              {hotrestart.RoleStarting, event{kind: foundNewer, search: 1}},
		"one wanted to look":                        {hotrestart.RoleStarting, event{kind: lookAgain, search: 1}},
		"the one before came into force":            {hotrestart.RoleStarting, event{kind: inForce, sidecar: before}},
		"it did while this one hands off":           {hotrestart.RoleHandingOff, event{kind: inForce, sidecar: before}},
		"the one before ended":                      {hotrestart.RoleServing, event{kind: sidecarEnded, sidecar: before}},
		"it counts its connections":                 {hotrestart.RoleDraining, event{kind: draining, sidecar: before, drained: hotrestart.Drained{Left: 3}}},
	} {
		t.Run(name, func(t *testing.T) {
			a := bareAgent(t, tc.role)
			a.loop.search, a.loop.sidecar, a.loop.leaving = 2, now, now
			a.handle(tc.late)
			a.loop.children.Wait()
			l := &a.loop
			if l.role != tc.role || l.over || l.sidecar != now || l.search != 2 || l.follow != nil || l.taking != nil || a.shown.left != 0 {
				t.Errorf("it is %s, over: %v, with search %d", l.role, l.over, l.search)
			}
		})
	}
}

// TestPredecessorsDrainIsNotedInEveryRole: `wait --for=drained` depends on it.
func TestPredecessorsDrainIsNotedInEveryRole(t *testing.T) {
	for role := range roles {
		a := bareAgent(t, role)
		a.loop.sidecar = &sidecar{sockets: bareSockets(t)}
		a.handle(event{kind: predecessor, drained: hotrestart.Drained{Done: true}})
		if a.shown.predecessor == nil || !a.shown.predecessor.Done {
			t.Errorf("%s: the news is lost", role)
		}
	}
}

// TestServesAlthoughAskedToStop: the role is entered, before a successor is looked for.
func TestServesAlthoughAskedToStop(t *testing.T) {
	a := bareAgent(t, hotrestart.RoleStarting)
	log := &roleLog{Handler: slog.DiscardHandler}
	a.log = slog.New(log)
	s := &sidecar{sockets: bareSockets(t)}
	a.loop.sidecar, a.loop.stopping = s, true
	a.handle(event{kind: inForce, sidecar: s})
	a.loop.children.Wait()
	if want := []hotrestart.Role{hotrestart.RoleServing}; !slices.Equal(log.roles, want) || a.shown.role != want[0] || a.shown.since.IsZero() {
		t.Errorf("logged %q, shown as %q since %v; want %q", log.roles, a.shown.role, a.shown.since, want)
	}
	if e := <-a.events; e.kind != nobodyStarts {
		t.Errorf("%s, want to have looked for a successor", e.kind)
	}
}

// TestNobodyServesIsNeverLost: the drain of a generation may end while it looks.
func TestNobodyServesIsNeverLost(t *testing.T) {
	for _, role := range []hotrestart.Role{hotrestart.RoleDraining, hotrestart.RoleStandby} {
		a := bareAgent(t, role)
		a.loop.search = 1
		a.handle(event{kind: foundNobody, search: 1})
		if a.loop.role != hotrestart.RoleStarting {
			t.Errorf("%s: it is %s, want it to come forward", role, a.loop.role)
		}
		a.loop.children.Wait()
		if e := <-a.events; e.kind != foundNobody || e.search != a.loop.search {
			t.Errorf("%s: it found %s, want to have looked again", role, e.kind)
		}
	}
}
