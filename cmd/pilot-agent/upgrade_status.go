package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/control"
)

// upgradeStatusTimeout bounds the question: the agent asks every other generation in
// its turn, each of which has 2 s.
const upgradeStatusTimeout = 15 * time.Second

func newUpgradeStatusCommand(e *env) *cobra.Command {
	var output string
	var sockets bool
	cmd := &cobra.Command{
		Use:   "upgrade-status",
		Short: "Show the pod's generations: who serves, who drains, and how the last upgrade went",
		Long: `Asks the agent of this container about the generations of the pod that live: roles, versions,
connections left while draining, and the last hand-off of each: from the generation that it took over from, or to
the one that it gave to, with the reason where it failed. * is the agent that was asked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), upgradeStatusTimeout)
			defer cancel()
			status, raw, err := e.client().UpgradeStatus(ctx)
			if err != nil {
				return err
			}
			if output == "json" {
				return printIndented(e.Stdout, raw)
			}
			v := upgradeView{now: time.Now(), sockets: sockets}
			v.print(e.Stdout, status)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.Flags().BoolVar(&sockets, "sockets", false, "list the listening sockets that each generation holds")
	completeFlag(cmd, "output", "table", "json")
	return cmd
}

func printIndented(w io.Writer, raw []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(raw), "", "  "); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// upgradeView renders an UpgradeStatus for a terminal.
type upgradeView struct {
	now     time.Time
	sockets bool
}

func (v upgradeView) print(w io.Writer, s control.UpgradeStatus) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "GENERATION\tROLE\tSINCE\tAGENT\tENVOY\tCONNECTIONS\tSOCKETS\tLAST ATTEMPT")
	for _, g := range s.Generations {
		fmt.Fprintln(tw, strings.Join(v.row(g), "\t"))
	}
	tw.Flush()
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

// row is one generation; "-" is what does not apply or is not known.
func (v upgradeView) row(g control.GenerationStatus) []string {
	id, connections, sockets := control.OneLine(g.ID), "", ""
	if g.Self {
		id += " *"
	}
	if g.Role == string(hotrestart.RoleDraining) {
		connections = strconv.Itoa(g.Connections)
	}
	if g.Error == "" {
		sockets = strconv.Itoa(len(g.Sockets))
	}
	row := []string{id, control.OneLine(g.Role), v.age(g.Since), control.OneLine(g.AgentVersion), control.OneLine(g.EnvoyVersion), connections, sockets, v.last(g)}
	for i := range row {
		row[i] = cmp.Or(row[i], "-")
	}
	return row
}

// last is the last hand-off, or why the generation does not tell.
func (v upgradeView) last(g control.GenerationStatus) string {
	if g.Error != "" {
		return "no answer: " + control.OneLine(g.Error)
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
	text := fmt.Sprintf("%s %s, %s %s", control.OneLine(a.Result), when, direction, control.OneLine(a.With))
	if a.Reason != "" {
		text += ": " + control.OneLine(a.Reason)
	}
	return text
}

// age is how long ago t was. "" is never.
func (v upgradeView) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return briefly(v.now.Sub(t))
}

// briefly shows a duration to two units at most: 42s, 5m12s, 3h7m, 2d4h. One below zero
// is none: the clocks of two containers are one, but it may be set back.
func briefly(d time.Duration) string {
	const day = 24 * time.Hour
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// socketLines lists sockets, those of one Envoy listener on one line.
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
