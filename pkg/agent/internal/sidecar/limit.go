package sidecar

import (
	"log/slog"
	"time"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/config"
)

const (
	// otherFiles is how many files Envoy needs besides its connections: listeners of each worker,
	// event loops, logs, the admin's.
	otherFiles = 256
	// filesEach is what one connection takes: its own descriptor, and one of the connection to
	// the upstream.
	filesEach = 2
	// fewFiles is a limit that somebody will run into one day; container runtimes set a million,
	// of which nobody wants to read a warning at each start.
	fewFiles = 64 << 10
	// untilIdleDrain stands for a drain that lasts until the last connection has ended: the
	// grace period of a pod is hardly longer.
	untilIdleDrain = time.Hour
)

// connectionLimit bounds Envoy's connections; 0 leaves it to c.RuntimeValues, or to nobody. Envoy
// crashes when accept(2) finds no file left (envoy#39055), and every connection of the pod goes
// with it: refusing the one too many is better.
func connectionLimit(c *config.Config, files uint64, log *slog.Logger) uint64 {
	if files == 0 {
		return uint64(c.ConnectionLimit)
	}
	safe := uint64(1)
	if files > otherFiles+filesEach {
		safe = (files - otherFiles) / filesEach
	}
	set := c.RuntimeValues[bootstrap.MaxConnectionsKey] != ""
	switch limit := uint64(c.ConnectionLimit); {
	case limit > safe:
		log.Warn("Envoy may take more connections than it has files for, and crashes when they are used up: raise the limit of open files, or lower connectionSettings.globalDownstreamConnectionLimit",
			"connections", limit, "files", files, "enough for", safe)
		return limit
	case limit > 0 || set:
		return limit
	}
	if files < fewFiles {
		log.Warn("the limit of open files bounds Envoy's connections, of which each takes two: raise it, or set connectionSettings.globalDownstreamConnectionLimit",
			"connections", safe, "files", files)
	}
	return safe
}

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
