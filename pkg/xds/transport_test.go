package xds

import (
	"testing"
	"time"
)

// awaitStats waits until the counters are as they should be.
func (r *relaying) awaitStats(what string, is func(Stats) bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !is(r.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%+v: want %s", r.Stats(), what)
		}
	}
}

// TestStreamsThatEnd are counted once, and one that Envoy cancels is no error.
func TestStreamsThatEnd(t *testing.T) {
	r := startRelay(t)
	for n := range uint64(2) {
		e := connect(t, r.path)
		e.subscribe(clusterType)
		r.awaitStats("a request", func(s Stats) bool { return s.Requests == n+1 }) // else it may end before it begins
		e.close()
		r.awaitStats("a stream that was cancelled", func(s Stats) bool { return s.Cancelled == n+1 })
	}
	if n := r.Stats().Broken; n != 0 {
		t.Errorf("%d streams have ended by an error", n)
	}
}
