package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/overview"
)

// upgradeStatusTimeout bounds the request: the agent asks the other generations one after
// another, for at most 2 s each.
const upgradeStatusTimeout = 15 * time.Second

func newUpgradeStatusCommand(e *cli.Env) *cobra.Command {
	var output cli.Output
	var sockets bool
	cmd := &cobra.Command{
		Use:   "upgrade-status",
		Short: "Show the pod's generations: who serves, who drains, and how the last upgrade went",
		Long: `Asks this container's agent about all live generations of the pod: their roles and versions, the connections
left while draining, and the last hand-off of each: from the generation that it took over from, or to the one that
took over from it, with the reason if it failed. * marks the agent that was asked.

In brackets is what the connections that are left hold: HTTP connections that are idle, active requests (streams of
gRPC and server-sent events among them), upgraded streams (WebSocket, CONNECT), and TCP connections. Of requests and
streams an HTTP/2 connection may have many.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), upgradeStatusTimeout)
			defer cancel()
			status, raw, err := e.Client().UpgradeStatus(ctx)
			if err != nil {
				return err
			}
			if output.IsJSON() {
				return cli.PrintJSON(e.Stdout, json.RawMessage(raw))
			}
			v := upgradeView{now: time.Now(), sockets: sockets}
			v.print(e.Stdout, status)
			return nil
		},
	}
	output.AddFlag(cmd, "o")
	cmd.Flags().BoolVar(&sockets, "sockets", false, "list the listening sockets that each generation holds")
	return cmd
}

// upgradeView renders an UpgradeStatus for a terminal.
type upgradeView struct {
	now     time.Time
	sockets bool
}

func (v upgradeView) print(w io.Writer, s contract.UpgradeStatus) {
	t := cli.NewTable(w, "GENERATION", "ROLE", "SINCE", "AGENT", "ENVOY", "CONNECTIONS", "SOCKETS", "LAST ATTEMPT")
	for _, g := range s.Generations {
		t.Add(v.row(g)...)
	}
	t.End()
	if s.HandoffDir == "" {
		fmt.Fprintf(w, "\nHot upgrade is off: %s\n", cmp.Or(control.OneLine(s.Off), "the agent gives no reason"))
	}
	if !v.sockets {
		return
	}
	for _, g := range s.Generations {
		fmt.Fprintf(w, "\nSockets of %s:\n", cmp.Or(control.OneLine(g.ID), "-"))
		for _, line := range socketLines(g.Sockets) {
			fmt.Fprintf(w, "  %s\n", line)
		}
	}
}

// row is one generation; "" is for what does not apply or is unknown.
func (v upgradeView) row(g contract.GenerationStatus) []string {
	id, since, sockets := g.ID, "", ""
	if g.Self {
		id += " *"
	}
	if !g.Since.IsZero() {
		since = control.Briefly(v.now.Sub(g.Since))
	}
	if g.Error == "" {
		sockets = strconv.Itoa(len(g.Sockets))
	}
	return []string{id, g.Role, since, g.AgentVersion, g.EnvoyVersion, overview.Connections(g), sockets, overview.LastAttempt(v.now, g)}
}

// socketLines lists sockets; those of one Envoy listener share a line.
func socketLines(names []string) []string {
	workers := map[string]int{}
	for _, name := range names {
		address, _, _ := hotrestart.ParseEnvoySocketName(name)
		workers[address]++
	}
	var lines []string
	for _, name := range names {
		address, _, ofEnvoy := hotrestart.ParseEnvoySocketName(name)
		switch n := workers[address]; {
		case !ofEnvoy:
			lines = append(lines, control.OneLine(name))
		case n > 0:
			lines = append(lines, fmt.Sprintf("envoy %s (%d)", control.OneLine(address), n))
			workers[address] = 0
		}
	}
	if len(lines) == 0 {
		return []string{"none"}
	}
	return lines
}
