package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/versions"
)

// versionsOptions are the flags of versions.
type versionsOptions struct {
	fleet              fleetFlags
	below, envoyBelow  string
	direct             bool
	output, kubeconfig string
}

func newVersionsCommand() *cobra.Command {
	var o versionsOptions
	cmd := &cobra.Command{
		Use:   "versions -A",
		Short: "Say which agents, Envoys and images run in the pods",
		Long: `Asks the agent of each pod that has a sidecar which generations serve connections in it, and with which agent and Envoy, and says beside it which image
its container runs, by the digest that the kubelet reports. A generation that drains counts as well: it serves the connections that it has.

With --below or --envoy-below every pod has to answer: a lower version, one that is no release, and no answer at all are named, and the exit status is 1.`,
		Example: "  sidecar-injector versions -A --below v1.2.3\n  sidecar-injector versions -n shop --envoy-below 1.40.0 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			limits, err := o.validate()
			if err != nil {
				return err
			}
			return runtimeError(o.run(cmd.Context(), limits, cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.fleet.namespace, "namespace", "n", "", "namespace of the pods")
	f.BoolVarP(&o.fleet.all, "all-namespaces", "A", false, "the pods of all namespaces")
	f.StringVar(&o.below, "below", "", "name the pods whose agent is of a lower version, and exit with 1 if there are any")
	f.StringVar(&o.envoyBelow, "envoy-below", "", "the same of their Envoy")
	f.BoolVar(&o.direct, "direct", false, "ask the pods at their addresses, from within the cluster, instead of through the API server")
	f.StringVarP(&o.output, "output", "o", "", "json, or a table")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as kubectl does)")
	return cmd
}

func (o versionsOptions) validate() (limits versions.Limits, err error) {
	if err := o.fleet.check(); err != nil {
		return limits, err
	}
	if o.output != "" && o.output != "json" {
		return limits, fmt.Errorf("flag -o: %q: give json, or nothing for a table", o.output)
	}
	if o.below != "" {
		if limits.Agent, err = versions.Parse(o.below); err != nil {
			return limits, fmt.Errorf("flag --below: %w", err)
		}
	}
	if o.envoyBelow != "" {
		if limits.Envoy, err = versions.Parse(o.envoyBelow); err != nil {
			return limits, fmt.Errorf("flag --envoy-below: %w", err)
		}
	}
	return limits, nil
}

func (o versionsOptions) run(ctx context.Context, limits versions.Limits, out io.Writer) error {
	c, err := cluster.Open(o.kubeconfig)
	if err != nil {
		return err
	}
	ask := versions.Ask(c.Ask)
	if o.direct {
		ask = cluster.AskDirectly
	}
	all, err := versions.Of(ctx, c, o.fleet.namespace, ask, limits)
	if err != nil {
		return err
	}
	write := versions.WriteText
	if o.output == "json" {
		write = versions.WriteJSON
	}
	if err := write(out, all); err != nil {
		return err
	}
	below := 0
	for _, g := range all {
		if g.Below != "" {
			below++
		}
	}
	if below > 0 {
		return fmt.Errorf("%d of %d are below, or not known", below, len(all))
	}
	return nil
}
