package handoff

import (
	"testing"

	"understudy.mesh/hotrestart"
)

// TestTerminateIsIgnored: a message of earlier releases, by which a newcomer could end the drain of the generation before
// it, does no harm. Nothing comes of it, and the drain is told on.
func TestTerminateIsIgnored(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	old := startParent(t, path, "old")
	old.listen("a")
	pong := make(chan struct{}, 1)
	c, err := dial(testContext(t), openTestDir(t, path, "new"), "old", dialOptions{timing: quick(), protocols: ownProtocols(),
		watch: func(sent bool, raw []byte, _ int) {
			if !sent && messageKind(raw[5]) == msgPong {
				pong <- struct{}{}
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var mine hotrestart.Sockets
	defer mine.Close()
	takeOver(t, c, &mine)
	newcomer := old.expect(Settled).Newcomer
	for _, kind := range []messageKind{msgTerminate, msgTerminate, msgPing} { // the ping is answered when both were taken
		if err := c.link.send(kind, emptyHead{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx := testContext(t)
	for _, want := range []Drained{{Left: 3}, {Done: true}} {
		if d, _, err := c.Next(ctx); err != nil || d != want {
			t.Fatalf("%+v, %v, want %+v", d, err, want)
		}
	}
	select {
	case <-pong:
	case <-c.Lost():
		t.Fatalf("the old generation breaks off: %v", c.link.err)
	}
	if err := newcomer.Drained(Drained{Left: 7}, nil); err != nil {
		t.Fatal(err)
	}
	if d, _, err := c.Next(ctx); err != nil || d.Left != 7 {
		t.Errorf("%+v, %v", d, err)
	}
	if len(old.seen) > 0 {
		t.Errorf("the old generation is told %q", (<-old.seen).Kind)
	}
}
