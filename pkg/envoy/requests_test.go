package envoy

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

const adminAnswers = "http.admin.downstream_rq_completed: 7\nhttp.admin.downstream_rq_5xx: 3\n"

// TestRequests adds up what Envoy counts, less what it was told of the Envoy before.
func TestRequests(t *testing.T) {
	own := "http.inbound_0.0.0.0.downstream_rq_completed: 40\nhttp.inbound_0.0.0.0.downstream_rq_5xx: 4\nhttp.inbound_0.0.0.0_8080;.downstream_rq_completed: 2\n" +
		"http.outbound_0.0.0.0_80.downstream_rq_completed: 10\nhttp.outbound_0.0.0.0_80.downstream_rq_5xx: 5\nhttp.stats.downstream_rq_completed: 9\n"
	told := map[string]uint64{
		"http.inbound_0.0.0.0.downstream_rq_completed": 30, "http.inbound_0.0.0.0.downstream_rq_5xx": 4, "http.outbound_0.0.0.0_80.downstream_rq_completed": 11,
		"http.admin.downstream_rq_completed": 100, "cluster.x.upstream_rq_completed": 5,
	}
	for name, tc := range map[string]struct {
		stats string
		relay *CounterRelay
		told  map[string]uint64
		want  Requests
		err   error
	}{
		"no Envoy before":       {adminAnswers + own, nil, nil, Requests{Answers{42, 4}, Answers{10, 5}}, nil},
		"told of nothing":       {adminAnswers + own, &CounterRelay{}, nil, Requests{Answers{42, 4}, Answers{10, 5}}, nil},
		"told of another":       {adminAnswers + own, &CounterRelay{}, told, Requests{Answers{12, 0}, Answers{0, 5}}, nil},
		"no request yet":        {adminAnswers, nil, nil, Requests{}, nil},
		"no such statistics":    {"http.inbound_0.0.0.0.downstream_rq_total: 4\n", nil, nil, Requests{}, errRequestsUnkept},
		"Envoy does not answer": {"", nil, nil, Requests{}, nil},
	} {
		a := fakeAdmin(t, func(w http.ResponseWriter, _ *http.Request) {
			if tc.stats == "" {
				http.Error(w, "busy", http.StatusServiceUnavailable)
			}
			_, _ = fmt.Fprint(w, tc.stats)
		})
		if tc.told != nil {
			tc.relay.Add(hotenvoy.StatsReply{CounterDeltas: tc.told}.Marshal(), quiet())
			if _, err := tc.relay.next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s := NewSupervisor(Config{Admin: a, Stats: tc.relay, Log: quiet()})
		got, err := s.Requests(t.Context())
		if got != tc.want || tc.stats != "" && !errors.Is(err, tc.err) || tc.stats == "" && err == nil {
			t.Errorf("%s: %+v, %v, want %+v, %v", name, got, err, tc.want, tc.err)
		}
	}
}

// TestRequestsWhileEnvoyIsTold: an answer of which nobody knows whether it has what Envoy was told meanwhile is none.
func TestRequestsWhileEnvoyIsTold(t *testing.T) {
	for _, tc := range []struct {
		times, completed int // how often Envoy asks for counters during a question
		err              error
	}{{1, 20, nil}, {2, 0, errRequestsMoving}} {
		relay, asked := &CounterRelay{}, 0
		a := fakeAdmin(t, func(w http.ResponseWriter, _ *http.Request) {
			if asked++; asked <= tc.times {
				relay.Add(hotenvoy.StatsReply{CounterDeltas: map[string]uint64{"http.inbound_a.downstream_rq_completed": 10}}.Marshal(), quiet())
				_, _ = relay.next(t.Context())
			}
			_, _ = fmt.Fprint(w, adminAnswers+"http.inbound_a.downstream_rq_completed: 30\n")
		})
		s := NewSupervisor(Config{Admin: a, Stats: relay, Log: quiet()})
		if got, err := s.Requests(t.Context()); got.Inbound.Completed != uint64(tc.completed) || !errors.Is(err, tc.err) {
			t.Errorf("told %d times: %+v, %v", tc.times, got, err)
		}
		relay.begin() // the next Envoy knows of nothing
		if got, err := s.Requests(t.Context()); got.Inbound.Completed != 30 || err != nil {
			t.Errorf("after the next start: %+v, %v", got, err)
		}
	}
}
