package istiod

import (
	"strings"
	"testing"
	"time"
)

// TestMemoryIsGivenBack: after much that istiod has said there is memory to give back, twice, as pools let go the second time; after
// little there is none.
func TestMemoryIsGivenBack(t *testing.T) {
	f := startFake(t)
	given := make(chan struct{}, 16)
	a := newAgent(t, f, func(i *Istiod) {
		i.c.GiveBack = func() { given <- struct{}{} }
		i.loop.giveBack.after = moment
	})
	_, s := a.first(f)
	select {
	case <-given:
		t.Error("memory is given back after one small resource")
	case <-time.After(3 * moment):
	}
	big := strings.Repeat("b", muchGiven/2)
	s.give(clusterType, "b="+big)
	s.give(clusterType, "c="+big)
	for range 2 {
		select {
		case <-given:
		case <-time.After(deadline):
			t.Fatal("no memory is given back")
		}
	}
	select {
	case <-given:
		t.Error("memory is given back a third time")
	case <-time.After(3 * moment):
	}
}
