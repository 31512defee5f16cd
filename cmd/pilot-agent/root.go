package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
)

// env is what main has read of the world. Commands take nothing from elsewhere, so
// that a test can run them in its own process.
type env struct {
	Args           []string // without the program's name
	Environ        []string // "KEY=value"
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	started bool // a command began: what fails from here on is no wrong command line
}

// Exit statuses, part of the command's contract.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// usageError blames the command line: exit status 2.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

// statusError ends the process with a status of the command's own choice, such as
// Envoy's.
type statusError struct {
	status int
	err    error
}

func (s *statusError) Error() string { return s.err.Error() }
func (s *statusError) Unwrap() error { return s.err }

// run executes e.Args and returns the exit status. Every error is printed to Stderr,
// one line each.
func (e *env) run(ctx context.Context) int {
	root := newRootCommand(e)
	root.SetArgs(e.knownArgs(root))
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
	return e.exitStatus(err)
}

func (e *env) exitStatus(err error) int {
	var status *statusError
	var usage *usageError
	switch {
	case errors.As(err, &status):
		return status.status
	case errors.As(err, &usage), config.IsUsage(err), !e.started:
		return exitUsage
	}
	return exitError
}

func newRootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "pilot-agent",
		Short:         "The agent of a pod in the mesh: capture, DNS and Envoy",
		SilenceUsage:  true,
		SilenceErrors: true, // run prints them
	}
	addSettings(root.PersistentFlags(), true)
	root.AddCommand(
		newProxyCommand(e),
		newWaitCommand(e),
		newRequestCommand(e),
		newUpgradeStatusCommand(e),
		newDNSCommand(e),
		newDoctorCommand(e),
		newIptablesCommand(e),
		newCleanIptablesCommand(e),
		newVersionCommand(e),
	)
	e.markStart(root)
	return root
}

// markStart notes when a command's own code begins. Cobra checks flags and arguments
// before that, so an error from earlier is one of usage. A command that only holds
// others prints its help, and refuses a name that none of them has.
func (e *env) markStart(cmd *cobra.Command) {
	if !cmd.Runnable() {
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			e.started = true
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		e.markStart(sub)
	}
}

// warn prints one line that is no error.
func (e *env) warn(format string, args ...any) {
	fmt.Fprintf(e.Stderr, "pilot-agent: warning: "+format+"\n", args...)
}

// client asks the agent of this container. A command that is exec'd has its container's
// environment, or none, and never the agent's flags.
func (e *env) client() *control.Client { return control.NewClient(e.handoffDirs()) }

// handoffDirs are the hand-off directories that this command can know of.
func (e *env) handoffDirs() []string {
	dirs := []string{config.DefaultHandoffDir}
	for _, entry := range e.Environ {
		if dir, ok := strings.CutPrefix(entry, "UNDERSTUDY_HANDOFF_DIR="); ok && dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}
