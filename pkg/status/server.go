// Package status owns the agent's HTTP endpoints: the status port with
// readiness, merged metrics, application probes, drain and quit; the
// kubelet's readiness port; and the loopback port of Envoy's admin API. It is
// given its sockets, which outlive it, and knows nothing about where answers
// come from: they are handlers and functions in its [Config].
package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// readHeaderTimeout is how long a client may take to send its request
	// line and headers; every honest one is in this pod or its kubelet.
	readHeaderTimeout = 5 * time.Second
	// idleTimeout keeps the connection of a Prometheus that scrapes every
	// 15 s or 60 s, and not much longer.
	idleTimeout = 90 * time.Second
	// maxHeaderBytes is ample for a probe's or a scrape's headers, and an
	// eighth of the default.
	maxHeaderBytes = 128 << 10
	// shutdownGrace is how long requests in flight may take to finish once
	// Run is told to stop; a probe or a scrape that needs longer is cut.
	shutdownGrace = 2 * time.Second
)

// Config is everything that a [Server] needs.
type Config struct {
	// Status are the listeners of the status port (15020), at least one;
	// Probe those of 15021, nil where the status port is 15021 itself.
	Status, Probe []net.Listener
	// AdminListeners are those of 15000, and Admin what answers there, except
	// for /quitquitquit, which is never passed on.
	AdminListeners []net.Listener
	Admin          http.Handler

	Ready *Readiness // required

	// Quit and Drain ask for a stop and for a drain, and return once that was
	// asked for, not once it is over: the answer to the request waits for
	// them. The context does not end with the request.
	Quit, Drain func(context.Context) error

	// EnvoyStats opens Envoy's Prometheus text; the caller reads it as a
	// stream and closes it. query is that of the scrape ("usedonly", "filter=
	// ..."), as it was sent, without "?". Used when MergeEnvoyStats is set.
	EnvoyStats      func(ctx context.Context, query string) (body io.ReadCloser, contentType string, err error)
	MergeEnvoyStats bool

	AppProbers            []byte // JSON of ISTIO_KUBE_APP_PROBERS; empty: no probes
	PrometheusAnnotations []byte // JSON of ISTIO_PROMETHEUS_ANNOTATIONS; empty: no scrape of the app

	PodIPs               []netip.Addr // the first one is where probes go
	LegacyLocalhostProbe bool         // they go to localhost instead
	HTTP2Probing         bool         // HTTPS probes may use HTTP/2
	MetricsLoopbackOnly  bool         // /metrics and /stats/prometheus only from loopback
	Profiling            bool         // serve /debug/pprof

	// Debug are pages for loopback only, by path ("/debug/configz"); a path
	// that ends in "/" stands for everything below it.
	Debug map[string]http.Handler

	Registry *prometheus.Registry // of [NewRegistry]; required
	Log      *slog.Logger         // nil: nothing is logged
}

// Server owns the listeners of its [Config] from New on.
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	probes  *appProbes
	scrape  *scraper
	grace   time.Duration // shutdownGrace; tests have their own

	conns sync.WaitGroup // open ones
}

// New validates the configuration and registers the server's metrics; it
// starts nothing. Its errors name the setting, the value and the remedy. When
// it fails, the listeners are still the caller's.
func New(c Config) (*Server, error) {
	if len(c.Status) == 0 || c.Ready == nil || c.Registry == nil {
		return nil, errors.New("status server: Status, Ready and Registry are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkDebugPaths(c.Debug); err != nil {
		return nil, err
	}
	s := &Server{cfg: c, log: c.Log, grace: shutdownGrace}
	dest := newDestination(c.PodIPs, c.LegacyLocalhostProbe)
	var err error
	if s.probes, err = newAppProbes(c.AppProbers, dest, c.HTTP2Probing, c.Log); err != nil {
		return nil, err
	}
	targets, err := parseScrapeTargets(c.PrometheusAnnotations, portsOf(c.Status))
	if err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(c.Registry); err != nil {
		return nil, err
	}
	s.scrape = newScraper(c, targets, s.metrics)
	return s, nil
}

// Run serves until ctx ends, then lets the requests in flight finish for
// [shutdownGrace] and cuts the rest. It returns once every goroutine it made
// is gone, nil only when ctx was cancelled. The listeners are closed then.
func (s *Server) Run(ctx context.Context) error {
	// Requests get a context of their own: cancelling ctx must not cut those
	// that may still finish.
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	servers := map[*http.Server][]net.Listener{
		s.server(requests, s.statusHandler(s.guard())): s.cfg.Status,
		s.server(requests, s.probeHandler()):           s.cfg.Probe,
		s.server(requests, s.adminHandler(s.guard())):  s.cfg.AdminListeners,
	}
	var serving sync.WaitGroup
	failed := make(chan error, len(s.cfg.Status)+len(s.cfg.Probe)+len(s.cfg.AdminListeners))
	for srv, listeners := range servers {
		for _, l := range listeners {
			serving.Go(func() {
				if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					failed <- fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
				}
			})
		}
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	grace, cancel := context.WithTimeout(requests, s.grace)
	defer cancel()
	var stopping sync.WaitGroup
	for srv := range servers {
		stopping.Go(func() { s.stop(grace, srv, cut) })
	}
	stopping.Wait()
	serving.Wait()
	s.conns.Wait()
	return err
}

// stop ends one server; cut cancels every request that is still running by
// the end of the grace.
func (s *Server) stop(grace context.Context, srv *http.Server, cut func()) {
	if srv.Shutdown(grace) == nil {
		return
	}
	cut()
	if err := srv.Close(); err != nil {
		s.log.Debug("close a status connection", "error", err)
	}
}

func (s *Server) server(requests context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ConnState:         s.track,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// track counts connections, and so handlers, which run on their connection's
// goroutine: http.Server.Close returns before they do. StateNew comes before
// Serve can return, so nothing is added once Run waits.
func (s *Server) track(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.conns.Done()
	}
}

// Started records how long the agent took from its start until it was ready.
func (s *Server) Started(d time.Duration) { s.metrics.startup.Set(d.Seconds()) }

func (s *Server) guard() guard { return guard{browser: http.NewCrossOriginProtection()} }

func portsOf(listeners []net.Listener) (ports []uint16) {
	for _, l := range listeners {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			ports = append(ports, uint16(a.Port))
		}
	}
	return ports
}
