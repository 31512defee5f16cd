package status

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const openMetrics1 = "application/openmetrics-text; version=1.0.0; charset=utf-8"

// app serves one answer on a loopback port, and its target in JSON.
func app(t *testing.T, contentType, body string) (target string) {
	return appFunc(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	})
}

func appFunc(t *testing.T, f http.HandlerFunc) (target string) {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	return `{"port":"` + port + `","path":"/m?a=b"}`
}

// deadPort is a target where nobody listens.
func deadPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return `{"port":"` + port + `"}`
}

func withTargets(c Config, targets ...string) Config {
	c.PrometheusAnnotations = []byte(`{"scrape":"true","targets":[` + strings.Join(targets, ",") + `]}`)
	return c
}

// withEnvoy has the body (or the error) stand for Envoy's.
func withEnvoy(c Config, body io.Reader, err error) Config {
	c.MergeEnvoyStats = true
	c.EnvoyStats = func(context.Context, string) (io.ReadCloser, string, error) {
		if err != nil {
			return nil, "", err
		}
		return io.NopCloser(body), "text/plain; charset=UTF-8", nil
	}
	return c
}

// failures reads scrape_failures_total from the server's registry.
func failures(t *testing.T, s *Server, kind string) float64 {
	t.Helper()
	families, _ := s.cfg.Registry.Gather() // one test has a collector that fails
	for _, f := range families {
		if f.GetName() != metricPrefix+"scrape_failures_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == kind {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no scrape_failures_total for %q", kind)
	return 0
}

