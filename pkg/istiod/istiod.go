// Package istiod owns the stream to istiod: it asks there for what Envoy asks for, passes on what comes, and tells istiod
// what Envoy says of it. The names of the mesh, which come on the same stream, it brings into force itself.
package istiod

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/istiod/internal/store"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// Readiness tasks.
const (
	taskConfig = "config"
	taskDNS    = "dns"
	taskHBONE  = "hbone"
)

// Config says where istiod is, and where what it says goes.
type Config struct {
	Dial  Dial
	Relay *xds.Relay
	// Node is what Envoy will say that it is, but for what it adds of itself: istiod is asked for clusters and listeners while Envoy
	// starts. nil: Envoy is waited for.
	Node *corev3.Node
	// Warming returns how many clusters and listeners Envoy has taken but does not use yet.
	Warming func(context.Context) (clusters, listeners uint64, err error)
	// Vital are the listeners without which the pod has not the traffic that others send it, or none at all.
	Vital []string
	// Names publishes what becomes different in what DNS answers; nil without DNS capture.
	Names func(set []table.Host, gone []string)
	// Bundle takes the roots that the mesh trusts besides those of its authority, in PEM; nil: istiod is not asked for them.
	Bundle func(roots []string) error
	// Pod is whose short names are answered.
	Pod Pod
	// Health says, until ctx ends, how the application is: nil, or what is wrong; nil: istiod is not told.
	Health func(ctx context.Context, say func(error))
	// Clients are the streams of xDS clients other than Envoy; nil: there are none.
	Clients *Direct
	// VIPs are the ranges whose addresses lead nowhere but to Envoy.
	VIPs  []netip.Prefix
	Ready *status.Readiness
	// MetadataDiscovery says that Envoy's bootstrap asks for the metadata of peers, with which only Istio's Envoy starts.
	MetadataDiscovery bool
	// LastGood is a file in which what istiod has said is kept over a restart of the container; "": nowhere.
	LastGood string
	// LastGoodAge is how old that may be when Envoy starts with it.
	LastGoodAge time.Duration
	// Modules has those of Wasm filters; nil: what istiod says of them goes on as it is.
	Modules *ecds.Relayed
	// PassAll passes on to Envoy what it has already and a new stream of istiod's brings again.
	PassAll bool
	// InForce is called each time that Envoy has answered for listeners.
	InForce func()
	// GiveBack is called when istiod has said much and is quiet: there is memory to give back. nil: nobody wants to know.
	GiveBack func()
	// Log makes the logger of a part of the agent.
	Log func(part string) *slog.Logger
}

// Istiod is the control plane of one generation. It is made by New.
type Istiod struct {
	c       Config
	log     *slog.Logger
	loop    loop
	names   *naming // nil without DNS capture
	lacking lacking
	health  applicationHealth
	resync  chan struct{} // holds a token when everything is to be fetched anew
	keeps   chan struct{} // holds a token when what Envoy has is to be kept at once

	connections, failures, closed, broken, refused atomic.Uint64

	before before
	unfit  chan error // gets why this generation cannot take over, once

	mu    sync.Mutex
	shown shown
}

