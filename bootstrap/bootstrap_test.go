package bootstrap

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/internal/unixsock"
	"understudy.mesh/tests/golden"
	"understudy.mesh/tests/realenvoy"
)

// marshalText gives the text of the file that `envoy -c` reads, as indented JSON.
func marshalText(b *bootstrapv3.Bootstrap) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, err
	}
	// protojson varies its white space on purpose, so that nobody compares its output.
	var out bytes.Buffer
	err = json.Indent(&out, raw, "", "  ")
	out.WriteByte('\n')
	return out.Bytes(), err
}

func base() Config {
	return Config{
		Node:      Node{ID: "sidecar~10.1.1.1~web-0.default~default.svc.cluster.local", Cluster: "web.default"},
		AdminPath: "/etc/istio/proxy/admin.1.sock",
		XDSPath:   "/etc/istio/proxy/xds.1.sock",
		StatsPort: 15090,
		IPv4:      true,
	}
}

func with(change func(*Config)) Config {
	c := base()
	change(&c)
	return c
}

// cases are the goldens: testdata/<name>.json, each of which a real Envoy accepts.
func cases() map[string]Config {
	return map[string]Config{
		"default":  base(),
		"no-stats": with(func(c *Config) { c.StatsPort = 0 }),
		"ipv6":     with(func(c *Config) { c.IPv4, c.IPv6 = false, true }),
		"dual-loopback-json": with(func(c *Config) {
			c.IPv6, c.StatsLoopbackOnly, c.LogJSON = true, true, true
		}),
		"proxy-mark": with(func(c *Config) {
			c.ProxyMark, c.DNSServer = 0xffffffff, netip.MustParseAddrPort("127.0.0.1:53535")
		}),
		"full": with(func(c *Config) {
			c.IPv6 = true
			c.Node.Metadata = map[string]any{
				"NAMESPACE": "default", "LABELS": map[string]any{"app": "web"}, "POD_PORTS": `[{"containerPort":8080}]`, "N": 1.5,
			}
			c.Node.Region, c.Node.Zone, c.Node.SubZone = "cn-hangzhou", "cn-hangzhou-h", "rack1"
			c.RuntimeValues = map[string]string{
				"re2.max_program_size.error_level":                         "1024",
				"envoy.reloadable_features.fixed_heap_use_allocated":       "",
				"envoy.reloadable_features.http_reject_path_with_fragment": "true",
				"overload.global_downstream_max_connections":               "5000",
			}
			c.StatsMatcher = StatsMatcher{Prefixes: []string{"http"}, Suffixes: []string{"upstream_cx_total"}, Regexps: []string{`cluster\.outbound.*`}}
			c.ExtraStatTags = []string{"my.tag"}
			c.ConnectionStats = true
			c.OutlierLogPath = "/dev/stdout"
		}),
	}
}

func TestGoldens(t *testing.T) {
	for name, c := range cases() {
		t.Run(name, func(t *testing.T) {
			b, err := Build(c)
			if err != nil {
				t.Fatal(err)
			}
			got, err := marshalText(b)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, filepath.Join("testdata", name+".json"), string(got))
		})
	}
}

// TestFormsAgree reads both forms back: whichever file Envoy gets, it is this message.
func TestFormsAgree(t *testing.T) {
	for name, c := range cases() {
		t.Run(name, func(t *testing.T) {
			want, err := Build(c)
			if err != nil {
				t.Fatal(err)
			}
			text, err := marshalText(want)
			if err != nil {
				t.Fatal(err)
			}
			binary, err := MarshalBinary(want)
			if err != nil {
				t.Fatal(err)
			}
			var fromText, fromBinary bootstrapv3.Bootstrap
			if err := protojson.Unmarshal(text, &fromText); err != nil {
				t.Fatal(err)
			}
			if err := proto.Unmarshal(binary, &fromBinary); err != nil {
				t.Fatal(err)
			}
			// Not proto.Equal: JSON opens an Any, and the bytes in it come back in another order.
			again, err := marshalText(&fromText)
			if err != nil {
				t.Fatal(err)
			}
			if string(again) != string(text) {
				t.Errorf("JSON does not give the message back:\n%s", again)
			}
			if !proto.Equal(want, &fromBinary) {
				t.Error("the binary form does not give the message back")
			}
		})
	}
}

