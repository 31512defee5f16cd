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

// Env is the surroundings of the process, as main has read them. Commands use nothing else,
// so that a test can run them in its own process.
type Env struct {
	Args           []string // without the program's name
	Environ        []string // "KEY=value"
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	First          bool   // it is the first process of its container
	TerminationLog string // where [Env.Explain] writes; "": nowhere
}

// Exit statuses, part of the command's contract.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// UsageError is a wrong command line: exit status 2.
type UsageError struct{ Err error }

func (u *UsageError) Error() string { return u.Err.Error() }
func (u *UsageError) Unwrap() error { return u.Err }

// StatusError ends the process with another exit status, such as Envoy's.
type StatusError struct {
	Status int
	Err    error
}

func (s *StatusError) Error() string { return s.Err.Error() }
func (s *StatusError) Unwrap() error { return s.Err }

// Run executes args and returns the exit status. It prints each error to Stderr, on a line
// of its own.
func (e *Env) Run(ctx context.Context, root *cobra.Command, args []string) int {
	started := false
	markStart(root, &started)
	root.SetArgs(args)
	root.SetIn(e.Stdin)
	root.SetOut(e.Stdout)
	root.SetErr(e.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var reasons []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(e.Stderr, "pilot-agent: %s\n", line)
			reasons = append(reasons, line)
		}
	}
	e.explainEnd(ctx, cmd.Name(), strings.Join(reasons, "; "))
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

// markStart notes when a command's own code begins. An error before that is one of usage,
// since cobra checks flags and arguments first. A command that only has subcommands prints
// its help, and refuses other names.
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

// Warn prints a warning on one line.
func (e *Env) Warn(format string, args ...any) {
	fmt.Fprintf(e.Stderr, "pilot-agent: warning: "+format+"\n", args...)
}

// Log is the log of a short command. It goes to Stderr, since Stdout is for the command's
// answer. The global logging flags choose format and levels.
func (e *Env) Log(cmd *cobra.Command) (*slog.Logger, error) {
	cfg, _, err := config.Load(config.Sources{Flags: GivenSettings(cmd)})
	if err != nil {
		return nil, err
	}
	return logging.New(e.Stderr, logging.Options{JSON: cfg.LogJSON, Levels: cfg.LogLevels}), nil
}

// Client returns a client of this container's agent.
func (e *Env) Client() *control.Client { return control.NewClient(e.handoffDirs()) }

// handoffDirs are the hand-off directories that this command can know of: it has its
// container's environment, or none, but not the agent's flags.
func (e *Env) handoffDirs() []string {
	dirs := []string{config.DefaultHandoffDir}
	if dir := e.Variable("UNDERSTUDY_HANDOFF_DIR", ""); dir != "" {
		dirs = append(dirs, dir)
	}
	return dirs
}

// Variable is a variable of the environment, or fallback if it is not set, or empty.
func (e *Env) Variable(name, fallback string) string {
	for _, entry := range e.Environ {
		if value, ok := strings.CutPrefix(entry, name+"="); ok && value != "" {
			return value
		}
	}
	return fallback
}
