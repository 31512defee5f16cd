package main

import (
	"context"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/configcmd"
	"understudy.mesh/cmd/pilot-agent/internal/dnscmd"
	"understudy.mesh/cmd/pilot-agent/internal/doctor"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/cmd/pilot-agent/internal/wasmcmd"
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
	host := iptablescmd.ThisHost()
	root.AddCommand(
		newProxyCommand(e),
		newWaitCommand(e),
		newRequestCommand(e),
		newUpgradeStatusCommand(e),
		newStatusCommand(e),
		configcmd.New(e),
		dnscmd.New(e),
		doctor.New(e, host, loadSettings),
		iptablescmd.New(e, host, doctor.Check),
		iptablescmd.NewClean(e, host, doctor.Check),
		wasmcmd.New(e, loadSettings),
		newVersionCommand(e),
	)
	return root
}
