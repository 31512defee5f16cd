// Package doctor owns `pilot-agent doctor`: it finds what is wrong with a pod's capture and with
// its way to istiod, and why a connection goes where it does.
package doctor

import (
	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
)

// New returns the command. load reads the settings that a proxy here would have.
func New(e *cli.Env, host iptablescmd.Host, load Load) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with a pod's capture or its way to istiod, and why a connection goes where it does",
	}
	cmd.AddCommand(newCaptureCommand(e, host), newTraceCommand(e, host), newIstiodCommand(e, load))
	return cmd
}
