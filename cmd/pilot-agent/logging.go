package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/logging"
)

// logFileMode lets the pod's log collector, which runs as another user, read the file.
const logFileMode = 0o644

// commandLog is the log of a short command: its records go to Stderr, so that Stdout
// is the command's answer alone. The global logging flags choose form and levels.
func (e *env) commandLog(cmd *cobra.Command) (*slog.Logger, error) {
	cfg, _, err := config.Load(config.Sources{Flags: givenSettings(cmd)})
	if err != nil {
		return nil, err
	}
	return logging.New(e.Stderr, logging.Options{JSON: cfg.LogJSON, Levels: cfg.LogLevels}), nil
}

// openLog returns where the agent's log goes: --log_target's stdout, stderr or file.
// The caller closes it; closing the standard streams does nothing.
func (e *env) openLog(target string) (io.WriteCloser, error) {
	switch target {
	case "stdout":
		return nopCloser{e.Stdout}, nil
	case "stderr":
		return nopCloser{e.Stderr}, nil
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_APPEND|os.O_WRONLY, logFileMode)
	if err != nil {
		return nil, fmt.Errorf("open the log, --log_target: want stdout, stderr or a file that can be written: %w", err)
	}
	return f, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