func TestMerge(t *testing.T) {
	const envoyText = "# TYPE envoy_x counter\nenvoy_x 1\n\nenvoy_y 2"
	broken := io.MultiReader(strings.NewReader("envoy_x 1\nenvoy_half"), errReader{errors.New("cut")})
	text := func(body string) string { return app(t, textFormat, body) }
	om := func(body string) string { return app(t, openMetrics1, body) }
	long := "long" + strings.Repeat("x", 3*maxLine) + " 1\n"
	tests := []struct {
		name    string
		envoy   io.Reader
		err     error
		targets []string
		want    string
		format  string
		envoyF  float64 // failures
		appF    float64
	}{
		{name: "Envoy only", envoy: strings.NewReader(envoyText), want: "# TYPE envoy_x counter\nenvoy_x 1\nenvoy_y 2\n", format: textFormat},
		{name: "app after Envoy", envoy: strings.NewReader("envoy_x 1\n"), targets: []string{text("app 1")}, want: "envoy_x 1\napp 1\n", format: textFormat},
		{name: "OpenMetrics ends the whole", envoy: strings.NewReader("envoy_x 1\n"), targets: []string{om("app 1\n# EOF\n")},
			want: "envoy_x 1\napp 1\n# EOF\n", format: openMetrics1},
		{name: "EOF with CRLF, in text", targets: []string{text("app 1\r\n# EOF\r\n")}, want: "app 1\n", format: textFormat},
		{name: "two OpenMetrics, one EOF", targets: []string{om("a 1\n# EOF\n"), om("b 1\n# EOF")}, want: "a 1\nb 1\n# EOF\n", format: openMetrics1},
		{name: "formats differ", targets: []string{om("a 1\n# EOF\n"), text("b 1\n")}, want: "a 1\nb 1\n", format: textFormat},
		{name: "no content type is text", targets: []string{app(t, "", "a 1\n")}, want: "a 1\n", format: textFormat},
		{name: "Envoy fails", err: errors.New("no Envoy"), targets: []string{text("app 1\n")}, want: "app 1\n", format: textFormat, envoyF: 1},
		{name: "Envoy fails, OpenMetrics", err: errors.New("no Envoy"), targets: []string{om("app 1\n# EOF\n")}, want: "app 1\n# EOF\n", format: openMetrics1, envoyF: 1},
		{name: "Envoy breaks off", envoy: broken, targets: []string{text("app 1\n")}, want: "envoy_x 1\napp 1\n", format: textFormat, envoyF: 1},
		{name: "a line too long", envoy: strings.NewReader("a 1\n" + long + "b 1\n"), want: "a 1\nb 1\n", format: textFormat, envoyF: 1},
		{name: "app is not there", envoy: strings.NewReader("envoy_x 1\n"), targets: []string{deadPort(t)}, want: "envoy_x 1\n", format: textFormat, appF: 1},
		{name: "one of three fails", targets: []string{om("a 1\n# EOF\n"), deadPort(t), om("c 1\n# EOF\n")}, want: "a 1\nc 1\n# EOF\n", format: openMetrics1, appF: 1},
		{name: "protobuf", targets: []string{app(t, "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily", "\x00\x01")}, format: textFormat, appF: 1},
		{name: "status 500", targets: []string{appFunc(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) })}, format: textFormat, appF: 1},
		{name: "compressed unasked", targets: []string{appFunc(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, "x")
		})}, format: textFormat, appF: 1},
		{name: "breaks off", targets: []string{appFunc(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "a 1\nb")
		})}, want: "a 1\n", format: textFormat, appF: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := withTargets(testConfig(t), tt.targets...)
			if len(tt.targets) == 0 {
				c.PrometheusAnnotations = nil
			}
			if tt.envoy != nil || tt.err != nil {
				c = withEnvoy(c, tt.envoy, tt.err)
			}
			s := newServer(t, c)
			s.scrape.registry = prometheus.NewRegistry() // the agent's part is empty
			w := httptest.NewRecorder()
			s.Local().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/stats/prometheus", nil))
			want := tt.want
			if c.MergeEnvoyStats {
				const help = "# HELP istio_agent_envoy_metrics_omitted 1 in an answer without Envoy's metrics.\n# TYPE istio_agent_envoy_metrics_omitted gauge\nistio_agent_envoy_metrics_omitted "
				value, comment := "0\n", ""
				if tt.err != nil {
					value = "1\n"
				}
				if tt.err != nil && tt.format == textFormat {
					comment = "# Envoy's metrics are omitted: it has not answered in time. It does not while a new configuration or a Wasm module keeps it busy.\n"
				}
				want = comment + help + value + want
			}
			if got := w.Body.String(); w.Code != 200 || got != want {
				t.Errorf("%d %q, want %q", w.Code, got, want)
			}
			if got := w.Header().Get("Content-Type"); got != tt.format {
				t.Errorf("Content-Type %q, want %q", got, tt.format)
			}
			if e, a := failures(t, s, sourceEnvoy), failures(t, s, sourceApplication); e != tt.envoyF || a != tt.appF {
				t.Errorf("failures: envoy %v, application %v, want %v and %v", e, a, tt.envoyF, tt.appF)
			}
		})
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// The agent's metrics come first, and the whole can be parsed.
func TestMergeOrderAndSyntax(t *testing.T) {
	c := withTargets(testConfig(t), app(t, textFormat, "# TYPE app counter\napp 1\n"))
	url := run(t, withEnvoy(c, strings.NewReader("# TYPE envoy_x counter\nenvoy_x 1\n"), nil))
	_, body := get(t, url+"/metrics")
	agent, envoy, own := strings.Index(body, "istio_agent_"), strings.Index(body, "envoy_x"), strings.Index(body, "app ")
	if agent < 0 || agent > envoy || envoy > own {
		t.Errorf("agent at %d, Envoy at %d, application at %d", agent, envoy, own)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if families["app"] == nil || families["envoy_x"] == nil || families["istio_agent_scrapes_total"] == nil {
		t.Errorf("families are missing among %d", len(families))
	}
}

// An application that speaks both formats is asked for text when another one
// speaks only text: its exemplars would be wrong there.
func TestMergeAsksAgainForText(t *testing.T) {
	both := appFunc(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Accept"), openMetricsType) {
			w.Header().Set("Content-Type", openMetrics1)
			io.WriteString(w, "a_total 1 # {trace_id=\"x\"} 1\n# EOF\n")
			return
		}
		w.Header().Set("Content-Type", textFormat)
		io.WriteString(w, "a_total 1\n")
	})
	s := newServer(t, withTargets(testConfig(t), both, app(t, textFormat, "b 1\n")))
	s.scrape.registry = prometheus.NewRegistry()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.4")
	w := httptest.NewRecorder()
	s.Local().ServeHTTP(w, r)
	if w.Body.String() != "a_total 1\nb 1\n" || w.Header().Get("Content-Type") != textFormat {
		t.Errorf("%q as %q", w.Body, w.Header().Get("Content-Type"))
	}
}

