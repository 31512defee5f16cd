package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestServices: where Envoy sends spans, statistics and access logs, by every name that says it.
func TestServices(t *testing.T) {
	mutual := Service{Host: "z", Port: 1, TLS: "MUTUAL", Certificate: "/c", Key: "/k", CA: "/ca", SNI: "s", SubjectAltNames: []string{"a", "b"}}
	for _, tc := range []struct {
		name string
		src  Sources
		got  func(*Config) any
		want any
	}{
		{"zipkin", Sources{Environ: []string{"PROXY_CONFIG=tracing: {zipkin: {address: 'z:9411'}, sampling: 5}"}}, tracerOf, Tracer{"zipkin", Service{Host: "z", Port: 9411}}},
		{"zipkin by flag", Sources{Flags: map[string]string{"zipkinAddress": "z:9411"}}, tracerOf, Tracer{"zipkin", Service{Host: "z", Port: 9411}}},
		{"the flag is the weaker one", Sources{Flags: map[string]string{"zipkinAddress": "z:9411"}, Environ: []string{"PROXY_CONFIG=tracing: {datadog: {address: 'd:1'}}"}}, tracerOf, Tracer{"datadog", Service{Host: "d", Port: 1}}},
		{"a tracer replaces another", Sources{
			ReadFile: files(map[string]string{meshPath: "defaultConfig: {tracing: {zipkin: {address: 'z:1'}}}"}), Environ: []string{"PROXY_CONFIG=tracing: {datadog: {address: 'd:1'}}"},
		}, tracerOf, Tracer{"datadog", Service{Host: "d", Port: 1}}},
		{"on the node", Sources{Environ: []string{"PROXY_CONFIG=tracing: {zipkin: {address: '$(HOST_IP):9411'}}", "HOST_IP=fd00::1"}}, tracerOf, Tracer{"zipkin", Service{Host: "fd00::1", Port: 9411}}},
		{"over TLS", Sources{Environ: []string{"PROXY_CONFIG=tracing: {zipkin: {address: 'z:1'}, tlsSettings: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, sni: s, subjectAltNames: [a, b]}}"}},
			tracerOf, Tracer{"zipkin", mutual}},
		{"files of the metadata", Sources{Environ: []string{"PROXY_CONFIG=envoyAccessLogService: {address: 'a:1', tlsSettings: {mode: SIMPLE, caCertificates: /ca}}", "ISTIO_META_TLS_CLIENT_ROOT_CERT=/root"}},
			func(c *Config) any { return c.AccessLogService }, Service{Host: "a", Port: 1, TLS: "SIMPLE", CA: "/root"}},
		{"plain text in so many words", Sources{Environ: []string{"PROXY_CONFIG=envoyMetricsService: {address: 'm:1', tlsSettings: {mode: DISABLE, sni: x}, tcpKeepalive: {probes: 3, time: 10s}}"}},
			metricsOf, Service{Host: "m", Port: 1, Keepalive: true, KeepaliveProbes: 3, KeepaliveTimeSecs: 10}},
		{"the field that Istio has dropped", Sources{Environ: []string{"PROXY_CONFIG=envoyMetricsServiceAddress: 'm:1'"}}, metricsOf, Service{Host: "m", Port: 1}},
		{"no address", Sources{Environ: []string{"PROXY_CONFIG=envoyMetricsService: {tlsSettings: {mode: SIMPLE}}"}}, metricsOf, Service{}},
		{"tags of both", Sources{Environ: []string{"PROXY_CONFIG=extraStatTags: [a, b]"}, ReadFile: files(map[string]string{annotationsFile: `sidecar.istio.io/extraStatTags="b,c"`})},
			func(c *Config) any { return strings.Join(c.ExtraStatTags, " ") }, "a b c"},
		{"buckets", Sources{ReadFile: files(map[string]string{annotationsFile: `sidecar.istio.io/statsHistogramBuckets="{\"a\":[1,2.5]}"`})},
			func(c *Config) any { return c.StatsHistogramBuckets["a"] }, []float64{1, 2.5}},
		{"eviction", Sources{ReadFile: files(map[string]string{annotationsFile: "sidecar.istio.io/statsFlushInterval=\"10s\"\nsidecar.istio.io/statsEvictionInterval=\"20s\""})},
			func(c *Config) any { return c.StatsEvictionInterval }, 20 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, _ := mustLoad(t, tc.src)
			if diff := cmp.Diff(tc.want, tc.got(cfg)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func tracerOf(c *Config) any  { return c.Tracer }
func metricsOf(c *Config) any { return c.MetricsService }

// TestServicesInTheNode: istiod reads in the node's ProxyConfig which tracer there is, by whichever name it was set.
func TestServicesInTheNode(t *testing.T) {
	cfg, _ := mustLoad(t, Sources{Flags: map[string]string{"zipkinAddress": "z:9411"}})
	proxy := cfg.Node.Metadata["PROXY_CONFIG"].(map[string]any)
	if diff := cmp.Diff(map[string]any{"zipkin": map[string]any{"address": "z:9411"}}, proxy["tracing"]); diff != "" {
		t.Errorf("tracing (-want +got):\n%s", diff)
	}
}

func TestServicesRefuse(t *testing.T) {
	annotation := func(text string) Sources { return Sources{ReadFile: files(map[string]string{annotationsFile: text})} }
	proxy := func(text string) Sources { return Sources{Environ: []string{"PROXY_CONFIG=" + text}} }
	onFiles := proxy("envoyMetricsService: {address: 'm:1', tlsSettings: {mode: SIMPLE}}")
	onFiles.Flags = map[string]string{"configDir": "x"}
	for name, tc := range map[string]struct {
		src  Sources
		want string
	}{
		"no port":                {proxy("tracing: {zipkin: {address: z}}"), `PROXY_CONFIG: tracing="{\"zipkin\":{\"address\":\"z\"}}": address "z": want host:port, such as istiod.istio-system.svc:15012`},
		"two tracers":            {proxy("tracing: {zipkin: {address: 'z:1'}, datadog: {address: 'd:1'}}"), "want one tracer"},
		"mutual without a key":   {proxy("tracing: {zipkin: {address: 'z:1'}, tlsSettings: {mode: MUTUAL}}"), `PROXY_CONFIG: tracing="MUTUAL": want tlsSettings with clientCertificate and privateKey`},
		"certificates of nobody": {onFiles, `PROXY_CONFIG: envoyMetricsService="SIMPLE": want no tlsSettings with --configDir: certificates come with istiod`},
		"buckets that fall":      {annotation(`sidecar.istio.io/statsHistogramBuckets="{\"a\":[2,1]}"`), "want rising limits by prefix"},
		"eviction":               {annotation(`sidecar.istio.io/statsEvictionInterval="7s"`), `annotation: sidecar.istio.io/statsEvictionInterval="7s": want a multiple of statsFlushInterval, 5s`},
		"a socket's path":        {Sources{Environ: []string{"WORKLOAD_IDENTITY_SOCKET_FILE=/a/b"}}, "want the name of a file, not a path"},
		"two bootstraps":         {Sources{Environ: []string{"ISTIO_BOOTSTRAP_OVERRIDE=/o", "PROXY_CONFIG=customConfigFile: /c"}}, `environment: ISTIO_BOOTSTRAP_OVERRIDE="/o": want none beside customConfigFile`},
		"a port that is taken":   {Sources{Environ: []string{"ENVOY_SECURE_METRICS_PORT=15090"}}, "want another port"},
	} {
		if _, _, err := Load(tc.src); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestProbe: a probe is spelled as Istio's API does, whatever spelling it came in; an empty one is none.
func TestProbe(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "",
		`{"periodSeconds":5,"http_get":{"port":80,"later":1}}`: `{"periodSeconds":5,"httpGet":{"port":80}}`,
		`{"exec":{"command":["a","b"]}}`:                       `{"exec":{"command":["a","b"]}}`,
		`{"grpc":{"port":1,"service":"s"}}`:                    `{"grpc":{"port":1,"service":"s"}}`,
	} {
		got, err := parseProbe(text)
		if got = strings.ReplaceAll(got, " ", ""); err != nil || got != want { // protojson has spaces as it likes
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{`[]`, `{"periodSeconds":"soon"}`, `{"httpGet":{"port":-1}}`, `{"httpGet":{},"exec":{}}`} {
		if got, err := parseProbe(text); err == nil {
			t.Errorf("%s is taken, as %s", text, got)
		}
	}
}
