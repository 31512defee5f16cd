package serve

import (
	"context"
	"fmt"
	"log/slog"

	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"understudy.mesh/cmd/sidecar-injector/internal/leader"
)

// lead runs work while this replica is the one that writes, by a lease of that name, again and again until ctx ends. Two replicas of different releases
// that both wrote would undo each other's configuration for as long as a rollout takes.
func lead(ctx context.Context, config *rest.Config, o Options, lease string, log *slog.Logger, work func(context.Context)) error {
	client, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	held := leader.Lease{Client: client, Namespace: o.Namespace, Name: lease, Identity: o.Identity}
	return held.Run(ctx, func(ctx context.Context) {
		log.Info("this replica is the one that writes", "lease", lease)
		work(ctx)
	})
}
