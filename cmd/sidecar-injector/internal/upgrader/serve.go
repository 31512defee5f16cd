package upgrader

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"

	"understudy.mesh/cmd/sidecar-injector/internal/leader"
	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
)

// NamespaceLabel is the label with the value enabled of namespaces in which the Deployment of the upgrader works.
const NamespaceLabel = "understudy.mesh/upgrader"

// settingsAgain is when the settings of a namespace that could not be read are read again.
const settingsAgain = 10 * time.Second

// Settings says of a namespace which setting of a pod only a new one would get, as it is known now.
type Settings func(ctx context.Context, namespace string) (outdated func(*corev1.Pod) string, err error)

// Serve works on the upgrades of every namespace until ctx ends, in one replica at a time: by a Lease of the namespace own.
func (u *Upgrader) Serve(ctx context.Context, own string, settings Settings) error {
	lease := leader.Lease{Client: u.leases, Namespace: own, Name: deploymentLease, Identity: u.identity}
	return lease.Run(ctx, func(ctx context.Context) {
		u.log.Info("this replica works on upgrades", "lease", deploymentLease)
		u.serve(ctx, settings)
	})
}

// asked is what is known of the upgrade of a namespace.
type asked struct {
	namespace string
	open      bool // there is something to do
}

// serve has an engine for each namespace with something to do.
func (u *Upgrader) serve(ctx context.Context, settings Settings) {
	ctx, cancel := context.WithCancel(ctx)
	states := make(chan asked)
	s := &seen{}
	s.follow(ctx, u.upgrades(""), &unstructured.Unstructured{}, nil, u.states(ctx, states))
	engines := map[string]context.CancelFunc{}
	var working sync.WaitGroup
	defer func() {
		cancel()
		working.Wait()
		s.working.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-states:
			stop, runs := engines[a.namespace]
			switch {
			case a.open && !runs:
				engine, stop := context.WithCancel(ctx)
				engines[a.namespace] = stop
				working.Go(func() { u.engine(engine, a.namespace, settings) })
			case !a.open && runs:
				stop()
				delete(engines, a.namespace)
			}
		}
	}
}

// states tells of each upgrade whether there is something to do.
func (u *Upgrader) states(ctx context.Context, states chan<- asked) cache.ResourceEventHandler {
	tell := func(object any, there bool) {
		o, ok := last(object).(*unstructured.Unstructured)
		if !ok {
			return
		}
		upgrade, err := decode(o)
		if err != nil {
			u.log.Error("an upgrade cannot be read, and nobody works on it", "err", err)
		}
		select {
		case states <- asked{o.GetNamespace(), there && err == nil && !over(upgrade)}:
		case <-ctx.Done():
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { tell(o, true) }, UpdateFunc: func(_, o any) { tell(o, true) }, DeleteFunc: func(o any) { tell(o, false) },
	}
}

// over reports whether all that was asked for has come to an end, good or bad.
func over(u *rollout.SidecarUpgrade) bool {
	return u.Status.Finished != nil && u.Status.ObservedGeneration == u.Generation
}

// engine works on one namespace, by its settings as they are when it begins.
func (u *Upgrader) engine(ctx context.Context, namespace string, settings Settings) {
	said := ""
	for ctx.Err() == nil {
		outdated, err := settings(ctx, namespace)
		if err == nil {
			err = u.With(outdated).Run(ctx, namespace, func(holder string) {
				u.log.Info("another engine works on the namespace", "namespace", namespace, "holder", holder)
			})
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said { // once, not every few seconds
			u.log.Warn("the upgrade of a namespace waits", "namespace", namespace, "err", err)
			said = text
		}
		select {
		case <-ctx.Done():
		case <-time.After(settingsAgain):
		}
	}
}
