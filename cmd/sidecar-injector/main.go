// Command sidecar-injector puts the agent into pods, as a webhook or in files, explains what it would do, and brings the pods that run up to
// date.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=...).
var version = "dev"

// The exit statuses of the contract.
const (
	exitError = 1 // something failed
	exitUsage = 2 // a wrong command line
)

// failure is what went wrong on a right command line.
type failure struct{ error }

// runtimeError marks an error as one that is not the command line's.
func runtimeError(err error) error {
	if err == nil {
		return nil
	}
	return failure{err}
}

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is main with the world passed in; it returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := command(stdin)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(failure)):
		fmt.Fprintf(stderr, "sidecar-injector: %v\n", err)
		return exitError
	default:
		fmt.Fprintf(stderr, "sidecar-injector: %v; see sidecar-injector --help\n", err)
		return exitUsage
	}
}

func command(stdin io.Reader) *cobra.Command {
	root := &cobra.Command{
		Use:           "sidecar-injector",
		Short:         "Puts the agent into pods",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("a command is required")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "client version: %s\n", version)
			return err
		},
	})
	root.AddCommand(newExplainCommand(stdin), newInjectCommand(stdin), newServeCommand(), newImportCommand(stdin), newSidecarSetCommand(stdin), newRestartCommand(), newVersionsCommand(), newUpgradeCommand(), newUpgraderCommand(), newPreflightCommand())
	return root
}
