package agent

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
)

const (
	// connectionPoll is how often a drain that ends with the last connection
	// counts them; maxPollErrors failures in a row end it (both as Istio's agent).
	connectionPoll = time.Second
	maxPollErrors  = 5
	// adminTimeout bounds one question to Envoy's admin while draining.
	adminTimeout = 2 * time.Second
	// untilIdleDrain stands for a drain that lasts until the last connection has ended: the
	// grace period of a pod is hardly longer.
	untilIdleDrain = time.Hour
)

// envoyDrain is Envoy's --drain-time-s: the longest that a drain of ours can take. In the last
// third of it Envoy, from 1.40 on, ends what no response ends: upgraded streams (WebSocket) and
// CONNECT, at times that it spreads. Were it shorter, they would be cut in the middle of our drain.
func envoyDrain(c *config.Config) time.Duration {
	longest := max(c.DrainDuration, c.TerminationDrainDuration)
	if c.HandoffDir != "" {
		longest = max(longest, c.UpgradeDrainDuration)
	}
	if c.ExitOnZeroActiveConnections {
		longest = max(longest, c.MinimumDrainDuration, untilIdleDrain)
	}
	return longest
}

// drainPlan says how an ordinary stop lets connections finish.
type drainPlan struct {
	inboundOnly bool
	// duration is how long Envoy goes on serving after the drain began.
	duration time.Duration
	// untilIdle replaces duration: Envoy serves until no connection is left, at
	// least minimum (EXIT_ON_ZERO_ACTIVE_CONNECTIONS, MINIMUM_DRAIN_DURATION).
	untilIdle bool
	minimum   time.Duration
}

// drain closes Envoy's listeners to new work and lets what it has finish. It
// returns at the end of the plan, when gone is closed, or when cut ends.
// Outbound goes on: the application still has its own calls to make.
func drain(cut context.Context, plan drainPlan, admin *envoy.Admin, gone <-chan struct{}, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(cut, adminTimeout)
	err := admin.Drain(ctx, envoy.DrainOptions{InboundOnly: plan.inboundOnly, Graceful: true, SkipExit: true})
	cancel()
	if err != nil {
		log.Warn("Envoy was not told to drain", "err", err)
	}
	wait := plan.duration
	if plan.untilIdle {
		wait = plan.minimum
	}
	log.Info("draining", "for", wait, "untilIdle", plan.untilIdle)
	select {
	case <-cut.Done():
		return
	case <-gone:
		return
	case <-time.After(wait):
	}
	if plan.untilIdle {
		drainUntilIdle(cut, admin, gone, log)
	}
}

// drainUntilIdle returns when Envoy has no connection of the application's left
// to serve. It has no deadline of its own: the pod's grace period is the cap.
func drainUntilIdle(cut context.Context, admin *envoy.Admin, gone <-chan struct{}, log *slog.Logger) {
	tick := time.NewTicker(connectionPoll)
	defer tick.Stop()
	for failures := 0; failures < maxPollErrors; {
		n, err := activeConnections(cut, admin)
		switch {
		case err != nil:
			failures++
			log.Warn("count Envoy's connections", "err", err)
		case n == 0:
			return
		default:
			failures = 0
			log.Debug("waiting for connections to end", "connections", n)
		}
		select {
		case <-cut.Done():
			return
		case <-gone:
			return
		case <-tick.C:
		}
	}
}

// drainConnections returns when count says that no connection is left, when Envoy is
// gone, or when ctx ends. left is told the number whenever they were counted.
func drainConnections(ctx context.Context, count func(context.Context) (int, error), gone <-chan struct{}, left func(int), log *slog.Logger) {
	tick := time.NewTicker(connectionPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-gone:
			return
		case <-tick.C:
		}
		n, err := count(ctx)
		if err != nil {
			log.Debug("count Envoy's connections", "err", err)
			continue
		}
		left(n)
		if n == 0 {
			return
		}
	}
}

// activeConnections counts downstream connections of the application's traffic:
// admin, statistics and internal listeners do not hold a drain up.
func activeConnections(ctx context.Context, admin *envoy.Admin) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	stats, err := admin.Stats(ctx, `^listener\..*downstream_cx_active$`)
	if err != nil {
		return 0, err
	}
	var n uint64
	for name, value := range stats {
		if !ownListener(name) {
			n += value
		}
	}
	return n, nil
}

// ownListener tells listeners of the proxy itself, and per-worker duplicates, by their stat name.
func ownListener(stat string) bool {
	for _, part := range []string{".worker_", "listener.admin.", "listener.envoy_internal_", "_15090.", ".prometheus."} {
		if strings.Contains(stat, part) {
			return true
		}
	}
	return false
}
