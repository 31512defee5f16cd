package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/carry"
	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

// importOptions are the flags of import.
type importOptions struct {
	files          []string // none: the cluster is asked
	root, revision string
	kubeconfig     string
}

func newImportCommand(stdin io.Reader) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import [-f FILE]",
		Short: "Print the settings of Istio's injector as SidecarProfiles",
		Long: `Reads the ConfigMaps istio and istio-sidecar-injector and ProxyConfig objects, from the cluster that kubectl would ask or from
files, and prints SidecarProfiles that say the same. What cannot be carried is listed on stderr, and the exit status is 1. It changes
nothing.

  kubectl get configmaps,proxyconfigs.networking.istio.io -A -o yaml | sidecar-injector import -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.files) > 0 && (o.kubeconfig != "" || o.revision != "") {
				return errors.New("flags --kubeconfig and --revision are of the cluster, and -f reads files: give one")
			}
			return runtimeError(o.run(cmd.Context(), stdin, cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file of Istio's objects, instead of the cluster's; - is stdin; may be given several times")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as kubectl does)")
	f.StringVar(&o.root, "root-namespace", "istio-system", "Istio's root namespace, which has its ConfigMaps, and whose ProxyConfig is the mesh's")
	f.StringVar(&o.revision, "revision", "", "the revision of Istio, if it was installed with one: ConfigMap istio-REVISION")
	return cmd
}

func (o importOptions) run(ctx context.Context, stdin io.Reader, out io.Writer) error {
	outcome := carry.New(o.root)
	if err := o.read(ctx, stdin, outcome); err != nil {
		return err
	}
	if outcome.Found() == 0 {
		return o.nothing()
	}
	text, lost, err := outcome.Profiles(offline.InjectorNamespace)
	if err != nil {
		return err
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	if len(lost) > 0 {
		return fmt.Errorf("not carried:\n  %s", strings.Join(lost, "\n  "))
	}
	return nil
}

// read gives Istio's objects to outcome.
func (o importOptions) read(ctx context.Context, stdin io.Reader, outcome *carry.Outcome) error {
	for _, file := range o.files {
		if err := offline.EachObject(file, stdin, outcome.Add); err != nil {
			return err
		}
	}
	if len(o.files) > 0 {
		return nil
	}
	c, err := cluster.Open(o.kubeconfig)
	if err != nil {
		return fmt.Errorf("%w; or give files of Istio's objects: -f FILE", err)
	}
	return c.Istio(ctx, o.root, o.revision, outcome.Add)
}

// nothing is the error that Istio's settings were not found.
func (o importOptions) nothing() error {
	if len(o.files) > 0 {
		return errors.New("none of the files has a ConfigMap istio or istio-sidecar-injector, or a ProxyConfig")
	}
	return fmt.Errorf("namespace %s of the cluster has no ConfigMap %s or %s, and there is no ProxyConfig: where Istio is, say --root-namespace and --revision",
		o.root, cluster.Revisioned("istio", o.revision), cluster.Revisioned("istio-sidecar-injector", o.revision))
}
