package envoy

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestLoad(t *testing.T) {
	stats := func(lines string) map[string]uint64 {
		got, err := parseStats(strings.NewReader("http.admin.downstream_cx_active: 1\nhttp.admin.downstream_rq_active: 1\nhttp.admin.downstream_rq_total: 9\n" + lines))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for name, tc := range map[string]struct {
		connections int
		stats       map[string]uint64
		want        Load
	}{
		"no statistics":     {3, map[string]uint64{"http.inbound_0.0.0.0.downstream_cx_active": 3}, Load{Connections: 3}},
		"TCP alone":         {3, stats(""), Load{Connections: 3, Known: true, TCP: 3}},
		"of each kind":      {6, stats("http.inbound_0.0.0.0.downstream_cx_active: 3\nhttp.outbound_0.0.0.0_80.downstream_cx_active: 1\nhttp.inbound_0.0.0.0.downstream_rq_active: 2\nhttp.inbound_0.0.0.0.downstream_cx_upgrades_active: 1\n"), Load{Connections: 6, Known: true, Idle: 2, Active: 1, Streams: 1, TCP: 2}},
		"HTTP/2":            {2, stats("http.a.downstream_cx_active: 2\nhttp.a.downstream_rq_active: 100\n"), Load{Connections: 2, Known: true, Active: 100}},
		"an inner listener": {1, stats("http.a.downstream_cx_active: 2\nhttp.a.downstream_rq_active: 2\n"), Load{Connections: 1, Known: true, Active: 2}},
		"what came and what is not sent yet": {1, stats("http.a.downstream_cx_active: 1\nhttp.a.downstream_cx_total: 5\nhttp.a.downstream_rq_total: 70\nhttp.a.downstream_cx_tx_bytes_buffered: 8\n"),
			Load{Connections: 1, Known: true, Idle: 1, unsent: 8, total: 75}},
	} {
		if diff := cmp.Diff(tc.want, loadOf(tc.connections, tc.stats), cmpopts.EquateComparable(Load{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestIdleness: a connection that is used is not idle, whatever is seen of it at the moments at which it is looked at.
func TestIdleness(t *testing.T) {
	const limit = 3 * time.Second
	idle := Load{Connections: 2, Known: true, Idle: 2, total: 7}
	with := func(change func(*Load)) Load { l := idle; change(&l); return l }
	for name, tc := range map[string]struct {
		limit time.Duration
		seen  []Load // one a second
		want  int    // the first of them with which it is over; -1: none
	}{
		"idle":               {limit, []Load{idle, idle, idle, idle}, 3},
		"no limit":           {0, []Load{idle, idle, idle, idle, idle, idle}, -1},
		"used in between":    {limit, []Load{idle, idle, with(func(l *Load) { l.total++ }), with(func(l *Load) { l.total++ }), with(func(l *Load) { l.total++ }), with(func(l *Load) { l.total++ })}, 5},
		"an active request":  {limit, []Load{idle, idle, idle, with(func(l *Load) { l.Active = 1 }), idle, idle, idle, idle}, 7},
		"a stream":           {limit, repeated(with(func(l *Load) { l.Streams = 1 })), -1},
		"TCP":                {limit, repeated(with(func(l *Load) { l.TCP = 1 })), -1},
		"bytes to be sent":   {limit, repeated(with(func(l *Load) { l.unsent = 1 })), -1},
		"of an unknown kind": {limit, repeated(Load{Connections: 2}), -1},
	} {
		i, now, got := idleness{limit: tc.limit}, time.Now(), -1
		for n, l := range tc.seen {
			if i.over(l, now.Add(time.Duration(n)*time.Second)) {
				got = n
				break
			}
		}
		if got != tc.want {
			t.Errorf("%s: over at %d, want %d", name, got, tc.want)
		}
	}
}

func repeated(l Load) []Load {
	all := make([]Load, 20)
	for i := range all {
		all[i] = l
	}
	return all
}

// TestIdleTimeoutOfAStop ends a drain that would wait for the last connection, when the application's are idle.
func TestIdleTimeoutOfAStop(t *testing.T) {
	t.Parallel()
	const ( // the scrapers' connection and the admin's do not count
		own  = "http.admin.downstream_cx_active: 1\nlistener.admin.downstream_cx_active: 1\nlistener.0.0.0.0_15090.downstream_cx_active: 1\nhttp.stats.downstream_cx_active: 1\nhttp.stats.downstream_rq_active: 1\n"
		idle = own + "listener.0.0.0.0_15006.downstream_cx_active: 2\nhttp.inbound_0.0.0.0.downstream_cx_active: 2\nhttp.inbound_0.0.0.0.downstream_rq_active: 0\n"
		tcp  = own + "listener.0.0.0.0_15006.downstream_cx_active: 2\nhttp.inbound_0.0.0.0.downstream_cx_active: 1\n"
	)
	admin := newStatsAdmin(t, tcp)
	s := newSupervisor(admin, "/bin/sh", "-c", "exec sleep 3600")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.Drain(ctx, DrainPlan{UntilIdle: true, IdleTimeout: time.Millisecond}, quiet())
	}()
	select {
	case <-drained:
		t.Fatal("a TCP connection was left, and the drain is over")
	case <-time.After(3 * connectionPoll):
	}
	admin.set(idle)
	<-drained
	if ctx.Err() != nil {
		t.Error("only idle connections are left, and the drain goes on")
	}
}
