package sidecar

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3" // Istio's admin has one
	"go.yaml.in/yaml/v2"
	"google.golang.org/protobuf/encoding/protojson"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/platform"
	"understudy.mesh/tests/golden"
	"understudy.mesh/tests/realenvoy"
)

// istioCases are agents of which Istio's own code has said what it would start Envoy with:
// NAME.yaml is what the agent finds, NAME.istio.json what Istio makes of it, and NAME.diff how
// ours differs, and why.
const istioCases = "testdata/istio"

// reasons are why something in the bootstrap, whose path begins so, is other than Istio's. What is
// other for no reason is a mistake.
func reasons() []struct{ path, why string } {
	return []struct{ path, why string }{
		{`admin\.`, "The admin is a Unix socket of this generation's, which the agent serves at 15000 and logs."},
		{`typed_dns_resolver_config`, "Envoy asks the agent for names, past what the agent answers the application."},
		{`node\.metadata\.ANNOTATIONS\.kubectl\.kubernetes\.io/last-applied-configuration`, "It repeats the pod's whole manifest, and istiod does not read it."},
		{`static_resources\.clusters\[agent\]`, "The agent serves 15021 itself: without a merged port over mutual TLS nothing leads to it."},
		{`static_resources\.clusters\[prometheus_stats\]\.load_assignment`, "The admin is a Unix socket."},
		{`static_resources\.clusters\[(xds|sds)-grpc\]\.load_assignment`, "Each generation has sockets of its own, so that the next one does not take them for another's."},
		{`static_resources\.clusters\[xds-grpc\]\.max_requests_per_connection`, "Deprecated there: it is in HttpProtocolOptions."},
		{`static_resources\.clusters\[xds-grpc\]\.typed_extension_protocol_options.*\.common_http_protocol_options`, "One stream a connection, where Envoy now has it."},
		{`static_resources\.listeners\[15021\]`, "The agent serves it, so that it does not blink when Envoy is replaced."},
		{`static_resources\.listeners\[\d+\]\.name`, "Its name says what it is."},
		{`static_resources\.listeners\[\d+\]\..*\.route(\.timeout|s\[\d+\]\.match)`, "A scrape has as long as its client gives it, and of the path only whole segments count."},
		{`static_resources\.listeners\[\d+\]\..*\.initial_fetch_timeout`, "The certificate comes when the CA has signed it, however long that takes."},
		{`layered_runtime\..*\.http_strip_fragment_from_path_unsafe_if_disabled`, "Envoy takes a feature flag only as a boolean."},
		{`layered_runtime\..*\.overload\.global_downstream_max_connections`, "Deprecated there: it is in the overload manager."},
		{`static_resources\.listeners\[\d+\]\.(additional_addresses\[0\]\.)?address\.socket_address\.address`, "Both families are listened on, IPv4 first."},
		{`stats_config\.stats_matcher\.inclusion_list\.patterns\[\{"safe_regex":\{"regex":"http`, "The dots of an address are dots, not any character."},
	}
}

// istioCase is what an agent finds when it starts.
type istioCase struct {
	Role        string            `yaml:"role"`
	Addresses   []string          `yaml:"addresses"`
	Files       map[string]string `yaml:"files"`
	Environment map[string]string `yaml:"environment"`
	LogAsJSON   bool              `yaml:"logAsJSON"`
}

func TestBootstrapIsIstios(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(istioCases, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	used := map[string]bool{}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			stem := strings.TrimSuffix(path, ".yaml")
			data, err := os.ReadFile(stem + ".istio.json")
			if err != nil {
				t.Fatal(err)
			}
			istio := canonical(t, data)
			ours := canonical(t, marshalled(t, caseBootstrap(t, path)))
			golden.Check(t, stem+".diff", explain(t, differences("", istio, ours), used))
		})
	}
	for _, r := range reasons() {
		if !used[r.path] {
			t.Errorf("no case differs at %s any more: take the reason away", r.path)
		}
	}
}

