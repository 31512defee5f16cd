package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/restart"
	"understudy.mesh/cmd/sidecar-injector/internal/terminal"
)

// restartOptions are the flags of restart.
type restartOptions struct {
	namespace, kubeconfig, kubelet string
	revisionTags                   []string
	restart.Options
}

func newRestartCommand() *cobra.Command {
	var o restartOptions
	cmd := &cobra.Command{
		Use:   "restart -n NAMESPACE",
		Short: "Restart the workloads whose pods would be injected otherwise now",
		Long: `Gives new pods to those workloads of a namespace whose pods differ from what they would get if they were made now, and says why: another image,
other settings, injected or not. Deployments, StatefulSets, DaemonSets and OpenKruise's kinds roll as they do for kubectl rollout restart, a Rollout of
Argo by its spec.restartAt; of a ReplicaSet by itself, and where the strategy is OnDelete or in place, pods are evicted one by one. What is paused, Jobs
and pods that nobody makes anew are named and left alone.

When the new pods of a workload do not come, or not as they should, no other one is begun. An interrupt (Ctrl-C) begins no other one either, a second one
does not wait for those under way. Run it again to go on.

Exit status: 0 every pod is as it would be, 1 some are not, and are named, 2 a wrong command line.`,
		Example: "  sidecar-injector restart -n shop --dry-run\n  sidecar-injector restart -n shop",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return runtimeError(o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of the workloads")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would be restarted, and why, and do nothing")
	f.BoolVar(&o.All, "all", false, "restart also what does not differ")
	f.IntVar(&o.Workloads, "workloads", 5, "how many workloads are restarted at a time")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "how long nothing may go on with a workload before it has failed")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as kubectl does)")
	f.StringVar(&o.kubelet, "kubelet-version", "", "that of the oldest node, such as v1.33.0 (default: the nodes say)")
	f.StringSliceVar(&o.revisionTags, "revision-tags", nil, "as serve has them: values of istio.io/rev that are ours, besides understudy")
	return cmd
}

func (o restartOptions) validate() error {
	switch {
	case o.namespace == "":
		return errors.New("flag -n: give the namespace of the workloads")
	case o.Workloads < 1:
		return fmt.Errorf("flag --workloads: %d: give 1 or more", o.Workloads)
	case o.Timeout <= 0:
		return fmt.Errorf("flag --timeout: %s: give a duration, such as 10m", o.Timeout)
	}
	return checkKubelet(o.kubelet)
}

func (o restartOptions) run(ctx context.Context, out, notes io.Writer) error {
	c, err := cluster.Open(o.kubeconfig)
	if err != nil {
		return err
	}
	settings, err := o.settings(ctx, c)
	if err != nil {
		return err
	}
	interrupted, uncaught := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer uncaught()
	unsaid := context.AfterFunc(interrupted, func() {
		uncaught() // the next one ends the command
		fmt.Fprintln(notes, "nothing new is begun; interrupt again to leave what is under way to the cluster")
	})
	defer unsaid()
	o.Stop = interrupted.Done()
	o.Live = terminal.Is(out)
	return restart.Run(ctx, c, settings, o.Options, out)
}

// settings are those of the cluster: what the injector would go by.
func (o restartOptions) settings(ctx context.Context, c *cluster.Cluster) (restart.Settings, error) {
	profiles, err := offline.ReadProfiles(nil, "") // the injector has no default image
	if err != nil {
		return restart.Settings{}, err
	}
	profiles.Tags = o.revisionTags
	for _, namespace := range slices.Compact([]string{offline.InjectorNamespace, o.namespace}) {
		if err := c.AddProfile(ctx, profiles, namespace); err != nil {
			return restart.Settings{}, err
		}
	}
	s := restart.Settings{Profiles: profiles}
	if s.Namespace, err = c.Namespace(ctx, o.namespace); err != nil {
		return s, err
	}
	s.Modern, err = modernNodes(ctx, c, o.kubelet)
	return s, err
}
