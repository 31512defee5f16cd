package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/hotrestart"
)

func TestTakeOver(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	big := bytes.Repeat([]byte("xds "), 300_000)
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.state = State{"vips": []byte("v1"), "xds": big, "empty": {}}
		o.late = State{"vips": []byte("v2")}
		o.news = State{"stats": big}
	})
	address := old.listen("agent status tcp 0")
	for i := range 2*maxFrameSockets + 5 { // more than two frames
		old.listen(hotrestart.EnvoySocketName("tcp://127.0.0.1:1", uint32(i)))
	}
	stopOld := serveGreeting(t, old.sockets, "agent status tcp 0", "old")
	if got := greetingAt(t, address); got != "old" {
		t.Fatal(got)
	}

	ctx := testContext(t)
	c := mustDial(t, openTestDir(t, path, "new"), "old")
	if c.Parent().ID != "old" || c.Parent().EnvoyVersion != "1.40.0" || c.protocol != 1 {
		t.Errorf("the parent is %+v, protocol %d", c.Parent(), c.protocol)
	}
	if e := old.expect(Arrived); e.Newcomer.Identity() != testIdentity("new") {
		t.Errorf("arrived: %+v", e.Newcomer.Identity())
	}
	if state := c.State(); len(state) != 3 || string(state["vips"]) != "v1" || !bytes.Equal(state["xds"], big) || len(state["empty"]) != 0 {
		t.Errorf("%d components of state, vips %q", len(state), state["vips"])
	}
	var mine hotrestart.Sockets
	defer mine.Close()
	if err := c.Sockets(ctx, &mine); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(mine.Names(), old.sockets.Names()) {
		t.Errorf("%d sockets came, %d were given", mine.Len(), old.sockets.Len())
	}
	stopNew := serveGreeting(t, &mine, "agent status tcp 0", "new")
	defer stopNew()
	stopOld() // the listener of the old one, not the socket
	if got := greetingAt(t, address); got != "new" {
		t.Errorf("%q answers", got)
	}

	// A listener comes, one goes, one goes and comes back, before the old one lets go.
	old.sockets.Retain(func(name string) bool { return !strings.HasSuffix(name, " 0") || strings.HasPrefix(name, "agent") })
	old.sockets.Retain(func(name string) bool { return !strings.HasSuffix(name, ":1 1") })
	again := old.listen(hotrestart.EnvoySocketName("tcp://127.0.0.1:1", 1))
	old.listen("agent dns tcp 0")
	state, err := c.Ready(ctx, &mine)
	if err != nil {
		t.Fatal(err)
	}
	if string(state["vips"]) != "v2" || len(state) != 1 {
		t.Errorf("late state %v", state)
	}
	moved := hotrestart.EnvoySocketName("tcp://127.0.0.1:1", 1)
	if !slices.Equal(mine.Names(), old.sockets.Names()) {
		t.Errorf("the sets differ:\n%v\n%v", mine.Names(), old.sockets.Names())
	}
	stopMoved := serveGreeting(t, &mine, moved, "moved")
	defer stopMoved()
	if got := greetingAt(t, again); got != "moved" {
		t.Errorf("%q answers", got)
	}

	if err := c.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	old.expect(Settled)
	if d, news, err := c.Next(ctx); err != nil || d != (Drained{Left: 3}) || !bytes.Equal(news["stats"], big) {
		t.Errorf("%+v, %d bytes of news, %v", d, len(news["stats"]), err)
	}
	if d, _, err := c.Next(ctx); err != nil || d != (Drained{Done: true}) {
		t.Errorf("%+v, %v", d, err)
	}
	// While it lives, the old one sends others away.
	var refused *RefusedError
	if _, err := dialTest(t, openTestDir(t, path, "third"), "old"); !errors.As(err, &refused) || refused.Code != RefusedMoved {
		t.Errorf("a third one: %v", err)
	}
	old.stop()
	<-c.Lost()
	if _, _, err := c.Next(ctx); !errors.Is(err, ErrLost) {
		t.Errorf("after the end: %v", err)
	}
}

// Wherever a newcomer breaks off, the old generation is told what to do, and the next
// one succeeds.
func TestNewcomerBreaksOff(t *testing.T) {
	for _, tc := range []struct {
		after   string
		outcome outcome
	}{{"dial", unchanged}, {"sockets", unchanged}, {"ready", takeBack}, {"commit", handedOver}} {
		for _, how := range []string{"close", "abort"} {
			t.Run(tc.after+" "+how, func(t *testing.T) {
				noLeaks(t)
				path := t.TempDir()
				old := startParent(t, path, "old")
				old.listen("a")
				var mine hotrestart.Sockets
				defer mine.Close()
				c := mustDial(t, openTestDir(t, path, "new"), "old")
				goTo(t, c, &mine, tc.after)
				if how == "abort" {
					if err := c.Abort(AbortFailed, "Envoy\ndied"); err != nil {
						t.Fatal(err)
					}
				} else {
					c.Close()
				}
				e := awaitEnded(old)
				if e.outcome != tc.outcome || e.Err == nil {
					t.Errorf("outcome %q (%v), want %q", e.outcome, e.Err, tc.outcome)
				}
				var aborted *AbortedError
				if how == "abort" && (!errors.As(e.Err, &aborted) || aborted.reason != "Envoy died") {
					t.Errorf("the reason is %v", e.Err)
				}
				next := mustDialSoon(t, openTestDir(t, path, "next"), "old")
				mine.Close()
				var nextSockets hotrestart.Sockets
				defer nextSockets.Close()
				takeOver(t, next, &nextSockets)
			})
		}
	}
}