// TestEnvoyTakesIt has a real Envoy validate the bootstrap of every case.
func TestEnvoyTakesIt(t *testing.T) {
	binary := realenvoy.Path(t, "../../../..")
	paths, _ := filepath.Glob(filepath.Join(istioCases, "*.yaml"))
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "envoy.pb")
			data, err := bootstrap.MarshalBinary(caseBootstrap(t, path))
			if err == nil {
				err = os.WriteFile(file, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(binary, "--mode", "validate", "--disable-hot-restart", "-c", file).CombinedOutput()
			if strings.HasPrefix(filepath.Base(path), "secure") {
				// Only Istio's Envoy has the extension that asks for peers' metadata.
				if err == nil || !strings.Contains(string(out), "Didn't find a registered implementation for 'metadata_discovery'") {
					t.Errorf("%v\n%s", err, out)
				}
				return
			}
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// caseBootstrap is what the agent of a case would start Envoy with.
func caseBootstrap(t *testing.T, path string) *bootstrapv3.Bootstrap {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c istioCase
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		t.Fatal(err)
	}
	src := config.Sources{Role: config.Role(c.Role), Flags: map[string]string{"log_as_json": fmt.Sprint(c.LogAsJSON)}}
	for key, value := range c.Environment {
		src.Environ = append(src.Environ, key+"="+value)
	}
	for _, text := range c.Addresses {
		src.NodeIPs = append(src.NodeIPs, netip.MustParseAddr(text))
	}
	src.ReadFile = func(name string) ([]byte, error) {
		if text, ok := c.Files[filepath.Clean(name)]; ok {
			return []byte(text), nil
		}
		return nil, fs.ErrNotExist
	}
	src.Platform = func(name string, ipv4 bool, static map[string]string) (config.Platform, error) {
		info, err := platform.Ask(t.Context(), name, platform.Machine{IPv4: ipv4, Static: static})
		return config.Platform(info), err
	}
	cfg, warnings, err := config.Load(src)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	b := bootstrapConfig(cfg)
	b.AdminPath, b.XDSPath, b.Istiod.SDSPath = "/gen/admin.sock", "/gen/xds.sock", "/gen/sds.sock"
	b.DNSServer = netip.MustParseAddrPort("127.0.0.1:5353")
	if cfg.StatsdAddress != "" {
		b.Statsd = netip.MustParseAddrPort(cfg.StatsdAddress)
	}
	made, err := bootstrap.Build(b)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func marshalled(t *testing.T, b *bootstrapv3.Bootstrap) []byte {
	t.Helper()
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// canonical is a bootstrap as JSON without what is at its default.
func canonical(t *testing.T, data []byte) any {
	t.Helper()
	// Istio writes wrapped numbers as objects, which Envoy's parser takes.
	data = regexp.MustCompile(`(?s)\{\s*"value": (\d+)\s*\}`).ReplaceAll(data, []byte("$1"))
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(data, &b); err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(marshalled(t, &b), &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// difference is one place where two trees are not the same.
type difference struct{ path, istio, ours string }

func differences(path string, istio, ours any) []difference {
	istio, ours = keyed(path, istio), keyed(path, ours)
	a, aok := istio.(map[string]any)
	b, bok := ours.(map[string]any)
	if !aok || !bok {
		x, y := text(istio), text(ours)
		if x == y {
			return nil
		}
		return []difference{{path, x, y}}
	}
	keys := map[string]bool{}
	for key := range a {
		keys[key] = true
	}
	for key := range b {
		keys[key] = true
	}
	var all []difference
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		at := key
		if path != "" && !strings.HasPrefix(key, "[") {
			at = "." + key
		}
		all = append(all, differences(path+at, a[key], b[key])...)
	}
	return all
}

// keyed turns a list into a map, by what tells its members apart, and opens a TypedStruct.
func keyed(path string, v any) any {
	if m, ok := v.(map[string]any); ok && m["@type"] == "type.googleapis.com/udpa.type.v1.TypedStruct" {
		opened := map[string]any{"@type": m["type_url"]}
		if value, ok := m["value"].(map[string]any); ok {
			maps.Copy(opened, value)
		}
		return opened
	}
	list, ok := v.([]any)
	if !ok {
		return v
	}
	m := map[string]any{}
	for i, member := range list {
		m["["+memberKey(path, i, member)+"]"] = member
	}
	return m
}

func memberKey(path string, i int, member any) string {
	m, ok := member.(map[string]any)
	switch {
	case !ok:
	case strings.HasSuffix(path, ".listeners"):
		return fmt.Sprint(m["address"].(map[string]any)["socket_address"].(map[string]any)["port_value"])
	case strings.HasSuffix(path, ".patterns"):
		return text(m)
	case m["name"] != nil:
		return m["name"].(string)
	}
	return fmt.Sprint(i)
}

func text(v any) string {
	if v == nil {
		return "nothing"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// explain writes the differences below their reasons, and fails for one that has none.
func explain(t *testing.T, all []difference, used map[string]bool) string {
	t.Helper()
	byReason := map[string][]difference{}
	for _, d := range all {
		found := false
		for _, r := range reasons() {
			if regexp.MustCompile("^" + r.path).MatchString(d.path) {
				used[r.path], found = true, true
				byReason[r.why] = append(byReason[r.why], d)
				break
			}
		}
		if !found {
			t.Errorf("%s is other than Istio's for no reason:\n\tIstio's: %s\n\tours:    %s", d.path, d.istio, d.ours)
		}
	}
	var out strings.Builder
	for _, r := range reasons() {
		ds := byReason[r.why]
		if len(ds) == 0 {
			continue
		}
		delete(byReason, r.why)
		fmt.Fprintf(&out, "# %s\n", r.why)
		for _, d := range ds {
			if d.ours == "nothing" {
				d.istio = "something" // which is not ours to keep the same
			}
			fmt.Fprintf(&out, "%s\n  Istio's: %s\n  ours:    %s\n", d.path, d.istio, d.ours)
		}
	}
	return out.String()
}
