package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/upgrader"
	"understudy.mesh/pkg/logging"
)

func newUpgraderCommand() *cobra.Command {
	var (
		kubeconfig, levels, namespace string
		asJSON                        bool
	)
	c := &cobra.Command{
		Use: "upgrader", Short: "Work on the upgrades that are asked for in a cluster", Args: cobra.NoArgs,
		Long: `Does what the command upgrade asks for in every namespace, until it is ended: the program of deploy/sidecar-upgrader.yaml, with an account of its
own that can do no more. The command then only shows how it goes.`,
		RunE: func(c *cobra.Command, _ []string) error {
			scopes, err := logging.ParseLevels(levels)
			if err != nil {
				return fmt.Errorf("--log_output_level %q: %w", levels, err)
			}
			spareMemory()
			log := logging.New(c.ErrOrStderr(), logging.Options{JSON: asJSON, Levels: scopes})
			klog.SetSlogLogger(logging.For(log, "client-go"))
			config, err := kubectlConfig(kubeconfig)
			if err != nil {
				return runtimeError(err)
			}
			host, _ := os.Hostname() // "" is an identity as well
			identity := cmp.Or(os.Getenv("POD_NAME"), fmt.Sprintf("%s-%d", host, os.Getpid()))
			u, err := upgrader.New(config, identity, logging.For(log, "upgrader"))
			if err != nil {
				return runtimeError(err)
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log.Info("sidecar-injector upgrader", "version", version, "namespace", namespace, "identity", identity)
			flags := settingsFlags{kubeconfig: kubeconfig}
			return runtimeError(u.Serve(ctx, namespace, func(ctx context.Context, of string) (func(*corev1.Pod) string, error) {
				check, err := newSettingsCheck(ctx, &flags, of, c.ErrOrStderr())
				if err == nil && !check.deployed() {
					err = fmt.Errorf("it has no label %s=enabled: its users upgrade by the command alone", upgrader.NamespaceLabel)
				}
				if err != nil {
					return nil, err
				}
				return check.outdated, nil
			}))
		},
	}
	f := c.Flags()
	f.StringVar(&namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), offline.InjectorNamespace), "the injector's own namespace, with the Lease by which one replica works")
	f.StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server (default: as a pod, or as kubectl does)")
	f.StringVar(&levels, "log_output_level", "default:info", "what is logged: scope:level,...")
	f.BoolVar(&asJSON, "log_as_json", false, "log JSON")
	return c
}
