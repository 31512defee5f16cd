package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

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
