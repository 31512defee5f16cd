package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/hotrestart"
)

// What a release says of its abort is understood, also of one that has no codes, or others.
func TestAbortIsUnderstood(t *testing.T) {
	noLeaks(t)
	for head, want := range map[string]AbortedError{
		`{"reason":"this generation was asked to stop"}`:                          {AbortStopping, "this generation was asked to stop"},
		`{"reason":"no answer: this generation was asked to stop"}`:               {AbortStopping, "no answer: this generation was asked to stop"},
		`{"reason":"its Envoy died"}`:                                             {AbortFailed, "its Envoy died"},
		`{}`:                                                                      {AbortFailed, ""},
		`{"code":"stopping","reason":"anything"}`:                                 {AbortStopping, "anything"},
		`{"code":"failed","reason":"this generation was asked to stop"}`:          {AbortFailed, "this generation was asked to stop"},
		`{"code":"refused","reason":"no"}`:                                        {AbortRefused, "no"},
		`{"code":"broken","reason":"no"}`:                                         {AbortBroken, "no"},
		`{"code":"of a later release","reason":"no","more":[1]}`:                  {AbortFailed, "no"},
		`{"code":"` + strings.Repeat("x", 10_000) + `","reason":"line\nfeed"}`:    {AbortFailed, "line feed"},
		`{"code":"stopping","reason":"` + strings.Repeat("y", 2*maxReason) + `"}`: {AbortStopping, strings.Repeat("y", maxReason)},
	} {
		ours, theirs := socketPair(t)
		l := newLink(ours, quick(), 1, nil)
		go writeAndListen(theirs, encode(t, msgAbort, json.RawMessage(head), 0))
		<-l.ended
		var got *AbortedError
		if !errors.As(l.err, &got) || *got != want {
			t.Errorf("%.100s: %v, want %+v", head, l.err, want)
		}
		l.close()
	}
}

// A release without codes looks for the words: they are in an abort exactly when the code says so.
func TestAbortIsUnderstoodByReleasesWithoutCodes(t *testing.T) {
	const words = "this generation was asked to stop"
	for _, reason := range []string{"", "its Envoy died", words, "the other generation gave up: " + words, strings.Repeat("z", 2*maxReason)} {
		for _, code := range []AbortCode{AbortFailed, AbortStopping, AbortRefused, AbortBroken} {
			head := newAbort(code, reason)
			if says := strings.Contains(head.Reason, words); says != (code == AbortStopping) || head.Code != code {
				t.Errorf("%s, %.60q: sent %.100q with code %s", code, reason, head.Reason, head.Code)
			}
		}
	}
	for reason, want := range map[string]string{"": words, "its Envoy died": words + ": its Envoy died"} {
		if got := newAbort(AbortStopping, reason).Reason; got != want {
			t.Errorf("%q is sent as %q, want %q", reason, got, want)
		}
	}
}

// Both sides send a code: the newcomer that gives up, and the old generation that sends one away.
func TestAbortHasCode(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.answer = func(e Event) bool {
			if e.Kind == WantSockets && e.Newcomer.Identity().ID == "refused" {
				return e.Newcomer.Refuse(RefusedUnready, "not now") == nil
			}
			return false
		}
	})
	for _, code := range []AbortCode{AbortFailed, AbortStopping} {
		c := mustDialSoon(t, openTestDir(t, path, string(code)), "old")
		if err := c.Abort(code, ""); err != nil {
			t.Fatal(err)
		}
		var got *AbortedError
		if e := awaitEnded(old); !errors.As(e.Err, &got) || got.Code != code {
			t.Errorf("%s: %v", code, e.Err)
		}
	}
	var mine hotrestart.Sockets
	defer mine.Close()
	var got *AbortedError
	refused := mustDialSoon(t, openTestDir(t, path, "refused"), "old")
	if err := refused.Sockets(testContext(t), &mine); !errors.As(err, &got) || got.Code != AbortRefused {
		t.Errorf("refused late: %v", err)
	}
	awaitEnded(old)
	rude := mustDialSoon(t, openTestDir(t, path, "rude"), "old")
	if err := rude.link.send(msgCommitted, emptyHead{}); err != nil {
		t.Fatal(err)
	}
	<-rude.Lost()
	if !errors.As(rude.link.err, &got) || got.Code != AbortBroken {
		t.Errorf("out of order: %v", rude.link.err)
	}
}

// A newcomer that is asked to stop while it still waits for its welcome says so.
func TestDialIsCancelled(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	asked := make(chan struct{}, 1)
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.answer = func(e Event) bool {
			if e.Kind == Arrived {
				asked <- struct{}{}
			}
			return true
		}
	})
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		<-asked
		cancel()
	}()
	if _, err := Dial(ctx, openTestDir(t, path, "new"), "old"); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v", err)
	}
	var got *AbortedError
	if e := awaitEnded(old); !errors.As(e.Err, &got) || got.Code != AbortStopping || e.outcome != unchanged {
		t.Errorf("the old generation is told %v, outcome %q", e.Err, e.outcome)
	}
}

// What does not fit is left out, and what is left can be handed over.
func TestStateFit(t *testing.T) {
	most := make([]byte, maxComponent)
	for name, tc := range map[string]struct {
		state State
		gone  []string
	}{
		"nothing":             {State{}, nil},
		"all fits":            {State{"a": most, "b": most, "c": most, "stats": most}, nil},
		"one is too large":    {State{"a": {1}, "stats": make([]byte, maxComponent+1)}, []string{"stats"}},
		"also what is needed": {State{"a": make([]byte, maxComponent+1), "stats": {1}}, []string{"a"}},
		"too much in all":     {State{"a": most, "b": most, "c": most, "cache": most, "stats": {1}}, []string{"stats"}},
		"far too much in all": {State{"a": most, "b": most, "c": most, "cache": most, "stats": most}, []string{"stats"}},
		"two have to go":      {State{"a": most, "b": most, "c": most, "d": {1}, "cache": most, "stats": {}}, []string{"cache", "stats"}},
	} {
		gone := tc.state.Fit("stats", "cache")
		if got := slices.Sorted(maps.Keys(gone)); !slices.Equal(got, tc.gone) {
			t.Errorf("%s: %q are gone, want %q", name, got, tc.gone)
		}
		if err := tc.state.check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A newcomer that says why it goes is heard also by a parent that is just sending something.
func TestAbortIsHeardInSending(t *testing.T) {
	noLeaks(t)
	ours, theirs := socketPair(t)
	n := &Newcomer{link: newLink(ours, quick(), 1, nil)}
	defer n.link.close()
	if _, err := theirs.Write(encode(t, msgAbort, newAbort(AbortStopping, ""), 0)); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	var got *AbortedError
	if err := n.link.send(msgDrained, Drained{}); !errors.Is(err, ErrLost) || !errors.As(n.ownWords(err), &got) || got.Code != AbortStopping {
		t.Errorf("%v, and in its own words %v", err, n.ownWords(err))
	}
}
