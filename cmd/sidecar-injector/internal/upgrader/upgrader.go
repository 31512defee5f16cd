// Package upgrader owns the way of an upgrade in place to a cluster: it tells the engine of package rollout what there is, does what
// that decides, and is the only one that does so in a namespace, by a Lease. It writes no faster than an API server likes.
package upgrader

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/profile"
)

const (
	// requestRate and requestBurst bound what the API server is asked in a second: sixty together.
	requestRate, requestBurst = 50, 10
	// callLimit is how long one call of the API server may take.
	callLimit = 30 * time.Second
	// fieldManager is who we are to the API server.
	fieldManager = "sidecar-upgrade"
)

// The kinds that are asked for by their names.
var (
	upgradesResource = schema.GroupVersionResource{Group: profile.Group, Version: profile.Version, Resource: rollout.Resource}
	budgetsResource  = schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
)

// Upgrader does the upgrades of a cluster.
type Upgrader struct {
	pods     rest.Interface
	objects  dynamic.Interface
	leases   coordinationv1.CoordinationV1Interface
	identity string
	// outdated says which setting of a pod only a new one would get.
	outdated func(*corev1.Pod) string
	dial     func(ctx context.Context, network, address string) (net.Conn, error) // to agents
	executor *executor
	byExec   bool // agents are asked by that as well
	log      *slog.Logger
}

// New returns an upgrader for a cluster. It asks nothing yet. identity is by whom Leases are held.
func New(config *rest.Config, identity string, log *slog.Logger) (*Upgrader, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = fieldManager
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(requestRate, requestBurst) // one for all clients
	u := &Upgrader{
		identity: identity, outdated: func(*corev1.Pod) string { return "" }, dial: (&net.Dialer{Timeout: directLimit}).DialContext, log: log,
	}
	var err error
	if u.objects, err = dynamic.NewForConfig(config); err == nil {
		u.leases, err = coordinationv1.NewForConfig(config)
	}
	if err == nil {
		core := rest.CopyConfig(config)
		core.APIPath, core.GroupVersion, core.NegotiatedSerializer = "/api", &corev1.SchemeGroupVersion, scheme.Codecs.WithoutConversion()
		core.ContentType, core.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
		u.pods, err = rest.RESTClientFor(core)
	}
	if err == nil {
		u.executor, err = newExecutor(config)
	}
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return u, nil
}

// With is the same upgrader for pods of which is known which of their settings only a new pod would get.
func (u *Upgrader) With(outdated func(*corev1.Pod) string) *Upgrader {
	other := *u
	other.outdated = outdated
	return &other
}

// ByExec is the same upgrader that asks agents by exec as well, where it reaches none in another way: it needs the right to create
// pods/exec, with which it could do anything in them.
func (u *Upgrader) ByExec() *Upgrader {
	other := *u
	other.byExec = true
	return &other
}

// call bounds one call.
func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callLimit)
}