// What the application and Envoy are asked.
func TestMergeRequests(t *testing.T) {
	asked := make(chan *http.Request, 1)
	c := withTargets(testConfig(t), appFunc(t, func(_ http.ResponseWriter, r *http.Request) { asked <- r }))
	c = withEnvoy(c, strings.NewReader(""), nil)
	queries := make(chan string, 1)
	c.EnvoyStats = func(_ context.Context, query string) (io.ReadCloser, string, error) {
		queries <- query
		return io.NopCloser(strings.NewReader("")), "", nil
	}
	url := run(t, c)
	get(t, url+"/stats/prometheus?usedonly&filter=a%20b",
		"Accept", "application/vnd.google.protobuf;q=0.7,application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.5,*/*;q=0.1",
		"User-Agent", "Prometheus/3", timeoutHeader, "7.5", "Authorization", "Bearer secret", "Accept-Encoding", "gzip")
	r := receive(t, asked)
	want := map[string]string{"Accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.5",
		"User-Agent": "Prometheus/3", timeoutHeader: "7.5", "Authorization": "", "Accept-Encoding": ""}
	for name, value := range want {
		if got := r.Header.Get(name); got != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
	if r.URL.String() != "/m?a=b" {
		t.Errorf("the application was asked for %s", r.URL)
	}
	if got := receive(t, queries); got != "usedonly&filter=a%20b" {
		t.Errorf("Envoy was asked %q", got)
	}
}

// An application that does not answer within the scraper's time takes nothing
// else along.
func TestMergeStuckApplication(t *testing.T) {
	release := make(chan struct{})
	stuck := appFunc(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	})
	defer close(release)
	c := withEnvoy(withTargets(testConfig(t), stuck), strings.NewReader("envoy_x 1\n"), nil)
	s := newServer(t, c)
	s.scrape.registry = prometheus.NewRegistry()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set(timeoutHeader, "0.5")
	w := httptest.NewRecorder()
	s.Local().ServeHTTP(w, r)
	if got := w.Body.String(); !strings.HasSuffix(got, "_omitted 0\nenvoy_x 1\n") {
		t.Errorf("got %q", got)
	}
	if got := failures(t, s, sourceApplication); got != 1 {
		t.Errorf("%v failures, want 1", got)
	}
}

// A scraper that goes away is nobody's failure.
func TestMergeClientGone(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := testConfig(t)
	c.MergeEnvoyStats = true
	c.EnvoyStats = func(ctx context.Context, _ string) (io.ReadCloser, string, error) {
		cancel()
		<-ctx.Done()
		return nil, "", ctx.Err()
	}
	s := newServer(t, c)
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil).WithContext(ctx)
	s.Local().ServeHTTP(httptest.NewRecorder(), r)
	if got := failures(t, s, sourceEnvoy); got != 0 {
		t.Errorf("%v failures, want none", got)
	}
}

// Too much from the application is cut at a line, or refused where it says so
// in advance.
func TestMergeBodyLimit(t *testing.T) {
	line := strings.Repeat("a", 99) + "\n"
	endless := appFunc(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	})
	announced := appFunc(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(maxAppBody+1))
		io.WriteString(w, line)
	})
	for target, want := range map[string]int{endless: maxAppBody / len(line) * len(line), announced: 0} {
		s := newServer(t, withTargets(testConfig(t), target))
		s.scrape.registry = prometheus.NewRegistry()
		w := httptest.NewRecorder()
		s.Local().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Body.Len() != want || failures(t, s, sourceApplication) != 1 {
			t.Errorf("%d bytes, want %d; %v failures, want 1", w.Body.Len(), want, failures(t, s, sourceApplication))
		}
	}
}

