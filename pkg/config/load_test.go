package config

import (
	"io/fs"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const meshPath = "./etc/istio/config/mesh"

// files is a ReadFile over a map.
func files(m map[string]string) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		text, ok := m[path]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		if text == "unreadable" {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
		}
		return []byte(text), nil
	}
}

func mustLoad(t *testing.T, src Sources) (*Config, []Warning) {
	t.Helper()
	cfg, warnings, err := Load(src)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return cfg, warnings
}

func TestDefaults(t *testing.T) {
	cfg, warnings := mustLoad(t, Sources{Environ: []string{"ISTIO_META_ISTIO_VERSION=1.32.0"}})
	if len(warnings) != 0 {
		t.Errorf("warnings %v, want none", warnings)
	}
	got := map[string]any{
		"role": cfg.Role, "configPath": cfg.ConfigPath, "binaryPath": cfg.BinaryPath,
		"ports":  [4]uint16{cfg.StatusPort, cfg.ReadyPort, cfg.AdminPort, cfg.StatsPort},
		"drain":  [4]time.Duration{cfg.DrainDuration, cfg.ParentShutdownDuration, cfg.UpgradeDrainDuration, cfg.TerminationDrainDuration},
		"domain": cfg.Domain, "level": cfg.ProxyLogLevel, "handoff": cfg.HandoffDir, "dns": cfg.DNSCapture,
		"merge": cfg.MergeEnvoyStats, "timeouts": [2]time.Duration{cfg.ConnectTimeout, cfg.DetectionTimeout},
	}
	want := map[string]any{
		"role": Sidecar, "configPath": "./etc/istio/proxy", "binaryPath": "/usr/local/bin/envoy",
		"ports":  [4]uint16{15020, 15021, 15000, 15090},
		"drain":  [4]time.Duration{45 * time.Second, time.Minute, time.Minute, 5 * time.Second},
		"domain": "default.svc.cluster.local", "level": "warning", "handoff": "", "dns": false,
		"merge": true, "timeouts": [2]time.Duration{10 * time.Second, 100 * time.Millisecond},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

// TestPrecedence sets one setting in one more source at a time; the latest must win.
func TestPrecedence(t *testing.T) {
	src := Sources{Flags: map[string]string{}}
	tree := map[string]string{}
	src.ReadFile = files(tree)
	steps := []struct {
		name string
		add  func()
		want uint16
	}{
		{"default", func() {}, 15020},
		{meshPath, func() { tree[meshPath] = "defaultConfig: {statusPort: 16001}" }, 16001},
		{"PROXY_CONFIG", func() { src.Environ = []string{`PROXY_CONFIG={"statusPort":16002}`} }, 16002},
		{"annotation proxy.istio.io/config", func() { tree[annotationsFile] = `proxy.istio.io/config="statusPort: 16003"` }, 16003},
		{"annotation", func() { tree[annotationsFile] += "\n" + `status.sidecar.istio.io/port="16004"` }, 16004},
		{"command line", func() { src.Flags["statusPort"] = "16005" }, 16005},
	}
	for _, step := range steps {
		step.add()
		cfg, _ := mustLoad(t, src)
		if cfg.StatusPort != step.want {
			t.Errorf("with %s: status port %d, want %d", step.name, cfg.StatusPort, step.want)
		}
		for _, v := range cfg.Effective() {
			if v.Name == "statusPort" && v.Source != step.name {
				t.Errorf("with %s: the dump names the source %q", step.name, v.Source)
			}
		}
	}
}

// TestEnvironmentPrecedence does the same for a setting that is also a variable.
func TestEnvironmentPrecedence(t *testing.T) {
	metadata := "proxyMetadata:\n  TERMINATION_DRAIN_DURATION_SECONDS: \"11\"\n"
	for _, tc := range []struct {
		name string
		env  []string
		want time.Duration
	}{
		{"field", []string{"PROXY_CONFIG=terminationDrainDuration: 10s"}, 10 * time.Second},
		{"proxyMetadata over field", []string{"PROXY_CONFIG=terminationDrainDuration: 10s\n" + metadata}, 11 * time.Second},
		{"variable over both", []string{"PROXY_CONFIG=terminationDrainDuration: 10s\n" + metadata, "TERMINATION_DRAIN_DURATION_SECONDS=12"}, 12 * time.Second},
		{"empty variable is not set", []string{"PROXY_CONFIG=terminationDrainDuration: 10s", "TERMINATION_DRAIN_DURATION_SECONDS="}, 10 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if cfg, _ := mustLoad(t, Sources{Environ: tc.env}); cfg.TerminationDrainDuration != tc.want {
				t.Errorf("got %s, want %s", cfg.TerminationDrainDuration, tc.want)
			}
		})
	}
}

// TestInterception sets the mode in one more source at a time, in Istio's order; the
// latest must win.
func TestInterception(t *testing.T) {
	annotations := map[string]string{}
	src := Sources{ReadFile: files(annotations)}
	for _, step := range []struct {
		name string
		add  func()
		want Interception
	}{
		{"default", func() {}, Redirect},
		{"PROXY_CONFIG", func() { src.Environ = []string{"PROXY_CONFIG=interceptionMode: TPROXY"} }, TPROXY},
		{"annotation", func() { annotations[annotationsFile] = `sidecar.istio.io/interceptionMode="REDIRECT"` }, Redirect},
		{"environment", func() { src.Environ = append(src.Environ, "ISTIO_META_INTERCEPTION_MODE=TPROXY") }, TPROXY},
	} {
		step.add()
		cfg, _ := mustLoad(t, src)
		if cfg.Interception != step.want {
			t.Errorf("with %s: %s, want %s", step.name, cfg.Interception, step.want)
		}
	}
	cfg, _ := mustLoad(t, src)
	if got, want := cfg.Spelled("interceptionMode"), "environment: ISTIO_META_INTERCEPTION_MODE=TPROXY"; got != want {
		t.Errorf("spelled %q, want %q", got, want)
	}
}

// TestProxyMark: one entry of proxyMetadata reaches both containers of a pod.
func TestProxyMark(t *testing.T) {
	for _, env := range []string{"PROXY_MARK=0x5357", "PROXY_MARK=21335", `PROXY_CONFIG=proxyMetadata: {PROXY_MARK: "0x5357"}`} {
		if cfg, _ := mustLoad(t, Sources{Environ: []string{env}}); cfg.ProxyMark != 0x5357 {
			t.Errorf("%s: %#x", env, cfg.ProxyMark)
		}
	}
}

func TestProxyMetadataIsMergedByKey(t *testing.T) {
	cfg, _ := mustLoad(t, Sources{
		ReadFile: files(map[string]string{meshPath: `
defaultConfig:
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true", ISTIO_META_A: mesh, ISTIO_META_B: mesh}
`}),
		Environ: []string{"PROXY_CONFIG=proxyMetadata: {ISTIO_META_A: proxy, METRICS_LOCALHOST_ACCESS_ONLY: 'true'}", "ISTIO_META_B=env"},
	})
	if !cfg.DNSCapture {
		t.Error("ISTIO_META_DNS_CAPTURE of the mesh file was lost")
	}
	if !cfg.StatsLoopbackOnly || !cfg.MetricsLoopbackOnly {
		t.Error("METRICS_LOCALHOST_ACCESS_ONLY in proxyMetadata must restrict both ports")
	}
	if a, b := cfg.Node.Metadata["A"], cfg.Node.Metadata["B"]; a != "proxy" || b != "env" {
		t.Errorf("metadata A=%v B=%v, want proxy and env", a, b)
	}
}

// TestManualManifest runs the command line of the ASM manual.
func TestManualManifest(t *testing.T) {
	cfg, warnings := mustLoad(t, Sources{
		Flags: map[string]string{
			"domain": "shop.svc.cluster.local", "serviceCluster": "sleep.shop", "drainDuration": "45s",
			"parentShutdownDuration": "1m0s", "discoveryAddress": "istiod.istio-system.svc:15012",
			"zipkinAddress": "zipkin.istio-system:9411", "proxyLogLevel": "warning",
			"proxyComponentLogLevel": "misc:error", "proxyAdminPort": "15000", "concurrency": "2",
			"controlPlaneAuthPolicy": "NONE", "dnsRefreshRate": "300s", "statusPort": "15021",
			"trust-domain": "cluster.local", "controlPlaneBootstrap": "false",
		},
		Environ: []string{"POD_NAME=sleep-1", "POD_NAMESPACE=shop", "ISTIO_META_ISTIO_VERSION=1.32.0", "INSTANCE_IP=10.0.0.9"},
		NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")},
	})
	if len(warnings) > 0 || cfg.Tracer.String() != "zipkin zipkin.istio-system:9411" {
		t.Errorf("warnings %v, want none; tracer %s", warnings, cfg.Tracer)
	}
	if cfg.StatusPort != 15021 || cfg.ReadyPort != 15021 || cfg.Concurrency != 2 {
		t.Errorf("ports %d, %d, concurrency %d", cfg.StatusPort, cfg.ReadyPort, cfg.Concurrency)
	}
	if want := "sidecar~10.0.0.9~sleep-1.shop~shop.svc.cluster.local"; cfg.Node.ID != want {
		t.Errorf("node id %q, want %q", cfg.Node.ID, want)
	}
	if cfg.Node.Cluster != "sleep.shop" {
		t.Errorf("cluster %q", cfg.Node.Cluster)
	}
	if cfg.ProxyComponentLogLevel != "misc:error" || cfg.ProxyLogLevel != "warning" {
		t.Errorf("levels %q %q", cfg.ProxyLogLevel, cfg.ProxyComponentLogLevel)
	}
	if want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:15053"), netip.MustParseAddrPort("[::1]:15053")}; !cmp.Equal(cfg.DNSAddrs, want, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) {
		t.Errorf("DNS addresses %v", cfg.DNSAddrs)
	}
}

