package sidecar

import (
	"log/slog"
	"strings"
	"testing"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/istiod"
)

// TestAskHealth: with a probe istiod is told how the application is, without one it is not, and one that asks nothing is an error that
// names the setting.
func TestAskHealth(t *testing.T) {
	for probe, want := range map[string]string{
		`{}`:                   "",
		`{readinessProbe: {}}`: "",
		`{readinessProbe: {exec: {command: ["true"]}}}`: "asks",
		`{readinessProbe: {tcpSocket: {}}}`:             "PROXY_CONFIG: readinessProbe=",
		`{readinessProbe: {periodSeconds: 5}}`:          "want exactly one of",
	} {
		cfg, _, err := config.Load(config.Sources{Environ: []string{"PROXY_CONFIG=" + probe}})
		if err != nil {
			t.Fatal(err)
		}
		s := &Sidecar{cfg: cfg, world: World{Log: func(string) *slog.Logger { return slog.New(slog.DiscardHandler) }}}
		var c istiod.Config
		got := ""
		if err := s.askHealth(&c); err != nil {
			got = err.Error()
		} else if c.Health != nil {
			got = "asks"
		}
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", probe, got, want)
		}
	}
}
