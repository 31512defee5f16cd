// Package doctor owns `pilot-agent doctor`: what is wrong with a pod's capture, and why a
// connection goes where it does.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables"
)

// New returns the command.
func New(e *cli.Env, host iptablescmd.Host) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong with a pod's capture, and why a connection goes where it does",
	}
	cmd.AddCommand(newCaptureCommand(e, host), newTraceCommand(e, host))
	return cmd
}

// readCapture reads the rules in force, which a container can only with privileges.
func readCapture(ctx context.Context, log *slog.Logger) (*iptables.Snapshot, error) {
	s, err := iptables.Read(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("%w (an ephemeral container: from this agent's image, which has iptables, by kubectl debug --profile=netadmin, as user 0)", err)
	}
	return s, nil
}

// errNotRight ends a check that has found something: exit status 1.
var errNotRight = errors.New("capture is not as it should be")
