package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/carry"
	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/preflight"
	"understudy.mesh/pkg/inject"
)

// preflightOptions are the flags of preflight.
type preflightOptions struct {
	fleet               fleetFlags
	files               []string
	root, revision      string
	kubeconfig, kubelet string
}

func newPreflightCommand() *cobra.Command {
	var o preflightOptions
	cmd := &cobra.Command{
		Use:   "preflight -A",
		Short: "Say what a move from Istio's injector would change",
		Long: `Looks at each workload that Istio injects, and says what its pods would have otherwise if its namespace were labelled istio.io/rev=understudy: what would
break (blocker), what the proxy's containers would have otherwise, and the volumes, metadata and pod-wide fields around them, what the injector would warn of.
The settings are those that import makes of Istio's, or those of --settings. It changes nothing.

Exit status: 0 nothing would break, 1 something would, 2 a wrong command line.`,
		Example: "  sidecar-injector preflight -A\n  sidecar-injector preflight -n shop --settings settings.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return runtimeError(o.run(cmd.Context(), cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.fleet.namespace, "namespace", "n", "", "namespace of the workloads")
	f.BoolVarP(&o.fleet.all, "all-namespaces", "A", false, "the workloads of all namespaces")
	f.StringArrayVar(&o.files, "settings", nil, "file of SidecarProfiles, instead of what import makes of Istio's settings; may be given several times")
	f.StringVar(&o.root, "root-namespace", "istio-system", "as import has it")
	f.StringVar(&o.revision, "revision", "", "as import has it")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as kubectl does)")
	f.StringVar(&o.kubelet, "kubelet-version", "", "that of the oldest node, such as v1.33.0 (default: the nodes say)")
	return cmd
}

func (o preflightOptions) validate() error {
	if err := o.fleet.check(); err != nil {
		return err
	}
	if len(o.files) > 0 && o.revision != "" {
		return errors.New("flags --settings and --revision: give one of them")
	}
	return checkKubelet(o.kubelet)
}

func (o preflightOptions) run(ctx context.Context, out io.Writer) error {
	c, err := cluster.Open(o.kubeconfig)
	if err != nil {
		return err
	}
	settings, lost, err := o.settings(ctx, c)
	if err != nil {
		return err
	}
	owners, err := c.Owners(ctx, o.fleet.namespace)
	if err != nil {
		return err
	}
	for _, line := range lost {
		fmt.Fprintf(out, "settings\n  blocker: not carried: %s\n", line)
	}
	var tally struct{ same, differ, blocked int }
	namespaces := map[string]inject.Namespace{}
	for _, owner := range owners {
		namespace, known := namespaces[owner.Namespace]
		if !known {
			if namespace, err = c.Namespace(ctx, owner.Namespace); err != nil {
				return err
			}
			namespaces[owner.Namespace] = namespace
		}
		report := settings.Of(owner, namespace)
		switch {
		case report == nil:
			continue
		case len(report.Blockers) > 0:
			tally.blocked++
		case len(report.Differences)+len(report.Warnings) > 0:
			tally.differ++
		default:
			tally.same++
		}
		report.Write(out)
	}
	fmt.Fprintf(out, "%d as they are, %d with differences, %d blocked\n", tally.same, tally.differ, tally.blocked)
	if tally.blocked+len(lost) > 0 {
		return fmt.Errorf("%d blockers", tally.blocked+len(lost))
	}
	return nil
}

// settings are those that ours would go by, and what of Istio's they do not say.
func (o preflightOptions) settings(ctx context.Context, c *cluster.Cluster) (s preflight.Settings, lost []string, err error) {
	if s.Profiles, err = offline.ReadProfiles(o.files, defaultImage()); err != nil {
		return s, nil, err
	}
	if len(o.files) == 0 {
		if lost, err = o.carry(ctx, c, s.Profiles); err != nil {
			return s, nil, err
		}
	}
	s.Modern, err = modernNodes(ctx, c, o.kubelet)
	return s, lost, err
}

// carry adds what import makes of Istio's settings.
func (o preflightOptions) carry(ctx context.Context, c *cluster.Cluster, profiles *offline.Profiles) (lost []string, err error) {
	outcome := carry.New(o.root)
	if err := c.Istio(ctx, o.root, o.revision, outcome.Add); err != nil {
		return nil, err
	}
	if outcome.Found() == 0 {
		return nil, importOptions{root: o.root, revision: o.revision}.nothing()
	}
	text, lost, err := outcome.Profiles(offline.InjectorNamespace)
	if err != nil {
		return nil, err
	}
	return lost, offline.EachObject("-", bytes.NewReader(text), func(profile []byte) error {
		if err := profiles.Add(profile); err != nil && len(lost) == 0 { // else it is named there
			return err
		}
		return nil
	})
}
