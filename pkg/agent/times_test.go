package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/roles"
)

// refusals are the codes with which a generation refuses a newcomer, known to this release or not.
var refusals = []handoff.RefusalCode{
	handoff.RefusedBusy, handoff.RefusedMoved, handoff.RefusedOlder, handoff.RefusedProtocol, handoff.RefusedPod, handoff.RefusedUnready,
	"of a later release",
}

// TestFailedTakeOverIsTriedAgainAfterAPause: each attempt costs the generation that serves a little. One that is
// busy, or has moved on, is asked again sooner.
func TestFailedTakeOverIsTriedAgainAfterAPause(t *testing.T) {
	long := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}
	const first = 100 * time.Millisecond
	soon := []time.Duration{first, 2 * first, 4 * first, 8 * first, time.Second, time.Second}
	failures := map[string]error{"a fault": errors.New("a fault")}
	for _, code := range refusals {
		failures[string(code)] = &handoff.RefusedError{Code: code}
	}
	for name, err := range failures {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pauses := long
				if name == string(handoff.RefusedBusy) || name == string(handoff.RefusedMoved) {
					pauses = soon
				}
				a := bareAgent(t, handoff.RoleStarting)
				for i, want := range pauses {
					failed := time.Now()
					a.handle(event{kind: roles.FailedToTake, err: err})
					e := <-a.events
					if got := time.Since(failed); got != want || e.kind != roles.LookAgain || e.search != a.loop.Search {
						t.Errorf("after failure %d it is %s after %v, want to look again after %v", i+1, e.kind, got, want)
					}
				}
			})
		})
	}
}

// TestPauseEndsWithTheLife: nobody waits for a pause of half a minute.
func TestPauseEndsWithTheLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := bareAgent(t, handoff.RoleStarting)
		var end context.CancelFunc
		a.loop.ctx, end = context.WithCancel(t.Context())
		began := time.Now()
		a.lookLater(time.Hour)
		end()
		a.loop.children.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("it ended after %v", took)
		}
	})
}

// TestWhoDied: a generation that lives is looked at for a second, since its lock may outlive its connection a little.
func TestWhoDied(t *testing.T) {
	p := newPod(t)
	n := p.neighbour("n", handoff.RoleServing, nil, nil)
	a := &Agent{dir: p.dir("a")}
	died := func(ctx func(*testing.T) context.Context, want bool, after time.Duration) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			if got := a.died(ctx(t), "n"); got != want || time.Since(began) != after {
				t.Errorf("died: %v after %v, want %v after %v", got, time.Since(began), want, after)
			}
		})
	}
	died((*testing.T).Context, false, time.Second)
	died(func(t *testing.T) context.Context { return canceledAfter(t, 10*time.Millisecond) }, false, 10*time.Millisecond)
	n.leave()
	died((*testing.T).Context, true, 0)
}

func canceledAfter(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestFarewell: an agent that fails stays until a `wait` has heard why, which asks every half second, or has
// gone without a word.
func TestFarewell(t *testing.T) {
	fault := errors.New("a fault")
	for name, tc := range map[string]struct {
		fails error
		asked time.Duration // before it fails, for the last time; 0: never
		asks  time.Duration // after it fails; 0: never
		quits time.Duration // after it fails
		stops time.Duration
		stays time.Duration
	}{
		"nobody waits":                   {fails: fault},
		"it does not fail":               {asked: 100 * time.Millisecond},
		"somebody waited long ago":       {fails: fault, asked: 2 * time.Second},
		"somebody waits":                 {fails: fault, asked: 100 * time.Millisecond, asks: 400 * time.Millisecond, stays: 400 * time.Millisecond},
		"somebody waited until just now": {fails: fault, asked: 1999 * time.Millisecond, stays: 2 * time.Second},
		"it is to quit meanwhile":        {fails: fault, asked: time.Millisecond, quits: 300 * time.Millisecond, stays: 300 * time.Millisecond},
		"it is asked to stop meanwhile":  {fails: fault, asked: time.Millisecond, stops: 200 * time.Millisecond, stays: 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := bareAgent(t, handoff.RoleStarting)
				m := &member{Agent: a, pod: &pod{t: t}}
				if tc.asked > 0 {
					m.askRole()
					time.Sleep(tc.asked)
				}
				if tc.fails != nil {
					a.fail(tc.fails)
				}
				if tc.asks > 0 {
					time.AfterFunc(tc.asks, func() {
						if s := m.askRole(); !s.Failed || s.Reason != tc.fails.Error() {
							t.Errorf("who waits hears %+v", s)
						}
					})
				}
				if tc.quits > 0 {
					time.AfterFunc(tc.quits, func() { a.quitAtOnce(t.Context()) })
				}
				ctx := t.Context()
				if tc.stops > 0 {
					ctx = canceledAfter(t, tc.stops)
				}
				began := time.Now()
				a.farewell(ctx)
				if stayed := time.Since(began); stayed != tc.stays {
					t.Errorf("it stays for %v, want %v", stayed, tc.stays)
				}
			})
		})
	}
}
