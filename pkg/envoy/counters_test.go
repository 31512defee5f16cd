package envoy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

func TestRelayTellsEachCounterOnce(t *testing.T) {
	r := &CounterRelay{}
	if got, err := r.next(t.Context()); err != nil || len(got.CounterDeltas) != 0 {
		t.Errorf("nothing was added, and it tells %v, %v", got, err)
	}
	r.Add(hotenvoy.StatsReply{CounterDeltas: map[string]uint64{"a": 1, "b": 2}}.Marshal(), quiet())
	r.Add([]byte{0xff}, quiet()) // damaged
	r.Add(hotenvoy.StatsReply{CounterDeltas: map[string]uint64{"b": 3}}.Marshal(), quiet())
	got, err := r.next(t.Context())
	if err != nil || !cmp.Equal(got.CounterDeltas, map[string]uint64{"a": 1, "b": 5}) {
		t.Errorf("it tells %v, %v", got.CounterDeltas, err)
	}
	if got, _ := r.next(t.Context()); len(got.CounterDeltas) != 0 {
		t.Errorf("it tells %v twice", got.CounterDeltas)
	}
}

// TestDeltaTellsEachCountOnce: what was told of a counter before is not part of what it grew by since.
func TestDeltaTellsEachCountOnce(t *testing.T) {
	counted := func(a, b uint64) *Counters { return &Counters{values: map[string]uint64{"a": a, "b": b}} }
	for name, tc := range map[string]struct {
		before, later *Counters
		want          map[string]uint64
	}{
		"since nothing":     {nil, counted(3, 0), map[string]uint64{"a": 3}},
		"one has grown":     {counted(3, 5), counted(7, 5), map[string]uint64{"a": 4}},
		"a new one":         {&Counters{}, counted(0, 2), map[string]uint64{"b": 2}},
		"one counts anew":   {counted(3, 5), counted(1, 6), map[string]uint64{"b": 1}},
		"nothing has grown": {counted(3, 5), counted(3, 5), nil},
		"nothing is known":  {counted(3, 5), nil, nil},
	} {
		data := tc.before.Delta(tc.later)
		if tc.want == nil {
			if data != nil {
				t.Errorf("%s: something to tell", name)
			}
			continue
		}
		got, err := hotenvoy.ParseStatsReply(data)
		if err != nil || !cmp.Equal(got.CounterDeltas, tc.want) {
			t.Errorf("%s: %v, %v, want %v", name, got.CounterDeltas, err, tc.want)
		}
	}
}
