// Package status owns the agent's HTTP endpoints: the status port with
// readiness, merged metrics, application probes, drain and quit; the
// kubelet's readiness port; and the loopback port of Envoy's admin API. It is
// given its sockets, which outlive it: it may let go of them and take them again.
// It knows nothing about where answers come from: they are handlers and
// functions in its [Config].
package status

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy.mesh/internal/compliance"
)

// Config is everything that a [Server] needs, except for the sockets: those
// come and go with [Server.Start].
type Config struct {
	// Ports are those that the pod's own listeners have: a scrape of the
	// application is never sent to them.
	Ports []uint16
	// Admin answers on the listeners of 15000, except for /quitquitquit, which
	// is never passed on. nil: there is no Envoy.
	Admin http.Handler

	Ready *Readiness // required

	// StandIn is asked to answer a request for readiness where this agent is not ready, and says whether it
	// did: somebody else who serves at the same ports knows better. It may wait for that. nil: there is nobody.
	StandIn func(http.ResponseWriter, *http.Request) (answered bool)

	// Upgrade answers what the pod's generations do, on every address: it has to be cheap, and to keep to itself what is not
	// everybody's. nil: there is no such page.
	Upgrade http.Handler

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

	PodIPs               []netip.Addr      // the first one is where probes go
	LegacyLocalhostProbe bool              // they go to localhost instead
	HTTP2Probing         bool              // HTTPS probes may use HTTP/2
	Compliance           compliance.Policy // that their TLS keeps
	ProxyProtocol        bool              // the readiness port takes connections with that protocol's header, too
	MetricsLoopbackOnly  bool              // /metrics and /stats/prometheus only from loopback
	Profiling            bool              // serve /debug/pprof

	// Index answers /debug/ itself, for loopback only. nil: there is no such page.
	Index http.Handler

	// Debug are pages for loopback only, by path ("/debug/configz"); a path
	// that ends in "/" stands for everything below it.
	Debug map[string]http.Handler

	Registry *prometheus.Registry // of [NewRegistry]; required
	Log      *slog.Logger         // nil: nothing is logged
}

// Server answers on whatever listeners it is given; see [Server.Start].
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	probes  *appProbes
	scrape  *scraper
}

// New validates the configuration and registers the server's metrics; it
// starts nothing. Its errors name the setting, the value and the remedy.
func New(c Config) (*Server, error) {
	if c.Ready == nil || c.Registry == nil {
		return nil, errors.New("status server: Ready and Registry are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkDebugPaths(c.Debug); err != nil {
		return nil, err
	}
	s := &Server{cfg: c, log: c.Log}
	dest := newDestination(c.PodIPs, c.LegacyLocalhostProbe)
	var err error
	if s.probes, err = newAppProbes(&c, dest); err != nil {
		return nil, err
	}
	targets, err := parseScrapeTargets(c.PrometheusAnnotations, c.Ports)
	if err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(c.Registry); err != nil {
		return nil, err
	}
	s.scrape = newScraper(c, targets, s.metrics)
	return s, nil
}

// Started records how long the agent took from its start until it was ready.
func (s *Server) Started(d time.Duration) { s.metrics.startup.Set(d.Seconds()) }

func (s *Server) guard() guard { return guard{browser: http.NewCrossOriginProtection()} }
