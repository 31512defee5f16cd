package envoy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

func TestRelayTellsEachCounterOnce(t *testing.T) {
	r := &CounterRelay{}
	if got, err := r.Next(t.Context()); err != nil || len(got.CounterDeltas) != 0 {
		t.Errorf("nothing was added, and it tells %v, %v", got, err)
	}
	r.Add(hotenvoy.StatsReply{CounterDeltas: map[string]uint64{"a": 1, "b": 2}}.Marshal(), quiet())
	r.Add([]byte{0xff}, quiet()) // damaged
	r.Add(hotenvoy.StatsReply{CounterDeltas: map[string]uint64{"b": 3}}.Marshal(), quiet())
	got, err := r.Next(t.Context())
	if err != nil || !cmp.Equal(got.CounterDeltas, map[string]uint64{"a": 1, "b": 5}) {
		t.Errorf("it tells %v, %v", got.CounterDeltas, err)
	}
	if got, _ := r.Next(t.Context()); len(got.CounterDeltas) != 0 {
		t.Errorf("it tells %v twice", got.CounterDeltas)
	}
}
