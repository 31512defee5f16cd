package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

const (
	// timeoutHeader is how Prometheus says when it gives up.
	timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"
	// defaultScrapeTimeout is Prometheus's scrape_timeout.
	defaultScrapeTimeout = 10 * time.Second
	// maxScrapeTimeout bounds what the header may ask for.
	maxScrapeTimeout = 2 * time.Minute
	// maxScrapeReserve is kept back of the scraper's time for sending what
	// there is when a source does not answer: without it one stuck
	// application takes Envoy's metrics along.
	maxScrapeReserve = time.Second
	// maxAppBody bounds what one target of the application may send.
	maxAppBody = 10 << 20
)

// scraper merges the metrics of the agent, of Envoy and of the application, in
// this order. Nothing is held: whatever their size, each goes through one
// buffer of [maxLine] bytes.
type scraper struct {
	registry prometheus.Gatherer
	metrics  *metrics
	envoy    func(ctx context.Context, query string) (io.ReadCloser, string, error) // nil: not merged
	targets  []*url.URL
	client   *http.Client
	log      *slog.Logger
}

// source is an exposition that is open for reading.
type source struct {
	name        string // sourceEnvoy or sourceApplication
	from        string // for the log
	body        io.ReadCloser
	contentType string
	openMetrics bool
	cancel      context.CancelFunc // of its request
}

func newScraper(c Config, targets []*url.URL, m *metrics) *scraper {
	s := &scraper{registry: c.Registry, metrics: m, targets: targets, log: c.Log}
	if c.MergeEnvoyStats {
		s.envoy = c.EnvoyStats
	}
	s.client = &http.Client{
		// One connection a scrape: nothing is left behind that would keep a
		// goroutine, or the application from stopping.
		Transport:     &http.Transport{DialContext: dialLoopback, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: sameHost,
	}
	return s
}

// ServeHTTP implements [http.Handler]. It answers 200 with whatever there is;
// what is missing is counted in scrape_failures_total.
func (s *scraper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.metrics.scrapes.Inc()
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", textFormat)
		return
	}
	timeout := scrapeTimeout(r.Header)
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	// A scraper that stops reading does not hold the sources' connections.
	// Connections that know no deadline are those of tests.
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(timeout + maxScrapeReserve))
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }()

	envoy, apps := s.open(ctx, r, timeout-min(timeout/10, maxScrapeReserve))
	defer closeAll(append(apps, envoy))
	format := mergedFormat(apps)
	w.Header().Set("Content-Type", format)
	out := newOutput(w, r)
	s.writeAgent(ctx, out)
	s.writeOmitted(out, format, envoy == nil)
	_ = out.send() // at once, however slow Envoy is; close has the error again
	for _, src := range append([]*source{envoy}, apps...) {
		s.write(ctx, out, src)
	}
	if format != textFormat {
		out.WriteString(openMetricsEnd + "\n")
	}
	if err := out.close(); err != nil {
		s.log.Debug("send merged metrics", "error", err)
	}
}

// open asks Envoy and every target of the application at once, and returns
// when all have begun to answer or failed. Those that failed are nil.
func (s *scraper) open(ctx context.Context, r *http.Request, wait time.Duration) (envoy *source, apps []*source) {
	var wg sync.WaitGroup
	if s.envoy != nil {
		wg.Go(func() {
			envoy = s.begin(ctx, wait, source{name: sourceEnvoy, from: sourceEnvoy}, func(ctx context.Context) (io.ReadCloser, string, error) {
				return s.envoy(ctx, r.URL.RawQuery)
			})
		})
	}
	apps = make([]*source, len(s.targets))
	accept := acceptText(r.Header.Get("Accept"))
	started := time.Now()
	for i, t := range s.targets {
		wg.Go(func() { apps[i] = s.beginApp(ctx, wait, t, r.Header, accept) })
	}
	wg.Wait()
	if !mixed(apps) {
		return envoy, apps
	}
	// One answer can have only one format, and OpenMetrics with exemplars or
	// time-stamps is wrong as text: ask those for text.
	wait -= time.Since(started)
	for i, t := range s.targets {
		if apps[i] == nil || !apps[i].openMetrics {
			continue
		}
		closeAll(apps[i : i+1])
		wg.Go(func() { apps[i] = s.beginApp(ctx, wait, t, r.Header, acceptText("")) })
	}
	wg.Wait()
	return envoy, apps
}