// shown is what the debug page says of the stream.
type shown struct {
	Address   string    `json:"address"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of Connected
	LastError string    `json:"lastError,omitempty"`
	Refused   string    `json:"refused,omitempty"` // the last response that was not passed on, and why
}

// New checks c, and starts nothing.
func New(c Config) *Istiod {
	i := &Istiod{c: c, log: c.Log("istiod"), shown: shown{Address: c.Dial.Address, Since: time.Now()}, unfit: make(chan error, 1), resync: make(chan struct{}, 1), keeps: make(chan struct{}, 1), health: applicationHealth{news: make(chan struct{}, 1)}}
	c.Ready.Pending(taskConfig, "Envoy has no configuration from istiod at "+c.Dial.Address+" yet")
	if c.MetadataDiscovery {
		c.Ready.Pending(taskHBONE, "Envoy has not started with istio.workload.BootstrapExtension yet, which ISTIO_META_ENABLE_HBONE=true or "+
			"ISTIO_META_METADATA_DISCOVERY=true asks for and only Istio's Envoy has: see Envoy's log, use an image with Istio's Envoy, or set them to false")
	}
	if c.Names != nil {
		c.Ready.Pending(taskDNS, "the DNS table is not ready yet")
		i.names = &naming{c: &i.c, log: i.log, names: publish.NewNames(), waits: all, warm: make(chan bool, 1), patience: patience}
	}
	i.loop = loop{i: i, backoff: newBackoff(), silence: silence, patience: reconcilePatience, giveBack: giveBack{after: giveBackAfter}}
	if c.LastGood != "" {
		i.loop.lastGood.store, i.loop.lastGood.every = store.New(c.LastGood, c.LastGoodAge), storeEvery
	}
	return i
}

// Run waits for ctx to end: what is followed is the stream, which Publish has.
func (i *Istiod) Run(ctx context.Context) error {
	<-ctx.Done()
	i.c.Modules.Close()
	return nil
}

// Unfit gets why this generation had better not take over from the one before, which istiod serves: istiod does not want it, or
// Envoy does not take what that one's has.
func (i *Istiod) Unfit() <-chan error { return i.unfit }

// Publish keeps the stream to istiod open, and brings what comes into force, until ctx ends; then all stays as it is.
func (i *Istiod) Publish(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	if i.c.Health != nil {
		work.Go(func() { i.c.Health(ctx, i.health.say) })
	}
	i.loop.run(ctx)
}

// Keep writes what outlives the container, as this generation ends, without the pauses that spare the disk.
func (i *Istiod) Keep() {
	select {
	case i.keeps <- struct{}{}:
	default: // it is asked for already
	}
}

// Suspends is false: the stream stays open until a successor has settled.
func (i *Istiod) Suspends() bool { return false }

// show changes what the debug page says.
func (i *Istiod) show(change func(*shown)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(&i.shown)
}

func (i *Istiod) now() shown {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.shown
}

// Samples are the metrics.
func (i *Istiod) Samples() []status.Sample {
	connected, age := 0.0, 0.0
	if now := i.now(); now.Connected {
		connected = 1
	} else {
		age = time.Since(now.Since).Seconds()
	}
	samples := []status.Sample{
		{Name: "istiod_connected", Help: "Whether the stream to istiod is open.", Value: connected, Gauge: true},
		{Name: "config_age_seconds", Help: "Time since istiod could last have told of a change; 0 while the stream is open.", Value: age, Gauge: true},
		{Name: "istiod_connections_total", Help: "Streams to istiod that were opened.", Value: float64(i.connections.Load())},
		{Name: "istiod_connection_failures", Help: "Times that no stream to istiod could be opened.", Value: float64(i.failures.Load())},
		{Name: "xds_suppressed_total", Help: "Resources that istiod sent again on a new stream and Envoy, which has them, was not sent.", Value: float64(i.c.Relay.Stats().Suppressed)},
		{Name: "xds_upstream_rejects_total", Help: "Responses of istiod that were not passed on, because they are not what the protocol calls one.", Value: float64(i.refused.Load())},
	}
	for kind, n := range map[string]uint64{"cancelled": i.closed.Load(), "error": i.broken.Load()} { // Istio's words
		samples = append(samples, status.Sample{Name: "istiod_connection_terminations", Help: "Streams to istiod that have ended, in good order (cancelled) or by an error.",
			Labels: map[string]string{"type": kind}, Value: float64(n)})
	}
	for url, s := range i.c.Relay.Status() {
		samples = append(samples, status.Sample{Name: "xds_rejected", Help: "Resources that Envoy does not take in their newest version.",
			Labels: map[string]string{"type": kind(url)}, Value: float64(len(s.Refused)), Gauge: true})
	}
	return append(samples, i.c.Modules.Samples()...)
}
