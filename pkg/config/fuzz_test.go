package config

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"understudy.mesh/internal/unixsock"
)

// holds checks what is true of every Load, whatever the input: an error leaves no
// Config, each problem is one line, and what was accepted is in range.
func holds(t *testing.T, src Sources) {
	t.Helper()
	cfg, _, err := Load(src)
	if err != nil {
		if cfg != nil || err.Error() == "" {
			t.Fatalf("config %v with error %q", cfg, err)
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.Contains(line, ": ") {
				t.Fatalf("a line without a source: %q", line)
			}
		}
		return
	}
	if cfg.AdminPort == 0 || cfg.ReadyPort == 0 || cfg.DrainDuration <= 0 || cfg.BinaryPath == "" || len(cfg.ConfigPath) > unixsock.MaxPath {
		t.Fatalf("accepted: %+v", cfg)
	}
	if _, err := structpb.NewStruct(cfg.Node.Metadata); err != nil {
		t.Fatalf("Envoy cannot carry the metadata: %v", err)
	}
}

func FuzzProxyConfig(f *testing.F) {
	for _, seed := range []string{
		"", `{"statusPort":15020}`, "drainDuration: 45s", "proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}", "a: &a [*a]",
		"concurrency: 1\nproxyStatsMatcher:\n  inclusionRegexps: ['a(']\n", "runtimeValues: {a: b}", "tracing: {zipkin: {address: z}}", "? [a]\n: b", "\xff", "a: 2024-01-01",
		"proxyMetadata: {ISTIO_META_X: !!binary /w==}", "gatewayTopology: {numTrustedProxies: 1}", "privateKeyProvider: {cryptomb: {pollDelay: 1s}}", "fileFlushInterval: {seconds: 1}", "envoyAccessLogService: [1]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		holds(t, Sources{Environ: []string{"PROXY_CONFIG=" + text}})
	})
}

func FuzzMeshFile(f *testing.F) {
	for _, seed := range []string{"", "defaultConfig: {concurrency: 2}", "outboundTrafficPolicy: {mode: 1}", "extensionProviders: [{name: a}]", "defaultConfig: []"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		holds(t, Sources{ReadFile: files(map[string]string{meshPath: text})})
	})
}

func FuzzAnnotations(f *testing.F) {
	for _, seed := range []string{"", `a="b"`, "a=\"b\"\nproxy.istio.io/config=\"concurrency: 2\"", `status.sidecar.istio.io/port="1"`, "a", `="x"`, "a='b'", "a=`b\nc`"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		holds(t, Sources{ReadFile: files(map[string]string{annotationsFile: text, labelsFile: text})})
	})
}

func FuzzSettings(f *testing.F) {
	for _, s := range Settings() {
		f.Add(s.Flag, s.Default, s.Env, s.Default)
	}
	f.Fuzz(func(t *testing.T, flag, flagText, env, envText string) {
		holds(t, Sources{Flags: map[string]string{flag: flagText}, Environ: []string{env + "=" + envText}})
	})
}