func goTo(t testing.TB, c *Client, into *hotrestart.Sockets, step string) {
	t.Helper()
	ctx := testContext(t)
	steps := []struct {
		name string
		do   func() error
	}{
		{"dial", func() error { return nil }},
		{"sockets", func() error { return c.Sockets(ctx, into) }},
		{"ready", func() error { _, err := c.Ready(ctx, into); return err }},
		{"commit", func() error { return c.Commit(ctx) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if s.name == step {
			return
		}
	}
	t.Fatalf("no step %q", step)
}

func awaitEnded(o *oldGeneration) told {
	o.t.Helper()
	for {
		select {
		case e := <-o.seen:
			if e.Kind == Ended {
				return e
			}
		case <-time.After(patience):
			o.t.Fatal("the hand-off does not end")
		}
	}
}

// mustDialSoon tries again while the server still puts the last one away.
func mustDialSoon(t testing.TB, d *Dir, id string) *Client {
	t.Helper()
	deadline := time.After(patience)
	for {
		c, err := dialTest(t, d, id)
		if err == nil {
			t.Cleanup(c.Close)
			return c
		}
		var refused *RefusedError
		if !errors.As(err, &refused) {
			t.Fatal(err)
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestRefusals(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.answer = func(e Event) bool {
			if e.Kind == Arrived && e.Newcomer.Identity().ID == "older" {
				e.Newcomer.Refuse(RefusedOlder, "stand by")
				return true
			}
			return false
		}
	})
	refusal := func(d *Dir, o dialOptions) *RefusedError {
		t.Helper()
		c, err := dial(testContext(t), d, "old", o)
		if err == nil {
			c.Close()
			t.Fatal("not refused")
		}
		var refused *RefusedError
		if !errors.As(err, &refused) {
			t.Fatal(err)
		}
		return refused
	}
	normal := dialOptions{timing: quick(), protocols: ownProtocols()}
	if r := refusal(openTestDir(t, path, "older"), normal); r.Code != RefusedOlder || r.Reason != "stand by" {
		t.Error(r)
	}
	if e := awaitEnded(old); e.outcome != unchanged || !strings.Contains(e.Err.Error(), "stand by") {
		t.Errorf("%+v", e)
	}
	stranger := testIdentity("stranger")
	stranger.PodUID = "another"
	strange, err := OpenDir(path, stranger)
	if err != nil {
		t.Fatal(err)
	}
	defer strange.Close()
	if r := refusal(strange, normal); r.Code != RefusedPod {
		t.Error(r)
	}
	far := normal
	far.protocols = reachOf(currentProtocol + protocolReach + 1)
	if r := refusal(openTestDir(t, path, "far"), far); r.Code != RefusedProtocol || !strings.Contains(r.Reason, "1 to 1") {
		t.Error(r)
	}
	near := normal
	near.protocols = reachOf(currentProtocol + protocolReach)
	c, err := dial(testContext(t), openTestDir(t, path, "near"), "old", near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.protocol != currentProtocol {
		t.Errorf("protocol %d", c.protocol)
	}
	if r := refusal(openTestDir(t, path, "second"), normal); r.Code != RefusedBusy || !strings.Contains(r.Reason, "near") {
		t.Error(r)
	}
}

// A newcomer that hangs costs the old generation nothing but the stage's deadline.
func TestHungNewcomer(t *testing.T) {
	for step, outcome := range map[string]outcome{"dial": unchanged, "sockets": unchanged, "ready": takeBack} {
		t.Run(step, func(t *testing.T) {
			noLeaks(t)
			path := t.TempDir()
			old := startParent(t, path, "old", func(o *oldGeneration) {
				short := 100 * time.Millisecond
				o.server.timing.warm, o.server.timing.hold, o.server.timing.commit = short, short, short
			})
			var mine hotrestart.Sockets
			defer mine.Close()
			c := mustDial(t, openTestDir(t, path, "new"), "old")
			goTo(t, c, &mine, step)
			if e := awaitEnded(old); e.outcome != outcome {
				t.Errorf("outcome %q (%v)", e.outcome, e.Err)
			}
			select {
			case <-c.Lost():
			case <-time.After(patience):
				t.Fatal("the newcomer is not told")
			}
			var err error
			switch step {
			case "dial":
				err = c.Sockets(testContext(t), &mine)
			case "sockets":
				_, err = c.Ready(testContext(t), &mine)
			case "ready":
				err = c.Commit(testContext(t))
			}
			var aborted *AbortedError
			if !errors.As(err, &aborted) {
				t.Errorf("the next step fails with %v", err)
			}
		})
	}
}

// An owner that does not answer: the newcomer gives up or is sent away; nothing is let go.
func TestHungOwner(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.server.timing.decide = 50 * time.Millisecond
		o.answer = func(e Event) bool { return e.Kind == Arrived }
	})
	if _, err := dialTest(t, openTestDir(t, path, "new"), "old"); err == nil {
		t.Fatal("accepted by nobody")
	}
	if e := awaitEnded(old); e.outcome != unchanged {
		t.Errorf("%+v", e)
	}
}

func TestStepsOutOfOrder(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	old := startParent(t, path, "old")
	var mine hotrestart.Sockets
	defer mine.Close()
	c := mustDial(t, openTestDir(t, path, "new"), "old")
	ctx := testContext(t)
	if err := c.Commit(ctx); err == nil {
		t.Error("Commit before everything")
	}
	if _, err := c.Ready(ctx, &mine); err == nil {
		t.Error("Ready before Sockets")
	}
	// Nothing was sent: the hand-off goes on.
	takeOver(t, c, &mine)
	// A peer that does not keep the order itself is told, and put away.
	rude := mustDial(t, openTestDir(t, path, "rude"), startParent(t, path, "other").server.me.ID)
	if err := rude.link.send(msgCommitted, emptyHead{}); err != nil {
		t.Fatal(err)
	}
	<-rude.Lost()
	var aborted *AbortedError
	if !errors.As(rude.link.err, &aborted) || !strings.Contains(aborted.reason, "got committed") {
		t.Error(rude.link.err)
	}
	old.expect(Settled)
}

func TestStateLimits(t *testing.T) {
	for name, s := range map[string]State{
		"a component too large": {"a": make([]byte, maxComponent+1)},
		"no name":               {"": nil},
		"a long name":           {strings.Repeat("n", maxNameLength+1): nil},
		"too much in all": {"a": make([]byte, maxComponent), "b": make([]byte, maxComponent), "c": make([]byte, maxComponent),
			"d": make([]byte, maxComponent), "e": {1}},
	} {
		if s.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
	many := State{}
	for i := range maxComponents + 1 {
		many[fmt.Sprint(i)] = nil
	}
	if many.check() == nil {
		t.Error("too many components: taken")
	}
	if err := (State{"a": make([]byte, maxComponent)}).check(); err != nil {
		t.Error(err)
	}
}

func TestParentEnds(t *testing.T) {
	for _, step := range []string{"dial", "sockets", "ready", "commit"} {
		t.Run(step, func(t *testing.T) {
			noLeaks(t)
			path := t.TempDir()
			old := startParent(t, path, "old")
			address := old.listen("a")
			var mine hotrestart.Sockets
			defer mine.Close()
			c := mustDial(t, openTestDir(t, path, "new"), "old")
			goTo(t, c, &mine, step)
			old.stop()
			if step == "commit" {
				var err error
				for err == nil { // what was said of the drain, then the end
					_, _, err = c.Next(testContext(t))
				}
				if !errors.Is(err, ErrLost) {
					t.Fatal(err)
				}
			}
			select {
			case <-c.Lost():
			case <-time.After(patience):
				t.Fatal("the newcomer does not notice")
			}
			if mine.Len() == 0 {
				return
			}
			stop := serveGreeting(t, &mine, "a", "alone")
			defer stop()
			if got := greetingAt(t, address); got != "alone" {
				t.Error(got)
			}
		})
	}
}

func TestCancelledStep(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	startParent(t, path, "old", func(o *oldGeneration) { o.answer = func(e Event) bool { return e.Kind == WantSockets } })
	c := mustDial(t, openTestDir(t, path, "new"), "old")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var mine hotrestart.Sockets
	defer mine.Close()
	if err := c.Sockets(ctx, &mine); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := c.Sockets(testContext(t), &mine); err == nil || mine.Len() != 0 {
		t.Errorf("a step after a failed one: %v", err)
	}
}

func TestDialNobody(t *testing.T) {
	d := openTestDir(t, t.TempDir(), "new")
	if _, err := Dial(testContext(t), d, "old"); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	// A socket whose owner is dead.
	if err := os.WriteFile(d.path+"/old.sock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(testContext(t), d, "old"); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	if _, err := Dial(testContext(t), d, "../old"); err == nil {
		t.Error("a path for an id")
	}
}

// An agent that stood still for longer than its patience finds the answer and the end of its
// deadline together: the answer counts.
func TestAnswerThatWaitsIsNotLate(t *testing.T) {
	noLeaks(t)
	for range 50 { // of two ready cases, select takes any
		ours, theirs := socketPair(t)
		old, c := newLink(theirs, quick(), 1, nil), &Client{link: newLink(ours, quick(), 1, nil), timing: quick(), stage: childCommitting}
		if err := old.send(msgSettled, emptyHead{}); err != nil {
			t.Fatal(err)
		}
		over, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		if err := c.collect(over, 0, func(frame) (bool, error) { return true, nil }); err != nil {
			t.Errorf("the answer was there: %v", err)
		}
		cancel()
		c.Close()
		old.close()
	}
}
