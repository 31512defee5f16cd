// Package cli owns what all commands have in common: the process's surroundings as
// values, how an outcome becomes lines and an exit status, the flags of the settings
// table, and the tables that are printed.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/logging"
)

// Env is what main has read of the world. Commands take nothing from elsewhere, so
// that a test can run them in its own process.
type Env struct {
	Args           []string // without the program's name
	Environ        []string // "KEY=value"
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exit statuses, part of the command's contract.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// UsageError blames the command line: exit status 2.
type UsageError struct{ Err error }

func (u *UsageError) Error() string { return u.Err.Error() }
func (u *UsageError) Unwrap() error { return u.Err }

// StatusError ends the process with a status of the command's own choice, such as
// Envoy's.
type StatusError struct {
	Status int
	Err    error
}

func (s *StatusError) Error() string { return s.Err.Error() }
func (s *StatusError) Unwrap() error { return s.Err }

// Run executes args and returns the exit status. Every error is printed to Stderr, one
// line each.
func (e *Env) Run(ctx context.Context, root *cobra.Command, args []string) int {
	started := false
	markStart(root, &started)
	root.SetArgs(args)
	root.SetIn(e.Stdin)
	root.SetOut(e.Stdout)
	root.SetErr(e.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(e.Stderr, "pilot-agent: %s\n", line)
		}
	}
	var status *StatusError
	var usage *UsageError
	switch {
	case errors.As(err, &status):
		return status.Status
	case errors.As(err, &usage), config.IsUsage(err), !started:
		return exitUsage
	}
	return exitError
}

// markStart notes when a command's own code begins. Cobra checks flags and arguments
// before that, so an error from earlier is one of usage. A command that only holds
// others prints its help, and refuses a name that none of them has.
func markStart(cmd *cobra.Command, started *bool) {
	if !cmd.Runnable() {
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*started = true
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markStart(sub, started)
	}
}

// Warn prints one line that is no error.
func (e *Env) Warn(format string, args ...any) {
	fmt.Fprintf(e.Stderr, "pilot-agent: warning: "+format+"\n", args...)
}

// Log is the log of a short command: its records go to Stderr, so that Stdout
// is the command's answer alone. The global logging flags choose form and levels.
func (e *Env) Log(cmd *cobra.Command) (*slog.Logger, error) {
	cfg, _, err := config.Load(config.Sources{Flags: GivenSettings(cmd)})
	if err != nil {
		return nil, err
	}
	return logging.New(e.Stderr, logging.Options{JSON: cfg.LogJSON, Levels: cfg.LogLevels}), nil
}

// Client asks the agent of this container. A command that is exec'd has its container's
// environment, or none, and never the agent's flags.
func (e *Env) Client() *control.Client { return control.NewClient(e.handoffDirs()) }

// handoffDirs are the hand-off directories that this command can know of.
func (e *Env) handoffDirs() []string {
	dirs := []string{config.DefaultHandoffDir}
	for _, entry := range e.Environ {
		if dir, ok := strings.CutPrefix(entry, "UNDERSTUDY_HANDOFF_DIR="); ok && dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}
