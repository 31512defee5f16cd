// Package leader owns who of several processes does a work that only one may do, by a Lease.
package leader

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
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

// Lease is the one that is held.
type Lease struct {
	Client          coordinationv1.LeasesGetter
	Namespace, Name string
	// Identity is who holds it.
	Identity string
	// Lost is called when somebody else holds it, with who; it may be nil.
	Lost func(holder string)
}

// Run runs work while this process holds the Lease, again and again until ctx ends.
func (l Lease) Run(ctx context.Context, work func(context.Context)) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: l.Name}, Client: l.Client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: l.Identity},
	}
	for ctx.Err() == nil {
		t := term{work: work}
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: leaseLife, RenewDeadline: renewDeadline, RetryPeriod: retryEvery, ReleaseOnCancel: true, Name: l.Name,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: t.begin,
				OnStoppedLeading: func() {},
				OnNewLeader: func(holder string) {
					if holder != l.Identity && l.Lost != nil {
						l.Lost(holder)
					}
				},
			},
		})
		if err != nil {
			return fmt.Errorf("hold the Lease %s/%s: %w", l.Namespace, l.Name, err)
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