// TestEnvoyAccepts has a real Envoy validate every case, in both forms, and fails on
// any word of deprecation or of an unknown runtime flag.
func TestEnvoyAccepts(t *testing.T) {
	envoy := realenvoy.Path(t, "..")
	for name, c := range cases() {
		for suffix, marshal := range map[string]func(*bootstrapv3.Bootstrap) ([]byte, error){".json": marshalText, ".pb": MarshalBinary} {
			t.Run(name+suffix, func(t *testing.T) {
				b, err := Build(c)
				if err != nil {
					t.Fatal(err)
				}
				text, err := marshal(b)
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(t.TempDir(), "bootstrap"+suffix)
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(envoy, "--mode", "validate", "-l", "info", "--disable-hot-restart", "-c", path).CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				for line := range strings.Lines(string(out)) {
					// The runtime's dump holds the flag with "deprecated" in its name.
					line = strings.ReplaceAll(line, "deprecated_", "")
					for _, bad := range []string{"eprecated", "nknown", "[warning]", "[error]", "\twarning\t", "\terror\t", `"warning"`, `"error"`} {
						if strings.Contains(line, bad) && !strings.Contains(line, "runtime: layers:") {
							t.Errorf("Envoy says %q", line)
						}
					}
				}
			})
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	long := "/" + strings.Repeat("x", unixsock.MaxPath)
	for name, tc := range map[string]struct {
		config Config
		want   string
	}{
		"no node":                 {with(func(c *Config) { c.Node.ID = "" }), "Node.ID"},
		"no admin":                {with(func(c *Config) { c.AdminPath = "" }), "AdminPath is empty"},
		"long xds path":           {with(func(c *Config) { c.XDSPath = long }), "has 108 bytes"},
		"one socket":              {with(func(c *Config) { c.XDSPath = c.AdminPath }), "two sockets"},
		"no family":               {with(func(c *Config) { c.IPv4 = false }), "neither IPv4 nor IPv6"},
		"metadata":                {with(func(c *Config) { c.Node.Metadata = map[string]any{"a": make(chan int)} }), "Node.Metadata"},
		"regexp":                  {with(func(c *Config) { c.StatsMatcher.Regexps = []string{"("} }), `Regexps "("`},
		"empty prefix":            {with(func(c *Config) { c.StatsMatcher.Prefixes = []string{""} }), "empty prefix"},
		"no SDS":                  {with(func(c *Config) { c.Istiod = &Istiod{} }), "Istiod.SDSPath is empty"},
		"nobody for certificates": {with(func(c *Config) { c.MetricsService = Service{Host: "m", Port: 1, TLS: "SIMPLE"} }), "MetricsService.TLS without Istiod"},
		"load reports":            {with(func(c *Config) { c.Istiod = &Istiod{SDSPath: "/s", LoadStats: `{"a":1}`} }), "ISTIO_META_LOAD_STATS_CONFIG_JSON"},
		"connection limit":        {with(func(c *Config) { c.RuntimeValues = map[string]string{MaxConnectionsKey: "many"} }), `"many"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Build(tc.config); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// The longest path that fits must also work.
func TestLongestSocketPath(t *testing.T) {
	c := with(func(c *Config) { c.XDSPath = "/" + strings.Repeat("x", unixsock.MaxPath-1) })
	if _, err := Build(c); err != nil {
		t.Error(err)
	}
}

// TestExternalSecrets: where another server has the workload's certificate, Envoy gets only what is in files of this one.
func TestExternalSecrets(t *testing.T) {
	b, err := Build(with(func(c *Config) {
		c.Istiod = &Istiod{SDSPath: "/spire", FilesPath: "/ours", SecureStatsPort: 15091}
		c.MetricsService = Service{Host: "m", Port: 1, TLS: "MUTUAL", Certificate: "/c", Key: "/k", CA: "/ca"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{}
	for _, c := range b.GetStaticResources().GetClusters() {
		for _, e := range c.GetLoadAssignment().GetEndpoints() {
			paths[c.GetName()] = e.GetLbEndpoints()[0].GetEndpoint().GetAddress().GetPipe().GetPath()
		}
	}
	if paths["sds-grpc"] != "/spire" || paths["sds-files-grpc"] != "/ours" {
		t.Errorf("sockets %v", paths)
	}
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"default": "sds-grpc", "ROOTCA": "sds-grpc", "file-cert:/c~/k": "sds-files-grpc", "file-root:/ca": "sds-files-grpc"} {
		_, config, found := strings.Cut(strings.ReplaceAll(string(text), " ", ""), `"name":"`+name+`","sdsConfig":`)
		_, cluster, _ := strings.Cut(config, `"clusterName":"`)
		if cluster, _, _ = strings.Cut(cluster, `"`); !found || cluster != want {
			t.Errorf("%s is asked of %q, want %s", name, cluster, want)
		}
	}
}
