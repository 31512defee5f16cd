package envoy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy.mesh/hotrestart"
	hotenvoy "understudy.mesh/hotrestart/envoy"
)

// TestTakeover moves the listeners of one Envoy to one of another version, under load.
func TestTakeover(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		workers  int // of the next
	}{{older, newer, workers}, {newer, older, workers}, {newer, newer, 2 * workers}} {
		t.Run(tc.from+" to "+tc.to, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			address, single := freeAddress(t), "single:"+freeAddress(t)
			old := start(t, spec{name: "old", binary: tc.from, listen: []string{address, single}})
			defer old.stop()
			old.serves()
			if old.asked.Load() == 0 {
				t.Error("the first Envoy did not ask its Parent for sockets")
			}
			sockets := old.fetch(address, single)
			want := []string{
				hotrestart.EnvoySocketName("tcp://"+address, 0), hotrestart.EnvoySocketName("tcp://"+address, 1),
				hotrestart.EnvoySocketName("tcp://"+single[len("single:"):], 0),
			}
			if got := sockets.Names(); !slices.Equal(got, want) {
				t.Fatalf("fetched %q, want %q", got, want)
			}
			requests, others := newLoad(t, address), newLoad(t, single[len("single:"):])
			requests.await(t, "old", 50)

			next := start(t, spec{name: "next", binary: tc.to, workers: tc.workers, listen: []string{address, single}, sockets: sockets.CopyForEnvoy})
			defer next.stop()
			next.serves()
			if err := old.child.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			sockets.Close()
			requests.await(t, "next", 100)
			old.process.Signal(t, syscall.SIGTERM)
			old.ends()
			requests.await(t, "next", 100)
			others.await(t, "next", 100)
			requests.without(t)
			others.without(t)
			old.stop()
			next.stop()
		})
	}
}

// TestKilledEnvoy: connections made while no Envoy lives wait in the sockets.
func TestKilledEnvoy(t *testing.T) {
	address := freeAddress(t)
	old := start(t, spec{name: "old", listen: []string{address}})
	old.serves()
	sockets := old.fetch(address)
	old.process.Kill()

	const connections = 50
	var waiting []net.Conn
	for range connections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	next := start(t, spec{name: "next", listen: []string{address}, sockets: sockets.CopyForEnvoy})
	next.serves()
	for _, c := range waiting {
		if answer, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(answer), "\r\n\r\nnext") {
			t.Errorf("got %q, %v", answer, err)
		}
	}
}

// TestStatsRelay carries counters over from one Envoy to the next, and no gauges, which
// nobody would take back when the old one has ended.
func TestStatsRelay(t *testing.T) {
	const counter, gauge = "http.ingress.downstream_rq_2xx", "http.ingress.downstream_cx_active"
	address := freeAddress(t)
	old := start(t, spec{name: "old", listen: []string{address}})
	old.serves()
	idle, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	const requests = 7
	for range requests {
		if _, err := get(address); err != nil {
			t.Fatal(err)
		}
	}
	old.awaitStats(counter, requests)
	old.awaitStats(gauge, 1)

	other := freeAddress(t)
	next := start(t, spec{name: "next", listen: []string{other}, flush: "0.1s", stats: func(ctx context.Context) (hotenvoy.StatsReply, error) {
		return old.child.Stats(ctx)
	}})
	next.serves()
	next.awaitStats(counter, requests)
	next.awaitStats("server.hot_restart_generation", 1) // a gauge too: the first one
	for _, a := range []string{address, other} {
		if _, err := get(a); err != nil {
			t.Fatal(err)
		}
	}
	next.awaitStats(counter, requests+2)
	next.awaitStats(gauge, 0) // shown, since it has one of its own
}

// awaitStats waits until a statistic has that value.
func (g *generation) awaitStats(name string, want uint64) {
	g.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); ; {
		stats, err := g.process.Stats(g.t.Context(), "^"+name+"$")
		if err == nil && stats[name] == want {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			g.t.Fatalf("%s: %s is %d, %v, want %d", g.name, name, stats[name], err, want)
		}
	}
}

