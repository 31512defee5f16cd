package serve

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// A leader that is gone without a word is followed by another after leaseLife and a retry, so that whatever it should have
// mended is mended within 30 s.
const (
	leaseLife     = 12 * time.Second
	renewDeadline = 8 * time.Second
	retryEvery    = 2 * time.Second
)

// lead runs work while this replica is the one that writes, by a lease of that name, again and again until ctx ends. Two replicas of different releases
// that both wrote would undo each other's configuration for as long as a rollout takes.
func lead(ctx context.Context, config *rest.Config, o Options, lease string, log *slog.Logger, work func(context.Context)) error {
	client, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: lease}, Client: client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
	}
	for ctx.Err() == nil {
		t := term{work: work}
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: leaseLife, RenewDeadline: renewDeadline, RetryPeriod: retryEvery, ReleaseOnCancel: true, Name: lease,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					log.Info("this replica is the one that writes", "lease", lease)
					t.begin(ctx)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("elect who keeps the configuration: %w", err)
		}
		elector.Run(ctx)
		t.end()
	}
	return nil
}

// term is one replica's time as the one that writes. The elector begins it on a goroutine that it does not wait for.
type term struct {
	work func(context.Context)

	mu      sync.Mutex
	over    bool
	working sync.WaitGroup
}

func (t *term) begin(ctx context.Context) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		return
	}
	t.working.Add(1)
	t.mu.Unlock()
	defer t.working.Done()
	t.work(ctx)
}

// end waits until the work has ended, and keeps it from beginning.
func (t *term) end() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.working.Wait()
}
