package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/status"
)

// fakeAdmin answers as the admin of an Envoy does whose statistics are stats.
type fakeAdmin struct {
	path   string
	mu     sync.Mutex
	stats  string
	drains []string
}

const liveStats = "server.state: 0\nlistener_manager.workers_started: 1\n" +
	"cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n"

func newFakeAdmin(t *testing.T, stats string) *fakeAdmin {
	t.Helper()
	f := &fakeAdmin{path: filepath.Join(t.TempDir(), "admin.sock"), stats: stats}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return f
}

func (f *fakeAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/drain_listeners" {
		f.drains = append(f.drains, r.URL.RawQuery)
		return
	}
	fmt.Fprint(w, f.stats)
}

func (f *fakeAdmin) set(stats string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats = stats
}

func newSupervisor(admin *fakeAdmin, path string, args ...string) *supervisor {
	return &supervisor{
		launcher: &launcher{
			binary:  path,
			command: func([]string) envoy.Command { return envoy.Command{Path: path, Args: args, Env: os.Environ()} },
			off:     errNoHotRestart, log: slog.New(slog.DiscardHandler),
		},
		admin: envoy.NewAdmin(admin.path), ready: &status.Readiness{},
		log: slog.New(slog.DiscardHandler),
	}
}

func TestEarlyDeathsEndTheAgentWithEnvoysStatus(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newFakeAdmin(t, ""), "/bin/sh", "-c", "exit 3")
	err := s.run(t.Context())
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 3 {
		t.Fatalf("got %v, want an ExitError with Envoy's status 3", err)
	}
	if got := s.restarts.Load(); got != maxEarlyDeaths-1 {
		t.Errorf("restarted %d times, want %d", got, maxEarlyDeaths-1)
	}
}

func TestMissingBinaryIsNotRetried(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newFakeAdmin(t, ""), "/nonexistent/envoy")
	if err := s.run(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if s.restarts.Load() != 0 {
		t.Error("a binary that cannot be executed was tried again")
	}
}

func TestServedEnvoyIsRestartedHoweverOften(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newFakeAdmin(t, liveStats), "/bin/sleep", "1000")
	done := make(chan error, 1)
	go func() { done <- s.run(t.Context()) }()
	for life := int64(1); life <= maxEarlyDeaths+3; life++ {
		waitFor(t, fmt.Sprintf("life %d to serve", life), func() bool { return s.served.Load() == life })
		if ready, pending := s.ready.Check(); life == 1 && !ready && len(pending) == 0 {
			t.Error("not ready without a reason")
		}
		s.mu.Lock()
		pid := s.process.PID()
		s.mu.Unlock()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	if err := <-done; err != nil {
		t.Fatalf("run: %v", err)
	}
}

func TestStopDuringBackOffReturns(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newFakeAdmin(t, ""), "/bin/false")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	waitFor(t, "the first death", func() bool { return s.alive() != nil && isClosed(s.alive()) })
	s.stop()
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("run goes on after stop")
	}
}

func TestDrainAsksForInboundAndWaits(t *testing.T) {
	t.Parallel()
	admin := newFakeAdmin(t, "")
	plan := drainPlan{inboundOnly: true, duration: 50 * time.Millisecond}
	started := time.Now()
	drain(t.Context(), plan, envoy.NewAdmin(admin.path), nil, slog.New(slog.DiscardHandler))
	if time.Since(started) < plan.duration {
		t.Error("the drain was cut short")
	}
	if len(admin.drains) != 1 || admin.drains[0] != "inboundonly&graceful&skip_exit" {
		t.Errorf("Envoy was asked %q", admin.drains)
	}
}

// TestEnvoyDrainIsTheLongest: Envoy ends streams by its own drain time, which must not be over before ours.
func TestEnvoyDrainIsTheLongest(t *testing.T) {
	const s = time.Second
	for name, tc := range map[string]struct {
		cfg  config.Config
		want time.Duration
	}{
		"its own":               {config.Config{DrainDuration: 45 * s, TerminationDrainDuration: 5 * s, UpgradeDrainDuration: 60 * s}, 45 * s},
		"that of an upgrade":    {config.Config{DrainDuration: 45 * s, UpgradeDrainDuration: 60 * s, HandoffDir: "/h"}, 60 * s},
		"that of a stop":        {config.Config{DrainDuration: 45 * s, TerminationDrainDuration: 90 * s, UpgradeDrainDuration: 60 * s, HandoffDir: "/h"}, 90 * s},
		"until nothing is left": {config.Config{DrainDuration: 45 * s, TerminationDrainDuration: 5 * s, ExitOnZeroActiveConnections: true}, untilIdleDrain},
	} {
		if got := envoyDrain(&tc.cfg); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestDrainEndsEarly(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	close(closed)
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	admin := envoy.NewAdmin(newFakeAdmin(t, "").path)
	for name, run := range map[string]func(){
		"Envoy is gone": func() {
			drain(t.Context(), drainPlan{duration: time.Hour}, admin, closed, slog.New(slog.DiscardHandler))
		},
		"the stop hurries": func() { drain(cut, drainPlan{duration: time.Hour}, admin, nil, slog.New(slog.DiscardHandler)) },
	} {
		done := make(chan struct{})
		go func() { run(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the drain goes on", name)
		}
	}
}

func TestDrainUntilIdleWaitsForTheLastConnection(t *testing.T) {
	t.Parallel()
	const own = "listener.admin.downstream_cx_active: 3\nlistener.0.0.0.0_15090.downstream_cx_active: 1\n"
	admin := newFakeAdmin(t, own+"listener.0.0.0.0_15006.downstream_cx_active: 1\n")
	done := make(chan struct{})
	go func() {
		drain(t.Context(), drainPlan{untilIdle: true, minimum: time.Millisecond}, envoy.NewAdmin(admin.path), nil, slog.New(slog.DiscardHandler))
		close(done)
	}()
	select {
	case <-done:
		t.Fatal("the drain ended with a connection left")
	case <-time.After(300 * time.Millisecond):
	}
	admin.set(own)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the drain goes on without connections")
	}
}

// waitFor polls cond within a generous deadline.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