type brokenCollector struct{ prometheus.Collector }

func (brokenCollector) Describe(chan<- *prometheus.Desc) {}
func (brokenCollector) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(errors.New("broken")), errors.New("broken"))
}

func TestMergeAgentFails(t *testing.T) {
	c := withEnvoy(testConfig(t), strings.NewReader("envoy_x 1\n"), nil)
	c.Registry.MustRegister(brokenCollector{})
	s := newServer(t, c)
	w := httptest.NewRecorder()
	s.Local().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := w.Body.String()
	if !strings.Contains(body, "istio_agent_scrapes_total 1") || !strings.Contains(body, "envoy_x 1") {
		t.Error("a broken collector took others along")
	}
	if got := failures(t, s, sourceAgent); got != 1 {
		t.Errorf("%v failures, want 1", got)
	}
}

func TestMergeCompresses(t *testing.T) {
	plain := map[string]func(io.Reader) (io.Reader, error){
		codingGzip: func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		codingZstd: func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
	}
	for accept, want := range map[string]string{"deflate, gzip;q=0.5": codingGzip, "gzip, zstd": codingZstd} {
		url := run(t, withEnvoy(testConfig(t), strings.NewReader("envoy_x 1\n"), nil))
		resp, body := get(t, url+"/metrics", "Accept-Encoding", accept)
		if got := resp.Header.Get("Content-Encoding"); got != want {
			t.Fatalf("%q: Content-Encoding is %q, want %q", accept, got, want)
		}
		r, err := plain[want](strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil || !strings.HasSuffix(string(text), "envoy_x 1\n") {
			t.Errorf("%q: %v; ends in %q", accept, err, text[max(0, len(text)-20):])
		}
	}
}

func TestCoding(t *testing.T) {
	for header, want := range map[string]string{
		"": codingIdentity, "br": codingIdentity, "gzip": codingGzip, "GZIP;q=1.0": codingGzip, "gzip;q=0": codingIdentity, "gzip; q=0.0": codingIdentity,
		"gzip;q=x": codingIdentity, "zstd": codingZstd, "gzip,zstd": codingZstd, "zstd, gzip": codingZstd, "zstd;q=0.5, gzip": codingGzip,
		"zstd;q=0, gzip;q=0.1": codingGzip, "zstd;q=0": codingIdentity,
	} {
		if got := coding(http.Header{"Accept-Encoding": {header}}); got != want {
			t.Errorf("%q: got %s, want %s", header, got, want)
		}
	}
}

// A scraper has what there is while Envoy is still at work on the rest.
func TestMergeStreams(t *testing.T) {
	for _, accept := range []string{codingIdentity, codingGzip, codingZstd} {
		slow, envoy := io.Pipe()
		url := run(t, withEnvoy(testConfig(t), slow, nil))
		sent := make(chan error, 1)
		received := make(chan struct{})
		go func() {
			_, err := io.WriteString(envoy, "envoy_x 1\n")
			<-received
			envoy.Close()
			sent <- err
		}()
		r, err := http.NewRequest(http.MethodGet, url+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", accept)
		r.Header.Set(timeoutHeader, fmt.Sprint(maxScrapeTimeout.Seconds()))
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: maxScrapeTimeout / 2}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatalf("%s: %v", accept, err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Errorf("%s: the first byte: %v", accept, err)
		}
		close(received)
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Errorf("%s: the rest: %v", accept, err)
		}
		resp.Body.Close()
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

func TestScrapeTimeout(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": defaultScrapeTimeout, "x": defaultScrapeTimeout, "0": defaultScrapeTimeout, "-1": defaultScrapeTimeout,
		"NaN": defaultScrapeTimeout, "2.5": 2500 * time.Millisecond, "1e300": maxScrapeTimeout, "Inf": maxScrapeTimeout,
	} {
		if got := scrapeTimeout(http.Header{timeoutHeader: {value}}); got != want {
			t.Errorf("scrapeTimeout(%q) = %v, want %v", value, got, want)
		}
	}
}
