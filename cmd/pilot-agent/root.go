package main

import (
	"context"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
)

// run executes e.Args and returns the exit status.
func run(ctx context.Context, e *cli.Env) int {
	root := newRootCommand(e)
	return e.Run(ctx, root, knownArgs(e, root))
}

func newRootCommand(e *cli.Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "pilot-agent",
		Short:         "The agent of a pod in the mesh: capture, DNS and Envoy",
		SilenceUsage:  true,
		SilenceErrors: true, // Env.Run prints them
	}
	cli.AddSettings(root.PersistentFlags(), true)
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
	return root
}
