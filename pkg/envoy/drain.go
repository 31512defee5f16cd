package envoy

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

const (
	// connectionPoll is how often a drain that ends with the last connection
	// counts them; maxPollErrors failures in a row end it (both as Istio's agent).
	connectionPoll = time.Second
	maxPollErrors  = 5
	// drainTimeout bounds one question to Envoy's admin while draining.
	drainTimeout = 2 * time.Second
)

// DrainPlan says how an ordinary stop lets connections finish.
type DrainPlan struct {
	InboundOnly bool
	// Duration is how long Envoy goes on serving after the drain began.
	Duration time.Duration
	// UntilIdle replaces Duration: Envoy serves until no connection is left, at
	// least Minimum (EXIT_ON_ZERO_ACTIVE_CONNECTIONS, MINIMUM_DRAIN_DURATION).
	UntilIdle bool
	Minimum   time.Duration
	// IdleTimeout ends it with UntilIdle also when for so long nothing but idle HTTP connections has
	// been left; 0: they are waited for as well.
	IdleTimeout time.Duration
}

// Drain closes Envoy's listeners to new work and lets what it has finish. It
// returns at the end of the plan, when Envoy has ended, or when cut ends.
// Outbound goes on: the application still has its own calls to make.
func (s *Supervisor) Drain(cut context.Context, plan DrainPlan, log *slog.Logger) {
	gone := s.Exited()
	ctx, cancel := context.WithTimeout(cut, drainTimeout)
	err := s.cfg.Admin.Drain(ctx, DrainOptions{InboundOnly: plan.InboundOnly, Graceful: true, SkipExit: true})
	cancel()
	if err != nil {
		log.Warn("Envoy was not told to drain", "err", err)
	}
	wait := plan.Duration
	if plan.UntilIdle {
		wait = plan.Minimum
	}
	log.Info("draining", "for", wait, "untilIdle", plan.UntilIdle)
	if sleep(cut, wait, gone) && plan.UntilIdle {
		drainUntilIdle(cut, s.cfg.Admin, gone, plan.IdleTimeout, log)
	}
}

// drainUntilIdle returns when Envoy has no connection of the application's left
// to serve, or none but idle ones for idleTimeout. It has no deadline of its own: the
// pod's grace period is the cap.
func drainUntilIdle(cut context.Context, admin *Admin, gone <-chan struct{}, idleTimeout time.Duration, log *slog.Logger) {
	idle := idleness{limit: idleTimeout}
	for failures := 0; failures < maxPollErrors; {
		l, err := applicationLoad(cut, admin)
		switch {
		case err != nil:
			failures++
			log.Warn("count Envoy's connections", "err", err)
		case idle.drained(l, log):
			return
		default:
			failures = 0
			log.Debug("waiting for connections to end", "connections", l.Connections, "idle", l.Idle, "known", l.Known)
		}
		if !sleep(cut, connectionPoll, gone) {
			return
		}
	}
}

// StopAccepting has Envoy accept no connection more and ask its clients to go.
func (s *Supervisor) StopAccepting(ctx context.Context) error {
	i := s.Hot()
	if i == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := i.child.Drain(ctx); err != nil && !i.ended() {
		return err
	}
	return nil
}

// Connections counts what Envoy serves, on whatever listener.
func (s *Supervisor) Connections(ctx context.Context) (int, error) {
	i := s.Hot()
	if i == nil {
		return 0, ErrNoHotRestart
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	reply, err := i.child.Stats(ctx)
	return int(reply.Connections), err
}

// AwaitIdle returns when no connection is left, when for idleTimeout (0: never) none but idle ones has been,
// when Envoy is gone, or when ctx ends. left is told what there is whenever that was counted.
func (s *Supervisor) AwaitIdle(ctx context.Context, idleTimeout time.Duration, left func(Load), log *slog.Logger) {
	gone := s.Exited()
	idle := idleness{limit: idleTimeout}
	for sleep(ctx, connectionPoll, gone) {
		l, err := s.Load(ctx)
		if err != nil {
			log.Debug("count Envoy's connections", "err", err)
			continue
		}
		left(l)
		if idle.drained(l, log) {
			return
		}
	}
}

// applicationLoad is what Envoy serves of the application's traffic: admin, statistics and internal
// listeners do not hold a drain up.
func applicationLoad(ctx context.Context, admin *Admin) (Load, error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	stats, err := admin.stats(ctx, "", `^(listener\..*downstream_cx_active|`+kindStats+"|"+useStats+")$")
	if err != nil {
		return Load{}, err
	}
	connections := 0
	for name, value := range stats {
		switch {
		case strings.HasPrefix(name, "listener.") && !ownListener(name):
			connections += int(value)
		case strings.HasPrefix(name, statsHTTP):
			delete(stats, name)
		}
	}
	return loadOf(connections, stats), nil
}

// statsHTTP is the prefix of the HTTP connection manager on the port of Envoy's statistics (package bootstrap).
const statsHTTP = "http.stats."

// ownListener tells listeners of the proxy itself, and per-worker duplicates, by their stat name.
func ownListener(stat string) bool {
	for _, part := range []string{".worker_", "listener.admin.", "listener.envoy_internal_", "_15090.", ".prometheus."} {
		if strings.Contains(stat, part) {
			return true
		}
	}
	return false
}
