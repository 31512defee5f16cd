package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/hotrestart"
	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
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
	id, connections, sockets := g.ID, "", ""
	if g.Self {
		id += " *"
	}
	if g.Role == string(handoff.RoleDraining) {
		connections = left(g)
	}
	if g.Error == "" {
		sockets = strconv.Itoa(len(g.Sockets))
	}
	return []string{id, g.Role, v.age(g.Since), g.AgentVersion, g.EnvoyVersion, connections, sockets, v.last(g)}
}

// left is what a drain waits for; "" while nothing was counted yet.
func left(g contract.GenerationStatus) string {
	if g.Drain == nil && g.Connections == 0 {
		return ""
	}
	text := strconv.Itoa(g.Connections)
	if g.Drain == nil {
		return text
	}
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{g.Drain.Idle, "idle"}, {g.Drain.Active, "active"}, {g.Drain.Streams, "streams"}, {g.Drain.TCP, "TCP"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	return text
}

// last is the last hand-off, or why the generation did not answer.
func (v upgradeView) last(g contract.GenerationStatus) string {
	if g.Error != "" {
		return "no answer: " + g.Error
	}
	a := g.LastAttempt
	if a == nil {
		return ""
	}
	when, direction := v.age(a.At)+" ago", "to"
	if a.Result == "running" {
		when = "for " + v.age(a.At)
	}
	if a.TakingOver {
		direction = "from"
	}
	text := fmt.Sprintf("%s %s, %s %s", a.Result, when, direction, a.With)
	if a.Reason != "" {
		text += ": " + a.Reason
	}
	return text
}

// age is how long ago t was, "" for never.
func (v upgradeView) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return cli.Briefly(v.now.Sub(t))
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
