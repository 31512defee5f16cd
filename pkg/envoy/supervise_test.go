package envoy

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

	"understudy.mesh/pkg/status"
)

// statsAdmin answers as the admin of an Envoy does whose statistics are stats.
type statsAdmin struct {
	path   string
	mu     sync.Mutex
	stats  string
	drains []string
}

const liveStats = "server.state: 0\nlistener_manager.workers_started: 1\n" +
	"cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n"

func newStatsAdmin(t *testing.T, stats string) *statsAdmin {
	t.Helper()
	f := &statsAdmin{path: filepath.Join(t.TempDir(), "admin.sock"), stats: stats}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return f
}

func (f *statsAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/drain_listeners" {
		f.drains = append(f.drains, r.URL.RawQuery)
		return
	}
	fmt.Fprint(w, f.stats)
}

func (f *statsAdmin) set(stats string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats = stats
}

func newSupervisor(admin *statsAdmin, path string, args ...string) *Supervisor {
	s := NewSupervisor(Config{
		Binary:  path,
		Command: func([]string) Command { return Command{Path: path, Args: args, Env: os.Environ()} },
		Admin:   NewAdmin(admin.path), Ready: &status.Readiness{}, Log: quiet(),
	})
	s.launcher.off = ErrNoHotRestart
	s.node = pressure{}
	return s
}

func TestEarlyDeathsEndTheAgentWithEnvoysStatus(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newStatsAdmin(t, ""), "/bin/sh", "-c", "exit 3")
	err := s.Run(t.Context())
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
	s := newSupervisor(newStatsAdmin(t, ""), "/nonexistent/envoy")
	if err := s.Run(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if s.restarts.Load() != 0 {
		t.Error("a binary that cannot be executed was tried again")
	}
}

func TestServedEnvoyIsRestartedHoweverOften(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newStatsAdmin(t, liveStats), "/bin/sleep", "1000")
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	for life := int64(1); life <= maxEarlyDeaths+3; life++ {
		waitFor(t, fmt.Sprintf("life %d to serve", life), func() bool { return s.served.Load() == life })
		if ready, pending := readiness(s).Check(); life == 1 && !ready && len(pending) == 0 {
			t.Error("not ready without a reason")
		}
		s.mu.Lock()
		pid := s.process.pid()
		s.mu.Unlock()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.Stop()
	if err := <-done; err != nil {
		t.Fatalf("run: %v", err)
	}
}

func TestStopDuringBackOffReturns(t *testing.T) {
	t.Parallel()
	s := newSupervisor(newStatsAdmin(t, ""), "/bin/false")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	waitFor(t, "the first death", func() bool { return s.Current() != nil && s.Current().ended() })
	s.Stop()
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("run goes on after stop")
	}
}

func TestDrainAsksForInboundAndWaits(t *testing.T) {
	t.Parallel()
	admin := newStatsAdmin(t, "")
	plan := DrainPlan{InboundOnly: true, Duration: 50 * time.Millisecond}
	started := time.Now()
	newSupervisor(admin, "").Drain(t.Context(), plan, quiet())
	if time.Since(started) < plan.Duration {
		t.Error("the drain was cut short")
	}
	if len(admin.drains) != 1 || admin.drains[0] != "inboundonly&graceful&skip_exit" {
		t.Errorf("Envoy was asked %q", admin.drains)
	}
}

func TestDrainEndsEarly(t *testing.T) {
	t.Parallel()
	exited := make(chan struct{})
	close(exited)
	cut, cancel := context.WithCancel(t.Context())
	cancel()
	alive, ended := newSupervisor(newStatsAdmin(t, ""), ""), newSupervisor(newStatsAdmin(t, ""), "")
	ended.process = &Instance{Process: &Process{done: exited}}
	for name, run := range map[string]func(){
		"Envoy is gone":    func() { ended.Drain(t.Context(), DrainPlan{Duration: time.Hour}, quiet()) },
		"the stop hurries": func() { alive.Drain(cut, DrainPlan{Duration: time.Hour}, quiet()) },
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
	admin := newStatsAdmin(t, own+"listener.0.0.0.0_15006.downstream_cx_active: 1\n")
	done := make(chan struct{})
	go func() {
		newSupervisor(admin, "").Drain(t.Context(), DrainPlan{UntilIdle: true, Minimum: time.Millisecond}, quiet())
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

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// readiness is what s tells what is pending.
func readiness(s *Supervisor) *status.Readiness { return s.cfg.Ready.(*status.Readiness) }