// begin opens one source, which has until wait to begin, and ctx to end.
func (s *scraper) begin(ctx context.Context, wait time.Duration, src source,
	open func(context.Context) (io.ReadCloser, string, error)) *source {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(wait, func() { cancel(fmt.Errorf("no answer within %v", wait)) })
	defer late.Stop()
	var err error
	src.body, src.contentType, err = open(ctx)
	if err == nil {
		src.cancel = func() { cancel(nil) }
		src.openMetrics, err = isOpenMetrics(src.contentType)
		if err == nil {
			return &src
		}
		src.body.Close()
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	s.failed(ctx, &src, err)
	cancel(nil)
	return nil
}

// beginApp sends the request to one target of the application.
func (s *scraper) beginApp(ctx context.Context, wait time.Duration, target *url.URL, h http.Header, accept string) *source {
	src := source{name: sourceApplication, from: target.String()}
	return s.begin(ctx, wait, src, func(ctx context.Context) (io.ReadCloser, string, error) {
		req := (&http.Request{Method: http.MethodGet, URL: target, Header: http.Header{"Accept": {accept}}}).WithContext(ctx)
		for _, name := range []string{"User-Agent", timeoutHeader} {
			if v := h.Get(name); v != "" {
				req.Header.Set(name, v)
			}
		}
		resp, err := s.client.Do(req)
		if err != nil {
			return nil, "", err
		}
		if err := usable(resp); err != nil {
			resp.Body.Close()
			return nil, "", err
		}
		return http.MaxBytesReader(nil, resp.Body, maxAppBody), resp.Header.Get("Content-Type"), nil
	})
}

// usable says why an answer of the application cannot be merged.
func usable(resp *http.Response) error {
	switch coding := resp.Header.Get("Content-Encoding"); {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("the application answered %s", resp.Status)
	case resp.ContentLength > maxAppBody:
		return fmt.Errorf("the body has %d bytes, more than %d", resp.ContentLength, maxAppBody)
	case coding != "" && coding != "identity":
		return fmt.Errorf("the body is encoded as %q, which was not asked for", coding)
	}
	return nil
}

// writeAgent writes the agent's own metrics.
func (s *scraper) writeAgent(ctx context.Context, out *output) {
	families, err := s.registry.Gather()
	if err != nil {
		s.failed(ctx, &source{name: sourceAgent, from: "registry"}, err) // the sound families come all the same
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(out.Writer, f); err != nil {
			s.log.Debug("write the agent's metrics", "error", err)
			return
		}
	}
}

// omittedMetric is a gauge of this answer alone, which the registry, that is everybody's, cannot have.
const omittedMetric = metricPrefix + "envoy_metrics_omitted"

// writeOmitted says whether Envoy's metrics are left out of this answer. OpenMetrics has no comments.
func (s *scraper) writeOmitted(out *output, format string, omitted bool) {
	if s.envoy == nil {
		return
	}
	value := 0
	if omitted {
		value = 1
		if format == textFormat {
			out.WriteString("# Envoy's metrics are omitted: it has not answered in time. It does not while a new configuration or a Wasm module keeps it busy.\n")
		}
	}
	fmt.Fprintf(out, "# HELP %[1]s 1 in an answer without Envoy's metrics.\n# TYPE %[1]s gauge\n%[1]s %[2]d\n", omittedMetric, value)
}

// write copies one source to its end. What has been sent stays sent when it
// breaks off: whole lines.
func (s *scraper) write(ctx context.Context, out *output, src *source) {
	if src == nil {
		return
	}
	if err := copyLines(out.Writer, src.body); err != nil {
		s.failed(ctx, src, err)
	}
}

// failed counts and logs what is missing. A scraper that went away is nobody's
// failure; a deadline is.
func (s *scraper) failed(ctx context.Context, src *source, err error) {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return
	}
	s.metrics.failures.WithLabelValues(src.name).Inc()
	s.log.Warn("metrics are missing or incomplete in a scrape", "type", src.name, "from", src.from, "error", err)
}

// closeAll closes the sources that were opened.
func closeAll(sources []*source) {
	for _, src := range sources {
		if src != nil {
			src.cancel()
			src.body.Close()
		}
	}
}

// mixed reports whether the application speaks both formats.
func mixed(apps []*source) bool {
	speaks := func(openMetrics bool) bool {
		return slices.ContainsFunc(apps, func(a *source) bool { return a != nil && a.openMetrics == openMetrics })
	}
	return speaks(true) && speaks(false)
}

// mergedFormat is that of the application, for OpenMetrics can be declared
// only when all its targets speak it. The agent's and Envoy's text is sound in
// either: neither has time-stamps or types that OpenMetrics lacks.
func mergedFormat(apps []*source) string {
	format := textFormat
	for _, a := range apps {
		switch {
		case a == nil:
		case !a.openMetrics:
			return textFormat
		case format == textFormat:
			format = a.contentType
		}
	}
	return format
}

// scrapeTimeout reads how long the scraper waits.
func scrapeTimeout(h http.Header) time.Duration {
	seconds, err := strconv.ParseFloat(h.Get(timeoutHeader), 64)
	if err != nil || math.IsNaN(seconds) || seconds <= 0 {
		return defaultScrapeTimeout
	}
	return time.Duration(min(seconds, maxScrapeTimeout.Seconds()) * float64(time.Second))
}
