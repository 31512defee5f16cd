package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/tests/realenvoy"
)

// patchOf is an EnvoyFilter with one patch of the inbound traffic of one port.
func patchOf(applyTo, sub, patch string) string {
	return `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: a}
spec:
  configPatches:
  - applyTo: ` + applyTo + `
    match: {context: SIDECAR_INBOUND, listener: {portNumber: 9080, filterChain: {filter: {name: envoy.filters.network.` + sub + `}}}}
    patch: ` + patch + "\n"
}

// TestTrialChecksConstraints: what breaks a constraint of Envoy's API, however deep, is found by the trial, in words that name the field. So
// the agent links none of the code that would check them: it is larger than the rest of what EnvoyFilters need.
func TestTrialChecksConstraints(t *testing.T) {
	envoy := realenvoy.Path(t, root)
	const prefix = "type.googleapis.com/envoy.extensions.filters."
	const httpManager = "http_connection_manager, subFilter: {name: envoy.filters.http.router}"
	insert := func(config string) string {
		return patchOf("HTTP_FILTER", httpManager, `{operation: INSERT_BEFORE, value: {name: x, typed_config: {"@type": `+prefix+config+`}}}`)
	}
	for _, c := range []struct{ name, text, want string }{
		{"of a type that is not linked", insert(`http.buffer.v3.Buffer`), "MaxRequestBytes"},
		{"a bound", insert(`http.buffer.v3.Buffer, max_request_bytes: 0`), "MaxRequestBytes"},
		{"within a list", insert(`http.jwt_authn.v3.JwtAuthentication, rules: [{match: {prefix: /}}, {}]`), "Match"},
		{"within a message", insert(`http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, token_bucket: {max_tokens: 1}`), "FillInterval"},
		{"an enumeration", insert(`http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, enable_x_ratelimit_headers: 7`), "EnableXRatelimitHeaders"},
		{"of a type that is linked, by a merge", patchOf("NETWORK_FILTER", "http_connection_manager",
			`{operation: MERGE, value: {typed_config: {"@type": `+prefix+`network.http_connection_manager.v3.HttpConnectionManager, max_request_headers_kb: 100000}}}`), "MaxRequestHeadersKb"},
		{"of a network filter", patchOf("NETWORK_FILTER", "tcp_proxy",
			`{operation: REPLACE, value: {name: x, typed_config: {"@type": `+prefix+`network.tcp_proxy.v3.TcpProxy, cluster: a}}}`), "StatPrefix"},
		{"of a configuration to discover", patchOf("HTTP_FILTER", httpManager,
			`{operation: INSERT_BEFORE, value: {name: x, config_discovery: {config_source: {ads: {}}, type_urls: [a/b], default_config: {"@type": `+prefix+`http.buffer.v3.Buffer}}}}`), "MaxRequestBytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, report := load(t, c.text, testOptions())
			if d := report.Documents[0]; d.Status != "ok" {
				t.Fatalf("%+v", d)
			}
			out, err := New(testOptions()).Build(r, nil, filterSet(r))
			if err != nil {
				t.Fatal(err)
			}
			serving, err := proto.Marshal(&bootstrapv3.Bootstrap{Node: &corev3.Node{Id: "a", Cluster: "b"}})
			if err != nil {
				t.Fatal(err)
			}
			bootstrap, err := out.Trial(serving)
			if err != nil || bootstrap == nil {
				t.Fatalf("no trial: %v, %+v", err, out.Filters.Report(out.Patched))
			}
			file := filepath.Join(t.TempDir(), "bootstrap.json")
			if err := os.WriteFile(file, bootstrap, 0o644); err != nil {
				t.Fatal(err)
			}
			text, err := exec.Command(envoy, "--mode", "validate", "-c", file, "-l", "warning").CombinedOutput()
			if err == nil || !strings.Contains(string(text), "Proto constraint validation failed") || !strings.Contains(string(text), c.want) {
				t.Errorf("%v: %s; want the constraint of %s", err, text, c.want)
			}
		})
	}
}
