package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/agent"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/logging"
)

const (
	// The garbage collector's percentages: fast while the agent starts, as the pod waits for
	// it, and then small, as its memory is multiplied by the number of pods. Under istiod it is
	// Envoy that the pod waits for, and small from the first. $GOGC overrides both.
	startGCPercent   = 100
	settledGCPercent = 50
)

func newProxyCommand(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proxy [sidecar|router]",
		Short: "Run the agent and its Envoy",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			role := config.Sidecar
			if len(args) == 1 {
				var err error
				if role, err = config.ParseRole(args[0]); err != nil {
					return &cli.UsageError{Err: err}
				}
			}
			return proxy(e, cmd, role)
		},
	}
	cli.AddSettings(cmd.Flags(), false)
	cli.CompleteFlag(cmd, "takeover", string(config.TakeoverAuto), string(config.TakeoverForce))
	return cmd
}

// proxy loads the configuration and runs one agent until the command's context ends.
func proxy(e *cli.Env, cmd *cobra.Command, role config.Role) error {
	started := time.Now()
	settled := debug.FreeOSMemory
	tuned := slices.ContainsFunc(e.Environ, func(kv string) bool { return strings.HasPrefix(kv, "GOGC=") })
	if !tuned {
		debug.SetGCPercent(startGCPercent)
		settled = func() {
			debug.SetGCPercent(settledGCPercent)
			debug.FreeOSMemory()
		}
	}
	cfg, warnings, err := loadSettings(e, cmd, role)
	if err != nil {
		return err
	}
	if !tuned && cfg.ConfigDir == "" {
		debug.SetGCPercent(settledGCPercent)
	}
	if cfg.MemoryLimit > 0 {
		debug.SetMemoryLimit(cfg.MemoryLimit)
	}
	if e.TerminationLog != "" { // it may be set in a file, too
		e.TerminationLog = cfg.TerminationLog
	}
	out, err := openLog(e, cfg.LogTarget)
	if err != nil {
		return err
	}
	defer out.Close()
	log := logging.New(out, logging.Options{JSON: cfg.LogJSON, Levels: cfg.LogLevels})
	announce(logging.For(log, "agent"), cfg, warnings)
	if err := e.ExplainCrash(); err != nil {
		log.Warn("the container's status will not show a panic", "err", err)
	}
	a, err := agent.New(cfg, agent.World{
		Version: currentBuild().Version, Environ: e.Environ,
		Stdout: asFile(e.Stdout), Stderr: asFile(e.Stderr),
		FileLimit: fileLimit(), Init: e.First, Started: started, Boot: bootTime(), Settled: settled, Explain: e.Explain,
		Log: func(scope string) *slog.Logger { return logging.For(log, scope) },
	})
	if err != nil {
		return err
	}
	err = a.Run(cmd.Context())
	var exit *envoy.ExitError
	if errors.As(err, &exit) {
		return &cli.StatusError{Status: exit.Status, Err: err}
	}
	return err
}

// loadSettings reads the settings of a proxy from everywhere.
func loadSettings(e *cli.Env, cmd *cobra.Command, role config.Role) (*config.Config, []config.Warning, error) {
	return config.Load(config.Sources{
		Role:  role,
		Flags: cli.GivenSettings(cmd), Environ: e.Environ, NodeIPs: interfaceAddrs(), AddrsOf: namedAddrs,
		ReadFile: readSettingsFile, IsDir: isDir, MemoryLimit: memoryLimit("/"), Platform: askPlatform(cmd.Context()),
	})
}

// announce writes the first lines of the log: version, mode, every setting that is not at
// its default, and the warnings about the sources.
func announce(log *slog.Logger, cfg *config.Config, warnings []config.Warning) {
	mode := "istiod at " + cfg.DiscoveryAddress
	if cfg.ConfigDir != "" {
		mode = "files in " + cfg.ConfigDir
	}
	log.Info("starting", "version", currentBuild().Version, "role", string(cfg.Role), "mode", mode)
	for _, v := range cfg.Effective() {
		level := slog.LevelInfo
		if v.Source == "default" {
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "setting", "name", v.Name, "value", v.Value, "source", v.Source)
	}
	for _, w := range warnings {
		log.Warn(w.String())
	}
}

// logFileMode lets the pod's log collector read the file, which runs as another user.
const logFileMode = 0o644

// openLog returns where the agent's log goes: --log_target's stdout, stderr or file.
// The caller closes it; closing the standard streams does nothing.
func openLog(e *cli.Env, target string) (io.WriteCloser, error) {
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
