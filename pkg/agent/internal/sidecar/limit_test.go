package sidecar

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/config"
)

func TestConnectionLimit(t *testing.T) {
	runtime := map[string]string{bootstrap.MaxConnectionsKey: "7"}
	for name, tc := range map[string]struct {
		cfg   config.Config
		files uint64
		want  uint64
		warns string
	}{
		"a small limit of files":    {files: 1024, want: 384, warns: "bounds Envoy's connections"},
		"hardly any files":          {files: 200, want: 1, warns: "bounds Envoy's connections"},
		"just two":                  {files: 260, want: 2, warns: "bounds Envoy's connections"},
		"a million":                 {files: 1 << 20, want: (1<<20 - 256) / 2},
		"no limit":                  {},
		"set":                       {cfg: config.Config{ConnectionLimit: 100}, files: 1024, want: 100},
		"set, and no limit":         {cfg: config.Config{ConnectionLimit: 100}, want: 100},
		"set too high":              {cfg: config.Config{ConnectionLimit: 1000}, files: 1024, want: 1000, warns: "more connections than it has files for"},
		"set as a runtime value":    {cfg: config.Config{RuntimeValues: runtime}, files: 1024},
		"set, and as runtime value": {cfg: config.Config{RuntimeValues: runtime, ConnectionLimit: 5}, files: 1024, want: 5},
	} {
		var log bytes.Buffer
		got := connectionLimit(&tc.cfg, tc.files, slog.New(slog.NewTextHandler(&log, nil)))
		if got != tc.want || (tc.warns == "") != (log.Len() == 0) || !strings.Contains(log.String(), tc.warns) {
			t.Errorf("%s: %d, want %d; log %q, want %q", name, got, tc.want, &log, tc.warns)
		}
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
