package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"understudy.mesh/pkg/config/document"
)

// TestProblems has one case for each way to be wrong: the line must name the source,
// the key, the value and what would be right.
func TestProblems(t *testing.T) {
	long := strings.Repeat("a", 67)
	flag := func(name, value string) Sources { return Sources{Flags: map[string]string{name: value}} }
	env := func(entry string) Sources { return Sources{Environ: []string{entry}} }
	file := func(path, text string) Sources { return Sources{ReadFile: files(map[string]string{path: text})} }
	for _, tc := range []struct {
		name string
		src  Sources
		want string // the whole error, or its beginning before "..."
	}{
		{"port", flag("statusPort", "99999"), `command line: --statusPort="99999": want a port from 1 to 65535, or 0 to turn it off`},
		{"port zero", flag("proxyAdminPort", "0"), `command line: --proxyAdminPort="0": want a port from 1 to 65535`},
		{"bool", env("ISTIO_META_DNS_CAPTURE=yes"), `environment: ISTIO_META_DNS_CAPTURE="yes": want true or false`},
		{"duration", flag("drainDuration", "45"), `command line: --drainDuration="45": want a duration from 0s to 720h0m0s, such as 45s or 1m30s`},
		{"negative duration", flag("drainDuration", "-1s"), `command line: --drainDuration="-1s": want a duration...`},
		{"too short", flag("drainDuration", "10ms"), `command line: --drainDuration="10ms": want at least 1s...`},
		{"parts of a second", env("UNDERSTUDY_DNS_TTL=1500ms"), `environment: UNDERSTUDY_DNS_TTL="1.5s": want whole seconds, at least 1s...`},
		{"no TTL", env("UNDERSTUDY_DNS_TTL=0s"), `environment: UNDERSTUDY_DNS_TTL="0s": want whole seconds, at least 1s...`},
		{"seconds", env("TERMINATION_DRAIN_DURATION_SECONDS=5s"), `environment: TERMINATION_DRAIN_DURATION_SECONDS="5s": want a whole number of seconds...`},
		{"memory without a unit of Go's", env("GOMEMLIMIT=1G"), `environment: GOMEMLIMIT="1G": want a number of bytes such as 134217728 or 128MiB, or off`},
		{"memory beyond all", env("GOMEMLIMIT=9000000000TiB"), `environment: GOMEMLIMIT="9000000000TiB": want a number of bytes...`},
		{"configuration of the day before yesterday", env("UNDERSTUDY_LAST_GOOD_AGE=25h"), `environment: UNDERSTUDY_LAST_GOOD_AGE="25h0m0s": want at most 24h...`},
		{"count", flag("concurrency", "-1"), `command line: --concurrency="-1": want a whole number...`},
		{"cores", env("ISTIO_CPU_LIMIT=many"), `environment: ISTIO_CPU_LIMIT="many": want a number of cores...`},
		{"not a number of cores", env("ISTIO_CPU_LIMIT=NaN"), `environment: ISTIO_CPU_LIMIT="NaN": want a number of cores...`},
		{"ip", env("INSTANCE_IP=10.0.0"), `environment: INSTANCE_IP="10.0.0": want an IP address`},
		{"host and port", flag("discoveryAddress", "istiod"), `command line: --discoveryAddress="istiod": want host:port...`},
		{"listening address", env("DNS_PROXY_ADDR=example.org:53"), `environment: DNS_PROXY_ADDR="example.org:53": want address:port...`},
		{"log levels", flag("log_output_level", "dnsproxy:loud"), `command line: --log_output_level="dnsproxy:loud": scope "dnsproxy": level "loud" is not one of debug...`},
		{"Envoy's level", flag("proxyLogLevel", "verbose"), `command line: --proxyLogLevel="verbose": "verbose" is not one of trace...`},
		{"only component levels", flag("proxyLogLevel", "misc:error"), `command line: --proxyLogLevel="misc:error": want a level besides...`},
		{"Envoy's components", flag("proxyComponentLogLevel", "error"), `command line: --proxyComponentLogLevel="error": want component:level parts...`},
		{"lifetime", env("SECRET_TTL=30y"), `environment: SECRET_TTL="30y": want a duration from 0s to 87600h0m0s, such as 24h`},
		{"no lifetime", env("SECRET_TTL=10ms"), `environment: SECRET_TTL="10ms": want at least 1s...`},
		{"ratio", env("SECRET_GRACE_PERIOD_RATIO=2"), `environment: SECRET_GRACE_PERIOD_RATIO="2": want a number from 0 to 1...`},
		{"not a ratio", env("SECRET_GRACE_PERIOD_RATIO_JITTER=NaN"), `environment: SECRET_GRACE_PERIOD_RATIO_JITTER="NaN": want a number from 0 to 1...`},
		{"old roots", env("UNDERSTUDY_OLD_ROOTS=never"), `environment: UNDERSTUDY_OLD_ROOTS="never": want leaf, or a duration from 0s...`},
		{"keep", env("UNDERSTUDY_KEEP_CERTIFICATE=always"), `environment: UNDERSTUDY_KEEP_CERTIFICATE="always": want off or auto`},
		{"another CA", env("CA_PROVIDER=GoogleCA"), `environment: CA_PROVIDER="GoogleCA": want Citadel...`},
		{"signature algorithm", env("ECC_SIGNATURE_ALGORITHM=ED25519"), `environment: ECC_SIGNATURE_ALGORITHM="ED25519": want ECDSA...`},
		{"short key", env("WORKLOAD_RSA_KEY_SIZE=1024"), `environment: WORKLOAD_RSA_KEY_SIZE="1024": want 2048 to 8192 bits`},
		{"two certificates for istiod", Sources{Environ: []string{"PROV_CERT=/p", "FILE_MOUNTED_CERTS=true"}}, `environment: PROV_CERT="/p": want none beside FILE_MOUNTED_CERTS...`},
		{"regexp", file(annotationsFile, `sidecar.istio.io/statsInclusionRegexps="a("`), `annotation: sidecar.istio.io/statsInclusionRegexps="a(": want regular expressions...`},
		{"empty path", flag("binaryPath", ""), `command line: --binaryPath: want a path`},
		{"long path", flag("configPath", long), `command line: --configPath="` + long + `": 67 bytes, want at most 66: a Unix socket's path holds 107 bytes...`},
		{"interception mode", env("ISTIO_META_INTERCEPTION_MODE=tproxy"), `environment: ISTIO_META_INTERCEPTION_MODE="tproxy": want REDIRECT, TPROXY or NONE`},
		{"interception mode, annotation", file(annotationsFile, `sidecar.istio.io/interceptionMode="X"`), `annotation: sidecar.istio.io/interceptionMode="X": want REDIRECT...`},
		{"mark", env("PROXY_MARK=0"), `environment: PROXY_MARK="0": want a number from 1 to 0xffffffff...`},
		{"mark with a mask", flag("proxyMark", "1/1"), `command line: --proxyMark="1/1": want a number...`},
		{"a mark of TPROXY mode", env("PROXY_MARK=1338"), `environment: PROXY_MARK="0x53a": want another than 0x539 and 0x53a...`},
		{"role", Sources{Role: "waypoint"}, `command line: role="waypoint": want sidecar or router`},
		{"PROXY_CONFIG type", env(`PROXY_CONFIG={"statusPort":"abc"}`), `PROXY_CONFIG: statusPort="abc": want a number of type int32`},
		{"PROXY_CONFIG duration", env("PROXY_CONFIG=drainDuration: 1m"), `PROXY_CONFIG: drainDuration="1m": want a duration in seconds, such as "45s"`},
		{"PROXY_CONFIG metadata", env("PROXY_CONFIG=proxyMetadata: {A: true}"), `PROXY_CONFIG: proxyMetadata.A="true": want a string (in quotes)`},
		{"PROXY_CONFIG nested", env("PROXY_CONFIG=proxyStatsMatcher: {inclusionPrefixes: [a, {}]}"), `PROXY_CONFIG: proxyStatsMatcher.inclusionPrefixes[1]="{}": want a string (in quotes)`},
		{"PROXY_CONFIG map", env("PROXY_CONFIG=gatewayTopology: 3"), `PROXY_CONFIG: gatewayTopology="3": want a map of settings`},
		{"PROXY_CONFIG dropped field", env("PROXY_CONFIG=parentShutdownDuration: soon"), `PROXY_CONFIG: parentShutdownDuration="soon": want a duration...`},
		{"PROXY_CONFIG syntax", env("PROXY_CONFIG={"), `PROXY_CONFIG: ProxyConfig: want YAML or JSON: ...`},
		{"PROXY_CONFIG twice", env("PROXY_CONFIG=statusPort: 1\nstatusPort: 2"), `PROXY_CONFIG: ProxyConfig: want YAML or JSON: yaml: unmarshal errors: line 2: key "statusPort" already set in map`},
		{"PROXY_CONFIG list", env("PROXY_CONFIG=[1]"), `PROXY_CONFIG: ProxyConfig: want a map of settings...`},
		{"PROXY_CONFIG size", env("PROXY_CONFIG=" + strings.Repeat("#", document.MaxBytes+1)), `PROXY_CONFIG: ProxyConfig: 1048577 bytes, want at most 1048576`},
		{"PROXY_CONFIG map of messages", env("PROXY_CONFIG=tracing: {customTags: {a: 1}}"), `PROXY_CONFIG: tracing.customTags.a="1": want a map of settings`},
		{"PROXY_CONFIG field in a map", env("PROXY_CONFIG=tracing: {customTags: {a: {literal: {value: 1}}}}"), `PROXY_CONFIG: tracing.customTags.a.literal.value="1": want a string (in quotes)`},
		{"PROXY_CONFIG list of messages", file(meshPath, "extensionProviders: [1, {name: 2}]"), meshPath + `: extensionProviders[0]="1": want a map of settings...`},
		{"PROXY_CONFIG no list", env("PROXY_CONFIG=extraStatTags: a"), `PROXY_CONFIG: extraStatTags="a": want a list`},
		{"PROXY_CONFIG no map", env("PROXY_CONFIG=proxyMetadata: a"), `PROXY_CONFIG: proxyMetadata="a": want a map`},
		{"PROXY_CONFIG key", env("PROXY_CONFIG={[a]: b}"), `PROXY_CONFIG: ProxyConfig: want ...`},
		{"PROXY_CONFIG infinity", env("PROXY_CONFIG=statusPort: .inf"), `PROXY_CONFIG: ProxyConfig: +Inf is not a number that JSON knows`},
		{"long value is cut", env("PROXY_CONFIG=statusPort: " + strings.Repeat("é", 100)), `PROXY_CONFIG: statusPort="` + strings.Repeat("é", 60) + `"...: want a number of type int32`},
		{"annotation's ProxyConfig", file(annotationsFile, `proxy.istio.io/config="concurrency: x"`), `annotation proxy.istio.io/config: concurrency="x": want a number`},
		{"annotations file", file(annotationsFile, "a=\"b\"\nc"), annotationsFile + `: downward API: line 2: want key="quoted value"`},
		{"unreadable labels", file(labelsFile, "unreadable"), labelsFile + `: downward API: want a readable file: open ` + labelsFile + `: permission denied`},
		{"mesh file", file(meshPath, "accessLogEncoding: XML"), meshPath + `: accessLogEncoding="XML": want one of TEXT, JSON`},
		{"mesh file's ProxyConfig", file(meshPath, "defaultConfig: {proxyAdminPort: 70000}"), meshPath + `: defaultConfig.proxyAdminPort="70000": want a port from 1 to 65535`},
		{"no time to connect", file(meshPath, "connectTimeout: 0s"), meshPath + `: connectTimeout="0s": want at least 1ms...`},
		{"mesh file unreadable", file(meshPath, "unreadable"), meshPath + `: mesh config: want a readable file: ...`},
		{"bytes", env("ISTIO_META_X=\xff"), `environment: ISTIO_META_X="\xff": want UTF-8 text`},
		{"bytes in a setting", env("POD_NAME=\xff"), `environment: POD_NAME="\xff": want UTF-8 text`},
		{"bytes in an annotation", file(annotationsFile, `a="\xff"`), annotationsFile + `: downward API: line 1: want key="quoted value"`},
		{"token is masked", env("PROXY_CONFIG=tracing: {lightstep: {accessToken: 5}}"), `PROXY_CONFIG: tracing.lightstep.accessToken="(masked)": want a string (in quotes)`},
		{"metadata JSON", env("ISTIO_METAJSON_LABELS=[]"), `environment: ISTIO_METAJSON_LABELS="[]": want a JSON object of at most 1048576 bytes`},
		{"prober JSON is masked", env("ISTIO_KUBE_APP_PROBERS=token=abc"), `environment: ISTIO_KUBE_APP_PROBERS="(masked)": want a JSON object`},
		{"capture port", flag("statusPort", "15001"), `command line: --statusPort="15001": want another port: this one is Envoy's capture of outbound traffic`},
		{"two servers", env("ENVOY_STATUS_PORT=15090"), `environment: ENVOY_STATUS_PORT="15090": want another port: this one is Envoy's statistics (ENVOY_PROMETHEUS_PORT)`},
		{"DNS port", Sources{Environ: []string{"ISTIO_META_DNS_CAPTURE=true"}, Flags: map[string]string{"statusPort": "15053"}}, `command line: --statusPort="15053": want another port: this one is the DNS server (DNS_PROXY_ADDR)`},
		{"take-over", flag("takeover", "Force"), `command line: --takeover="Force": want auto or force`},
		{"take-over by variable", env("UNDERSTUDY_TAKEOVER=1"), `environment: UNDERSTUDY_TAKEOVER="1": want auto or force`},
		{"statistics of an upgrade", env("UNDERSTUDY_UPGRADE_STATS=no"), `environment: UNDERSTUDY_UPGRADE_STATS="no": want true or false`},
		{"upgrade drain", flag("upgradeDrainDuration", "300"), `command line: --upgradeDrainDuration="300": want a duration...`},
		{"upgrade drain by variable", env("UNDERSTUDY_UPGRADE_DRAIN_DURATION=-1s"), `environment: UNDERSTUDY_UPGRADE_DRAIN_DURATION="-1s": want a duration...`},
		{"upgrade drain too long", flag("upgradeDrainDuration", "8000h"), `command line: --upgradeDrainDuration="8000h": want a duration from 0s to 720h0m0s...`},
		{"long hand-off directory", env("UNDERSTUDY_HANDOFF_DIR=/" + long), `environment: UNDERSTUDY_HANDOFF_DIR="/` + long + `": 68 bytes, want at most 66...`},
		{"bytes in OpenKruise's number", env("SIDECARSET_VERSION=\xff"), `environment: SIDECARSET_VERSION="\xff": want UTF-8 text`},
		{"no log target", flag("log_target", ""), `command line: --log_target: want stdout, stderr or a file`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, _, err := Load(tc.src)
			if err == nil || cfg != nil {
				t.Fatalf("Load accepted it: %v", cfg)
			}
			want, open := strings.CutSuffix(tc.want, "...")
			if got := err.Error(); got != want && !(open && strings.HasPrefix(got, want)) {
				t.Errorf("error\n got %s\nwant %s", got, tc.want)
			}
			if !open && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if got, want := IsUsage(err), strings.HasPrefix(tc.want, sourceFlag); got != want {
				t.Errorf("IsUsage is %v, want %v", got, want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	_, _, err := Load(Sources{
		Flags:   map[string]string{"statusPort": "x", "concurrency": "y"},
		Environ: []string{`PROXY_CONFIG={"statusPort":"z","drainDuration":1}`, "INSTANCE_IP=w"},
	})
	if err == nil {
		t.Fatal("Load accepted it")
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 5 {
		t.Errorf("%d lines, want 5:\n%s", len(lines), err)
	}
	if !IsUsage(err) || !IsUsage(fmt.Errorf("start: %w", &problem{source: sourceFlag})) || IsUsage(errors.New("other")) {
		t.Error("IsUsage is wrong")
	}
}

func TestWarnings(t *testing.T) {
	for _, tc := range []struct {
		name string
		src  Sources
		want []string
	}{
		{"unknown fields, one each", Sources{Environ: []string{"PROXY_CONFIG=zzz: 1\nproxyStatsMatcher: {aaa: 2}\nstatusPort: 16000"}},
			[]string{"PROXY_CONFIG: proxyStatsMatcher.aaa: unknown field, ignored", "PROXY_CONFIG: zzz: unknown field, ignored"}},
		{"dropped field is known", Sources{Environ: []string{"PROXY_CONFIG=parentShutdownDuration: 5s\nconnectTimeout: 1s"}}, nil},
		{"unknown field of the mesh file", Sources{ReadFile: files(map[string]string{meshPath: "defaultConfig: {zzz: 1}\nyyy: 1"})},
			[]string{meshPath + ": defaultConfig.zzz: unknown field, ignored", meshPath + ": yyy: unknown field, ignored"}},
		{"bootstrap template, once", Sources{Flags: map[string]string{"templateFile": "x"}, Environ: []string{"ISTIO_BOOTSTRAP=y", "PROXY_CONFIG=proxyBootstrapTemplatePath: z"}},
			[]string{"PROXY_CONFIG: proxyBootstrapTemplatePath: has no effect: the bootstrap is built from typed parts, not from a template"}},
		{"mesh file that is not there", Sources{Flags: map[string]string{"meshConfig": "/nowhere"}},
			[]string{`command line: --meshConfig: no file at "/nowhere": the defaults hold`}},
		{"no capture", Sources{Environ: []string{"PROXY_CONFIG=interceptionMode: NONE"}},
			[]string{"PROXY_CONFIG: interceptionMode: nothing is captured, and Envoy gets only what is sent to its ports 15001 and 15006: no listener is bound to a service's port, as Istio would; want REDIRECT or TPROXY"}},
		{"old flags are silent", Sources{Flags: map[string]string{"dnsRefreshRate": "300s", "stsPort": "0"}}, nil},
		{"but not what only istiod's resources use", Sources{Flags: map[string]string{"configDir": "x", "zipkinAddress": "z:9411", "statsdUdpAddress": "s:1"}, Environ: []string{"PROXY_CONFIG=zipkinAddress: 'z:9411'"}},
			[]string{"PROXY_CONFIG: zipkinAddress: has no effect with --configDir"}},
		{"tracers that Envoy has no more", Sources{Environ: []string{"PROXY_CONFIG=tracing: {lightstep: {address: 'l:1'}}"}},
			[]string{"PROXY_CONFIG: tracing: no spans: Envoy's bootstrap has tracers for zipkin and datadog; for others use a Telemetry resource"}},
		{"fields of ProxyConfig that nothing reads, once", Sources{Flags: map[string]string{"configDir": "x"}, ReadFile: files(map[string]string{meshPath: "defaultConfig: {tracing: {sampling: 5}}"}),
			Environ: []string{"PROXY_CONFIG=tracing: {zipkin: {address: 'z:1'}}\nconnectionSettings: {httpIdleTimeout: 5s, globalDownstreamConnectionLimit: 7}\nextraStatTags: [a]\nproxyMetadata: {A: b}\nimage: {imageType: x}"}},
			[]string{meshPath + ": defaultConfig.tracing: has no effect with --configDir", "PROXY_CONFIG: connectionSettings.httpIdleTimeout: has no effect with --configDir"}},
		{"under istiod it reads them", Sources{Environ: []string{"PROXY_CONFIG=connectionSettings: {httpIdleTimeout: 5s}", "ISTIO_META_IDLE_TIMEOUT=5s"}}, nil},
		{"but not one that says nothing", Sources{Environ: []string{"PROXY_CONFIG=tracing: {}\nstatsCompression: false\nsds: {enabled: false}\ncaCertificatesPem: []\navailabilityZone: ''"}}, nil},
		{"node metadata on which istiod acts", Sources{Flags: map[string]string{"configDir": "x"}, Environ: []string{"ISTIO_META_IDLE_TIMEOUT=5s", "ISTIO_META_ENABLE_HBONE=false", "ISTIO_META_NETWORK=n", "ISTIO_META_HTTP10="}},
			[]string{"environment: ISTIO_META_IDLE_TIMEOUT: has no effect with --configDir"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.src.Environ = append(tc.src.Environ, "ISTIO_META_ISTIO_VERSION=1.32.0")
			_, warnings := mustLoad(t, tc.src)
			var got []string
			for _, w := range warnings {
				got = append(got, w.String())
			}
			if strings.Join(got, "\n") != strings.Join(tc.want, "\n") {
				t.Errorf("warnings\n got %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestParseRole(t *testing.T) {
	for _, want := range []Role{Sidecar, Router} {
		if got, err := ParseRole(string(want)); got != want || err != nil {
			t.Errorf("%s: %q, %v", want, got, err)
		}
	}
	if _, err := ParseRole("waypoint"); !IsUsage(err) {
		t.Errorf("waypoint: %v, want an error of usage", err)
	}
}

func TestAliasBombs(t *testing.T) {
	nested := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i <= 'j'; i++ {
		nested += fmt.Sprintf("%c: &%c [%s*%c]\n", i, i, strings.Repeat(fmt.Sprintf("*%c,", i-1), 8), i-1)
	}
	wide := "a: &a " + strings.Repeat("x", 1<<18) + "\nb: [" + strings.Repeat("*a,", 1000) + strings.Repeat("1,", 1000) + "]\n"
	for name, doc := range map[string]string{"nested": nested, "wide": wide} {
		if _, _, err := Load(Sources{Environ: []string{"PROXY_CONFIG=" + doc}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := Load(Sources{Environ: []string{"PROXY_CONFIG=x: &a {ISTIO_META_A: b}\nproxyMetadata: *a"}}); err != nil {
		t.Errorf("a plain alias: %v", err)
	}
}
