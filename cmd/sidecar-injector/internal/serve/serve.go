// Package serve is the injector in a cluster: the webhook's server, what it knows of the cluster, and what it keeps in it (its
// certificate, its configuration, the conditions of SidecarProfiles).
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"understudy.mesh/cmd/sidecar-injector/internal/certs"
	"understudy.mesh/pkg/inject/webhook"
	"understudy.mesh/pkg/logging"
)

// Options is how the injector serves.
type Options struct {
	// Namespace is the injector's own, Identity who this replica is among others.
	Namespace, Identity string
	// Address is the webhook's, StatusAddress that of metrics and health.
	Address, StatusAddress string
	// DefaultRevision is that the namespace label istio-injection is ours; Tags are what istio.io/rev may say besides our revision.
	DefaultRevision bool
	Tags            []string
	// URL is where the API server asks instead of the Service, if the injector is not in the cluster.
	URL string
	// CertFile and KeyFile are the webhook's certificate; without them the injector has an authority of its own. CAFile is whom
	// the API server is to trust then; without it somebody else tells it.
	CertFile, KeyFile, CAFile string
	// Lives are those of an own authority, Settle how long an API server may take to go by a configuration that is stored.
	Lives  certs.Lives
	Settle time.Duration
	// Filters is that ASMFilterDeployments become EnvoyFilters, and nothing else is done: no webhook is served.
	Filters bool
	// Linger is how long a replica that is to stop is unready before it accepts nobody any more.
	Linger time.Duration
}

// Check says which options do not go together.
func (o Options) Check() error {
	if (o.CertFile == "") != (o.KeyFile == "") {
		return errors.New("--tls-cert-file and --tls-key-file go together")
	}
	if o.CAFile != "" && o.CertFile == "" {
		return errors.New("--tls-ca-file is for a certificate of --tls-cert-file")
	}
	if o.Filters && (o.CertFile != "" || o.URL != "") {
		return errors.New("--filters serves no webhook: --url and --tls-... have no place beside it")
	}
	if o.URL != "" {
		if u, err := url.Parse(o.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("--url %q: want https://HOST:PORT%s", o.URL, webhook.Path)
		}
	}
	if o.Lives.Leaf <= 0 || o.Lives.CA < 2*o.Lives.Leaf {
		return fmt.Errorf("--ca-life %s must be at least twice --leaf-life %s", o.Lives.CA, o.Lives.Leaf)
	}
	return nil
}

func (o Options) ownAuthority() bool { return o.CertFile == "" }

// serverNames are those by which the API server knows us.
func (o Options) serverNames() []string {
	service := webhook.Name + "." + o.Namespace
	names := []string{service + ".svc", service + ".svc.cluster.local"}
	if u, err := url.Parse(o.URL); err == nil && u.Hostname() != "" {
		names = append(names, u.Hostname())
	}
	return names
}

const (
	// requestLimit is more than the API server waits.
	requestLimit = 15 * time.Second
	// idleLimit is how long a connection without a request is kept: the API server keeps its own for 90 s.
	idleLimit = 2 * time.Minute
	// clientRate is what the keeper may ask of the API server; a burst is what a thousand profiles need after a restart.
	clientRate, clientBurst = 50, 200
)

// Run serves until ctx ends, and returns when all that it has started has ended.
func Run(ctx context.Context, config *rest.Config, o Options, log *slog.Logger) error {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst, config.UserAgent = clientRate, clientBurst, "sidecar-injector"
	whole, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	if o.Filters {
		return runFilters(ctx, config, whole, o, log)
	}
	keep, sign := newWake(), newWake()
	c := newCaches(whole, meta, o, logging.For(log, "cache"), keep.up, sign.up)
	known := &authority{}
	s := &signer{options: o, serving: &certs.Serving{}, authority: known, secret: c.theSecret, log: logging.For(log, "certs"), now: time.Now}
	listeners, err := listen(o)
	if err != nil {
		return err
	}
	// What answers outlives ctx: it goes last, when nobody asks any more.
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var group errgroup.Group
	for _, w := range c.all() {
		group.Go(func() error { w.run(working); return nil })
	}
	group.Go(func() error { s.run(working, sign); return nil })
	group.Go(func() error { c.istiods.run(working, c.ask); return nil })
	group.Go(func() error {
		return lead(ctx, config, o, webhook.Name, logging.For(log, "keeper"), func(ctx context.Context) {
			k := &keeper{options: o, client: whole, caches: c, authority: known, log: logging.For(log, "keeper"), now: time.Now}
			k.run(ctx, keep)
		})
	})
	group.Go(func() error {
		defer stop()
		return serve(ctx, listeners, newServers(o, c, s, logging.For(log, "webhook")), log)
	})
	return group.Wait()
}

