package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/overview"
)

func newStatusCommand(e *cli.Env) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show on one screen what this container's agent does",
		Long: `Asks this container's agent what it does, in any role: the pod's generations and the last upgrade step by step, what
readiness waits for, what is captured, where the configuration comes from and what of it is not in force, names and
where they lead, DNS servers, and under istiod the stream and the certificate. The page /debug/ of the status port
shows the same.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), upgradeStatusTimeout)
			defer cancel()
			raw, err := e.Client().Ask(ctx, overview.Path)
			if err != nil {
				return err
			}
			if output.IsJSON() {
				return cli.PrintJSON(e.Stdout, raw)
			}
			var o overview.Overview
			if err := json.Unmarshal(raw, &o); err != nil {
				return fmt.Errorf("read the agent's answer: %w", err)
			}
			return o.WriteText(e.Stdout, time.Now())
		},
	}
	output.AddFlag(cmd, "o")
	return cmd
}
