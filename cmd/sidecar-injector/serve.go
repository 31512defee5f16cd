package main

import (
	"cmp"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/serve"
	"understudy.mesh/pkg/inject/webhook"
	"understudy.mesh/pkg/logging"
)

func newServeCommand() *cobra.Command {
	var (
		o          serve.Options
		kubeconfig string
		levels     string
		asJSON     bool
	)
	c := &cobra.Command{
		Use: "serve", Short: "Serve the admission webhook", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.Check(); err != nil {
				return err
			}
			scopes, err := logging.ParseLevels(levels)
			if err != nil {
				return fmt.Errorf("--log_output_level %q: %w", levels, err)
			}
			log := logging.New(c.ErrOrStderr(), logging.Options{JSON: asJSON, Levels: scopes})
			klog.SetSlogLogger(logging.For(log, "client-go"))
			config, err := clusterConfig(kubeconfig)
			if err != nil {
				return runtimeError(err)
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log.Info("sidecar-injector", "version", version, "namespace", o.Namespace, "identity", o.Identity)
			return runtimeError(serve.Run(ctx, config, o, log))
		},
	}
	host, _ := os.Hostname() // "" is an identity as well, if there is one replica
	o.Identity = cmp.Or(os.Getenv("POD_NAME"), fmt.Sprintf("%s-%d", host, os.Getpid()))
	f := c.Flags()
	f.StringVar(&o.Namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), offline.InjectorNamespace), "the injector's own namespace, whose SidecarProfile is the mesh's")
	f.StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server, outside of a cluster")
	f.StringVar(&o.Address, "address", ":15017", "where the webhook listens, with HTTPS")
	f.StringVar(&o.StatusAddress, "status-address", ":15014", "where /metrics, /healthz and /readyz are, with HTTP")
	f.BoolVar(&o.DefaultRevision, "default-revision", true, "take the pods of namespaces with istio-injection=enabled")
	f.StringSliceVar(&o.Tags, "revision-tags", nil, "values of istio.io/rev that are ours, besides understudy")
	f.StringVar(&o.URL, "url", "", "where the API server asks instead of the Service "+webhook.Name+", if the injector is not in the cluster")
	f.StringVar(&o.CertFile, "tls-cert-file", "", "the webhook's certificate; without it the injector has an authority of its own, in a Secret")
	f.StringVar(&o.KeyFile, "tls-key-file", "", "the key of --tls-cert-file")
	f.StringVar(&o.CAFile, "tls-ca-file", "", "whom the API server is to trust for --tls-cert-file; without it somebody else writes caBundle")
	f.DurationVar(&o.Lives.CA, "ca-life", 365*24*time.Hour, "how long an own authority is valid; the next one is made when a third of it is left")
	f.DurationVar(&o.Lives.Leaf, "leaf-life", 24*time.Hour, "how long a certificate of an own authority is valid; it is made anew at half of it")
	f.DurationVar(&o.Settle, "ca-settle", time.Minute, "how long API servers may take to go by a caBundle that is stored: a new authority signs no earlier")
	f.BoolVar(&o.Filters, "filters", false, "serve no webhook, but keep an EnvoyFilter for each ASMFilterDeployment")
	f.DurationVar(&o.Linger, "linger", 5*time.Second, "how long a replica that is to stop is unready before its port closes")
	f.StringVar(&levels, "log_output_level", "default:info", "what is logged: scope:level,...")
	f.BoolVar(&asJSON, "log_as_json", false, "log JSON")
	return c
}

// clusterConfig is how to reach the API server: by a file, or as a pod.
func clusterConfig(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil && kubeconfig == "" {
		return nil, fmt.Errorf("reach the API server as a pod: %s (outside of a cluster: --kubeconfig)", strings.TrimSpace(err.Error()))
	}
	if err != nil {
		return nil, fmt.Errorf("reach the API server by --kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}