// TestStoppedEnvoy: answers that come too late do not get mixed up with later ones.
func TestStoppedEnvoy(t *testing.T) {
	first, second := freeAddress(t), "single:"+freeAddress(t)
	g := start(t, spec{name: "only", listen: []string{first, second}})
	g.serves()
	signal := func(s syscall.Signal) {
		g.process.Signal(t, s)
	}
	signal(syscall.SIGSTOP)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := g.child.Fetch(ctx, "tcp://"+first); !errors.Is(err, hotenvoy.ErrUnanswered) {
			t.Fatalf("a stopped Envoy: %v", err)
		}
		cancel()
	}
	signal(syscall.SIGCONT)
	for _, want := range []struct {
		address string
		sockets int
	}{{second, 1}, {first, workers}, {freeAddress(t), 0}} {
		if got := g.fetch(want.address); got.Len() != want.sockets {
			t.Errorf("%s: fetched %q, want %d", want.address, got.Names(), want.sockets)
		}
	}
}

// TestParentWithoutStats: an Envoy takes over from one that gives no statistics.
func TestParentWithoutStats(t *testing.T) {
	for name, s := range map[string]spec{
		"never answers": {stats: func(ctx context.Context) (hotenvoy.StatsReply, error) {
			<-ctx.Done()
			return hotenvoy.StatsReply{}, ctx.Err()
		}},
		"has none":     {},
		"is not asked": {skip: true, stats: func(context.Context) (hotenvoy.StatsReply, error) { panic("asked") }},
		"is probed":    {args: []string{"--skip-hot-restart-on-no-parent"}},
	} {
		t.Run(name, func(t *testing.T) {
			address := freeAddress(t)
			s.listen, s.name = []string{address}, "only"
			g := start(t, s)
			g.serves()
			if who, err := get(address); who != "only" || err != nil {
				t.Errorf("got %q, %v", who, err)
			}
			if !g.process.Ready(t.Context()) {
				t.Error("its admin does not answer that it serves")
			}
		})
	}
}

// TestWithheld: an old Envoy that is told nothing accepts beside the new one, and is none
// the worse when that dies.
func TestWithheld(t *testing.T) {
	address := freeAddress(t)
	old := start(t, spec{name: "old", listen: []string{address}})
	old.serves()
	sockets := old.fetch(address)
	requests := newLoad(t, address)
	next := start(t, spec{name: "next", listen: []string{address}, sockets: sockets.CopyForEnvoy})
	next.serves()
	requests.await(t, "old", 100)
	requests.await(t, "next", 100)
	requests.without(t)
	next.stop()

	again := newLoad(t, address)
	again.await(t, "old", 200)
	again.without(t)
	if !old.process.Ready(t.Context()) {
		t.Error("the old Envoy's admin does not answer that it serves")
	}
}

// TestFailedNewcomers: however many die in mid-take-over, the next one can.
func TestFailedNewcomers(t *testing.T) {
	const attempts = 20
	address := freeAddress(t)
	old := start(t, spec{name: "old", listen: []string{address}})
	old.serves()
	sockets := old.fetch(address)
	requests := newLoad(t, address)
	for i := range attempts {
		// It dies as it waits for the socket of one of its workers: it has accepted nothing.
		reached, killed := make(chan struct{}), make(chan struct{})
		failed := start(t, spec{name: "failed", listen: []string{address}, sockets: func(address string, worker uint32) (int, bool) {
			if int(worker) == i%workers {
				close(reached)
				select {
				case <-killed:
				case <-t.Context().Done(): // the test has failed
				}
			}
			return sockets.CopyForEnvoy(address, worker)
		}})
		await(t, "the newcomer asks for a socket", reached, failed.process)
		failed.process.Kill()
		close(killed)
		failed.stop()
	}
	next := start(t, spec{name: "next", listen: []string{address}, sockets: sockets.CopyForEnvoy})
	next.serves()
	if err := old.child.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	sockets.Close()
	requests.await(t, "next", 100)
	requests.without(t)
}