// runFilters is Run with Options.Filters.
func runFilters(ctx context.Context, config *rest.Config, client dynamic.Interface, o Options, log *slog.Logger) error {
	look := newWake()
	f := newFilters(client, logging.For(log, "filters"), func(string) { look.up() })
	listener, err := net.Listen("tcp", o.StatusAddress)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", o.StatusAddress, err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	status := newStatus(registry, f.synced, log)
	group, ctx := errgroup.WithContext(ctx)
	for _, w := range []watched{f.documents, f.living} {
		group.Go(func() error { w.run(ctx); return nil })
	}
	group.Go(func() error {
		return lead(ctx, config, o, filtersName, f.log, func(ctx context.Context) { f.run(ctx, look) })
	})
	group.Go(func() error {
		if err := status.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	defer context.AfterFunc(ctx, func() { _ = status.Close() })()
	log.Info("serving", "status", listener.Addr().String())
	return group.Wait()
}

// newStatus is the server of metrics and health.
func newStatus(registry *prometheus.Registry, ready func() error, log *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	quiet := slog.NewLogLogger(log.Handler(), slog.LevelDebug) // a port scanner's handshake is no news
	return &http.Server{Handler: mux, ReadTimeout: requestLimit, WriteTimeout: requestLimit, ErrorLog: quiet}
}

// wake asks for a look; asking twice before it happens is asking once.
type wake chan struct{}

func newWake() wake { return make(wake, 1) }

func (w wake) up() {
	select {
	case w <- struct{}{}:
	default:
	}
}

// servers are the webhook's and that of metrics and health.
type servers struct {
	webhook, status *http.Server
	unready         func() // from then on the replica is unready
	linger          time.Duration
}

func newServers(o Options, c *caches, s *signer, log *slog.Logger) *servers {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	handler := webhook.NewHandler(c.mutate, webhook.NewMetrics(registry), log)
	asks := http.NewServeMux()
	asks.Handle(webhook.Path, handler)
	asks.Handle(webhook.Path+"/", handler)
	stopping := make(chan struct{})
	ready := func() error {
		select {
		case <-stopping:
			return errors.New("stopping")
		default:
		}
		_, err := c.policy()
		return errors.Join(err, s.serving.Check(time.Now()))
	}
	quiet := slog.NewLogLogger(log.Handler(), slog.LevelDebug) // a port scanner's handshake is no news
	return &servers{
		webhook: &http.Server{
			Handler: asks, ReadTimeout: requestLimit, WriteTimeout: requestLimit, IdleTimeout: idleLimit, ErrorLog: quiet,
			TLSConfig: &tls.Config{GetCertificate: s.serving.GetCertificate, MinVersion: tls.VersionTLS12},
		},
		status:  newStatus(registry, ready, log),
		unready: func() { close(stopping) }, linger: o.Linger,
	}
}

// listen opens the webhook's port and that of status.
func listen(o Options) (pair [2]net.Listener, err error) {
	for i, address := range []string{o.Address, o.StatusAddress} {
		if pair[i], err = net.Listen("tcp", address); err != nil {
			if i > 0 {
				_ = pair[0].Close()
			}
			return pair, fmt.Errorf("listen on %s: %w", address, err)
		}
	}
	return pair, nil
}

// serve answers until ctx ends; then the replica is unready for a while, in which it goes out of the Service, finishes what it
// has, and only then ends.
func serve(ctx context.Context, listeners [2]net.Listener, s *servers, log *slog.Logger) error {
	ended := make(chan error, 2)
	go func() { ended <- s.webhook.ServeTLS(listeners[0], "", "") }()
	go func() { ended <- s.status.Serve(listeners[1]) }()
	log.Info("serving", "webhook", listeners[0].Addr().String(), "status", listeners[1].Addr().String())
	select {
	case err := <-ended:
		_, _ = s.webhook.Close(), s.status.Close()
		<-ended
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	s.unready()
	log.Info("stopping: unready, then no new connections", "after", s.linger)
	linger := time.NewTimer(s.linger)
	defer linger.Stop()
	select {
	case <-linger.C:
	case err := <-ended:
		_, _ = s.webhook.Close(), s.status.Close()
		<-ended
		return fmt.Errorf("serve: %w", err)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestLimit)
	defer cancel()
	err := errors.Join(s.webhook.Shutdown(last), s.status.Close())
	<-ended
	<-ended
	return err
}