func TestDerived(t *testing.T) {
	isDir := func(path string) bool { return path == DefaultHandoffDir }
	for _, tc := range []struct {
		name string
		src  Sources
		got  func(*Config) any
		want any
	}{
		{"hand-off directory that exists", Sources{IsDir: isDir}, func(c *Config) any { return c.HandoffDir }, "/etc/asm/uds"},
		{"hand-off directory that is not there", Sources{}, func(c *Config) any { return c.HandoffDir }, ""},
		{"hand-off switched off", Sources{IsDir: isDir, Flags: map[string]string{"handoffDir": ""}}, func(c *Config) any { return c.HandoffDir }, ""},
		{"hand-off switched off by an empty variable", Sources{IsDir: isDir, Environ: []string{"UNDERSTUDY_HANDOFF_DIR="}}, func(c *Config) any { return c.HandoffDir }, ""},
		{"hand-off switched off in proxyMetadata", Sources{IsDir: isDir, Environ: []string{`PROXY_CONFIG={"proxyMetadata":{"UNDERSTUDY_HANDOFF_DIR":""}}`}}, func(c *Config) any { return c.HandoffDir }, ""},
		{"hand-off directory by a variable", Sources{IsDir: isDir, Environ: []string{"UNDERSTUDY_HANDOFF_DIR=/run/uds"}}, func(c *Config) any { return c.HandoffDir }, "/run/uds"},
		{"hand-off directory by flag over an empty variable", Sources{IsDir: isDir, Environ: []string{"UNDERSTUDY_HANDOFF_DIR="}, Flags: map[string]string{"handoffDir": "/run/uds"}}, func(c *Config) any { return c.HandoffDir }, "/run/uds"},
		{"upgrade drain follows the parent's", Sources{Environ: []string{"PROXY_CONFIG=parentShutdownDuration: 90s"}}, func(c *Config) any { return c.UpgradeDrainDuration }, 90 * time.Second},
		{"upgrade drain follows the parent's flag", Sources{Flags: map[string]string{"parentShutdownDuration": "1m30s"}}, func(c *Config) any { return c.UpgradeDrainDuration }, 90 * time.Second},
		{"upgrade drain of its own", Sources{Environ: []string{"UNDERSTUDY_UPGRADE_DRAIN_DURATION=10m"}, Flags: map[string]string{"parentShutdownDuration": "1m30s"}}, func(c *Config) any { return c.UpgradeDrainDuration }, 10 * time.Minute},
		{"take-over", Sources{}, func(c *Config) any { return c.Takeover }, TakeoverAuto},
		{"take-over of nothing", Sources{Flags: map[string]string{"takeover": ""}}, func(c *Config) any { return c.Takeover }, TakeoverAuto},
		{"take-over by force", Sources{Environ: []string{"UNDERSTUDY_TAKEOVER=force"}}, func(c *Config) any { return c.Takeover }, TakeoverForce},
		{"take-over by flag over the variable", Sources{Environ: []string{"UNDERSTUDY_TAKEOVER=force"}, Flags: map[string]string{"takeover": "auto"}}, func(c *Config) any { return c.Takeover }, TakeoverAuto},
		{"statistics are carried over", Sources{}, func(c *Config) any { return c.UpgradeStats }, true},
		{"statistics are not carried over", Sources{Environ: []string{"UNDERSTUDY_UPGRADE_STATS=false"}}, func(c *Config) any { return c.UpgradeStats }, false},
		{"OpenKruise's numbers", Sources{Environ: []string{"SIDECARSET_VERSION=3", "SIDECARSET_VERSION_ALT=2"}}, func(c *Config) any { return c.SidecarSetVersion + "/" + c.SidecarSetVersionAlt }, "3/2"},
		{"OpenKruise's numbers, unset", Sources{Environ: []string{"SIDECARSET_VERSION="}}, func(c *Config) any { return c.SidecarSetVersion + "/" + c.SidecarSetVersionAlt }, "/"},
		{"OpenKruise's numbers that are none", Sources{Environ: []string{"SIDECARSET_VERSION=-1 apples", "SIDECARSET_VERSION_ALT=x"}}, func(c *Config) any { return c.SidecarSetVersion + "/" + c.SidecarSetVersionAlt }, "-1 apples/x"},
		{"pod UID", Sources{Environ: []string{"POD_UID=6f7c"}}, func(c *Config) any { return c.PodUID }, "6f7c"},
		{"pod UID unknown", Sources{}, func(c *Config) any { return c.PodUID }, ""},
		{"CPU limit", Sources{Environ: []string{"ISTIO_CPU_LIMIT=1500m"}}, func(c *Config) any { return c.Concurrency }, 2},
		{"memory: half of the control group's", Sources{MemoryLimit: 128 << 20}, func(c *Config) any { return c.MemoryLimit }, int64(64 << 20)},
		{"memory: all of the control group's is not the agent's", Sources{MemoryLimit: 128 << 20, Environ: []string{"GOMEMLIMIT=134217728"}}, func(c *Config) any { return c.MemoryLimit }, int64(64 << 20)},
		{"memory: no limit", Sources{}, func(c *Config) any { return c.MemoryLimit }, int64(0)},
		{"memory: what is set goes before the control group's", Sources{MemoryLimit: 128 << 20, Environ: []string{"GOMEMLIMIT=100MiB"}}, func(c *Config) any { return c.MemoryLimit }, int64(100 << 20)},
		{"memory: bytes", Sources{Environ: []string{"GOMEMLIMIT=1073741824"}}, func(c *Config) any { return c.MemoryLimit }, int64(1 << 30)},
		{"memory: bytes with their unit", Sources{Environ: []string{"GOMEMLIMIT=5B"}}, func(c *Config) any { return c.MemoryLimit }, int64(5)},
		{"memory: off", Sources{MemoryLimit: 128 << 20, Environ: []string{"GOMEMLIMIT=off"}}, func(c *Config) any { return c.MemoryLimit }, int64(math.MaxInt64)},
		{"concurrency over CPU limit", Sources{Environ: []string{"ISTIO_CPU_LIMIT=4", "PROXY_CONFIG=concurrency: 3"}}, func(c *Config) any { return c.Concurrency }, 3},
		{"all cores over CPU limit", Sources{Environ: []string{"ISTIO_CPU_LIMIT=4", "PROXY_CONFIG=concurrency: 0"}}, func(c *Config) any { return c.Concurrency }, 0},
		{"flag concurrency 0 is not set", Sources{Environ: []string{"PROXY_CONFIG=concurrency: 3"}, Flags: map[string]string{"concurrency": "0"}}, func(c *Config) any { return c.Concurrency }, 3},
		{"component levels in the level", Sources{Flags: map[string]string{"proxyLogLevel": "info,misc:error,dns:debug", "proxyComponentLogLevel": "a:off"}}, func(c *Config) any { return c.ProxyLogLevel + " " + c.ProxyComponentLogLevel }, "info misc:error,dns:debug"},
		{"a router has no DNS", Sources{Role: Router, Environ: []string{"ISTIO_META_DNS_CAPTURE=true"}}, func(c *Config) any { return c.DNSCapture }, false},
		{"a router that asks has DNS", Sources{Role: Router, Environ: []string{"ISTIO_META_ENABLE_DNS_SERVER=true"}}, func(c *Config) any { return c.DNSCapture }, true},
		{"loopback when there is no address", Sources{}, func(c *Config) any { return c.Node.ID }, "sidecar~127.0.0.1~.default~default.svc.cluster.local"},
		{"IPv4 only: no ::1 for DNS", Sources{NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}, func(c *Config) any { return len(c.DNSAddrs) }, 1},
		{"registry only", Sources{ReadFile: files(map[string]string{meshPath: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"})}, func(c *Config) any { return c.RegistryOnly }, true},
		{"enumeration by number", Sources{ReadFile: files(map[string]string{meshPath: "outboundTrafficPolicy: {mode: 1}\naccessLogEncoding: 1"})}, func(c *Config) any { return [2]bool{c.RegistryOnly, c.AccessLogJSON} }, [2]bool{false, true}},
		{"snake case field", Sources{Environ: []string{"PROXY_CONFIG=status_port: 16000\nparent_shutdown_duration: 7s"}}, func(c *Config) any { return [2]any{c.StatusPort, c.ParentShutdownDuration} }, [2]any{uint16(16000), 7 * time.Second}},
		{"runtime values", Sources{Environ: []string{`PROXY_CONFIG={"runtimeValues":{"a":"1","b":""}}`}}, func(c *Config) any { return c.RuntimeValues["a"] + "|" + c.RuntimeValues["b"] }, "1|"},
		{"statistics", Sources{Environ: []string{`PROXY_CONFIG={"proxyStatsMatcher":{"inclusionPrefixes":["x","y"]}}`}}, func(c *Config) any { return strings.Join(c.StatsInclusionPrefixes, "+") }, "x+y"},
		{"statistics by annotation", Sources{ReadFile: files(map[string]string{annotationsFile: `sidecar.istio.io/statsInclusionRegexps="a.*, b"`})}, func(c *Config) any { return strings.Join(c.StatsInclusionRegexps, "+") }, "a.*+b"},
		{"DNS on one address", Sources{Environ: []string{"DNS_PROXY_ADDR=[fd00::1]:53"}}, func(c *Config) any { return c.DNSAddrs[0].String() }, "[fd00::1]:53"},
		{"DNS on every address", Sources{Environ: []string{"DNS_PROXY_ADDR=:53"}}, func(c *Config) any { return c.DNSAddrs[0].String() + c.DNSAddrs[1].String() }, "0.0.0.0:53[::]:53"},
		{"status port off", Sources{ReadFile: files(map[string]string{annotationsFile: `status.sidecar.istio.io/port="0"`})}, func(c *Config) any { return c.StatusPort }, uint16(0)},
		{"empty mesh file", Sources{ReadFile: files(map[string]string{meshPath: "# nothing\n"})}, func(c *Config) any { return c.StatusPort }, uint16(15020)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, _ := mustLoad(t, tc.src)
			if got := tc.got(cfg); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
