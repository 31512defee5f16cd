package wasmplugin

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	extensions "istio.io/api/extensions/v1alpha1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/wasm/wasmfilter"
)

const whole = `
apiVersion: v1
kind: ConfigMap
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: headers, namespace: shop, labels: {a: b}}
spec:
  selector: {matchLabels: {app: details}}
  match: [{mode: SERVER, ports: [{number: 9080}]}]
  phase: AUTHN
  priority: -10
  type: NETWORK
  url: registry.example.com/headers:v1
  sha256: "` + hash + `"
  imagePullPolicy: Always
  imagePullSecret: registry
  pluginName: my_root_id
  failStrategy: FAIL_OPEN
  pluginConfig: {large: 9007199254740993, text: "<a>&", list: [1, {b: null, a: true}], 1: 1.5}
  vmConfig: {env: [{name: A, value: b}, {name: POD_NAME, valueFrom: HOST}]}
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: least}
spec: {url: "file:///a.wasm"}
`

const hash = "3034198ae999d8dfc0f8b735c597da6b873f893ca68793e6bde3c4312bccb841"

func TestRead(t *testing.T) {
	plugins, err := Read([]byte(whole), "default")
	if err != nil || len(plugins) != 2 {
		t.Fatalf("%+v, %v", plugins, err)
	}
	p := plugins[0]
	s := p.Source
	if p.Namespace != "shop" || p.Name != "headers" || s.URL != "oci://registry.example.com/headers:v1" || s.SHA256 != hash || s.Policy != wasm.Always || s.Secret != "registry" || !s.Plugin.Network {
		t.Errorf("%+v", p)
	}
	const want = `{"configuration":{"@type":"type.googleapis.com/google.protobuf.StringValue",` +
		`"value":"{\"1\":1.5,\"large\":9007199254740993,\"list\":[1,{\"a\":true,\"b\":null}],\"text\":\"<a>&\"}"},` +
		`"failurePolicy":"FAIL_OPEN","name":"shop.headers","rootId":"my_root_id",` +
		`"vmConfig":{"environmentVariables":{"hostEnvKeys":["POD_NAME"],"keyValues":{"A":"b"}},"runtime":"envoy.wasm.runtime.v8"}}`
	if compact(t, s.Plugin.Config) != want {
		t.Errorf("%s", s.Plugin.Config)
	}
	var back struct{ Configuration struct{ Value string } }
	if err := json.Unmarshal(s.Plugin.Config, &back); err != nil || !strings.Contains(back.Configuration.Value, `"<a>&"`) {
		t.Errorf("the module is given %q, %v", back.Configuration.Value, err)
	}
	p = plugins[1]
	if p.Namespace != "default" || p.Source.Policy != wasm.DefaultPolicy || p.Source.Plugin.Network || compact(t, p.Source.Plugin.Config) != `{"failurePolicy":"FAIL_CLOSED","name":"default.least","vmConfig":{"runtime":"envoy.wasm.runtime.v8"}}` {
		t.Errorf("%+v, %s", p, p.Source.Plugin.Config)
	}
}

// compact has the keys of JSON in order.
func compact(t *testing.T, text []byte) string {
	t.Helper()
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(tree); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// TestPlace: what the document says of its place becomes that of the filter, which has the name that istiod gives it.
func TestPlace(t *testing.T) {
	plugins, err := Read([]byte(whole), "default")
	if err != nil {
		t.Fatal(err)
	}
	p := plugins[0].filter()
	if p.Selector["app"] != "details" || p.Phase != 1 || p.Priority != -10 || !p.Network || p.FilterName != "extensions.istio.io/wasmplugin/shop.headers" ||
		!reflect.DeepEqual(p.Match, []envoyfilter.Match{{Server: true, Ports: []uint16{9080}}}) {
		t.Errorf("%+v", p)
	}
	p = plugins[1].filter()
	if p.Selector != nil || p.Phase <= 3 || p.Priority != envoyfilter.LeastPriority || p.Network || p.Match != nil || p.FilterName != "extensions.istio.io/wasmplugin/default.least" {
		t.Errorf("%+v", p)
	}
	all := matches([]*extensions.WasmPlugin_TrafficSelector{{}, {Mode: typev1beta1.WorkloadMode_CLIENT}, {Mode: typev1beta1.WorkloadMode_CLIENT_AND_SERVER}})
	if want := []envoyfilter.Match{{Client: true, Server: true}, {Client: true}, {Client: true, Server: true}}; !reflect.DeepEqual(all, want) {
		t.Errorf("%+v", all)
	}
}

// TestNew: beside the source, pull policy, secret and poll reach whoever fetches the module, and no Envoy.
func TestNew(t *testing.T) {
	r := document.NewReader()
	r.Begin([]byte(whole))
	spec := map[any]any{"url": "a.example/b:v1", "imagePullPolicy": "Always", "imagePullSecret": "registry", "pluginConfig": map[any]any{}}
	f, remarks, ferr := New(r, envoyfilter.Meta{Namespace: "shop", Name: "headers"}, "5m", spec)
	if ferr != nil || len(remarks) > 0 || f.Title() != "WasmPlugin shop/headers" {
		t.Fatalf("%+v, %v, %v", f, remarks, ferr)
	}
	p := Plugin{Namespace: "shop", Name: "headers", poll: "5m"}
	if ferr := p.read(r, spec); ferr != nil {
		t.Fatal(ferr)
	}
	filter, err := wasmfilter.Of(p.config)
	if err != nil || filter.Poll != 5*time.Minute || filter.Source.Secret != "registry" || filter.Source.Policy != wasm.Always || strings.Contains(string(filter.Source.Plugin.Config), "configuration") {
		t.Errorf("%+v, %v", filter, err)
	}
	spec["sha256"] = hash
	if _, remarks, _ := New(r, envoyfilter.Meta{}, "5m", spec); len(remarks) != 1 || !strings.Contains(remarks[0].Error(), "has no effect") {
		t.Errorf("%v", remarks)
	}
	for _, poll := range []string{"often", "1s", "-5m"} {
		if f, _, ferr := New(r, envoyfilter.Meta{}, poll, spec); ferr == nil || ferr.Field != "metadata.annotations[understudy.mesh/poll]" {
			t.Errorf("%s: %+v, %v", poll, f, ferr)
		}
	}
	if f, _, ferr := New(r, envoyfilter.Meta{}, "", nil); ferr == nil || ferr.Field != "spec" {
		t.Errorf("%+v, %v", f, ferr)
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	for spec, want := range map[string]string{
		`{}`:                             "spec.url: is missing",
		`{url: "ftp://a/b"}`:             "spec.url: has the scheme",
		`{url: "file://a.wasm"}`:         "should have an absolute path",
		`{url: a, sha256: abc}`:          "spec.sha256: is \"abc\", should be 64 hexadecimal digits",
		`{url: 3}`:                       "spec.url",
		`{url: a, urk: b}`:               "unknown field",
		`{url: a, phase: X}`:             "spec.phase",
		`{url: a, type: http}`:           "spec.type",
		`{url: a, priority: high}`:       "spec.priority: is high, should be a whole number",
		`{url: a, priority: 3000000000}`: "spec.priority",
		`{url: a, failStrategy: CLOSE}`:  "spec.failStrategy",
		`{url: "a@sha256:` + hash + `", sha256: "` + hash[1:] + `0"}`:                                                    "spec.sha256: is another than the one in url",
		`{url: a, verificationKey: k}`:                                                                                   "spec.verificationKey: signatures are not verified",
		`{url: a, targetRefs: [{kind: Gateway, name: g}]}`:                                                               "spec.targetRefs: is not for a sidecar",
		`{url: a, targetRef: {kind: Gateway, name: g}}`:                                                                  "spec.targetRef: is not for a sidecar",
		`{url: a, pluginName: ` + strings.Repeat("n", 257) + `}`:                                                         "spec.pluginName: has 257 bytes",
		`{url: a, pluginConfig: text}`:                                                                                   "spec.pluginConfig: should be an object",
		`{url: a, pluginConfig: {a: .nan}}`:                                                                              "spec.pluginConfig",
		`{url: a, pluginConfig: {}, plugin_config: {}}`:                                                                  "the same field",
		`{url: a, match: [{ports: [{number: 0}]}]}`:                                                                      "spec.match[0].ports[0].number: is 0",
		`{url: a, match: [{ports: [{number: 70000}]}]}`:                                                                  "spec.match[0].ports[0].number: is 70000",
		`{url: a, match: [{mode: INBOUND}]}`:                                                                             "spec.match[0].mode",
		`{url: a, vmConfig: {env: [{value: b}]}}`:                                                                        "spec.vmConfig.env[0].name: is missing",
		`{url: a, vmConfig: {env: [{name: A}, {name: A}]}}`:                                                              "spec.vmConfig.env[1].name: A is there twice",
		`{url: a, vmConfig: {env: [{name: ISTIO_META_WASM_IMAGE_PULL_SECRET}]}}`:                                         "is for the agent's use",
		`{url: a, vmConfig: {env: [{name: A, value: b, valueFrom: HOST}]}}`:                                              "spec.vmConfig.env[0].value",
		`{url: a, pluginConfig: {a: &a "` + strings.Repeat("a", 1<<19) + `", b: [` + strings.Repeat("*a, ", 100) + `]}}`: "spec.pluginConfig",
		`text`: "spec: should be an object",
	} {
		data := "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: plug}\nspec: " + spec
		plugins, err := Read([]byte(data), "default")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), `document 1, WasmPlugin "plug": `) {
			t.Errorf("%.300s: %+v, %.300v; want %q", spec, plugins, err, want)
		}
	}
	for data, want := range map[string]string{
		"kind: WasmPlugin":                                      "metadata: should be an object",
		"kind: WasmPlugin\nmetadata: {name: [a]}":               "metadata.name",
		"kind: WasmPlugin\nmetadata: {name: a}\nspec: {url: a}": "apiVersion: is",
		"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {}\nspec: {url: a}":          "metadata.name: is missing",
		"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nsepc: {url: a}":   "sepc: unknown field",
		"apiVersion: networking.istio.io/v1alpha3\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: a}\n": "should be extensions.istio.io/v1alpha1",
		"kind: WasmPlugin\nmetadata: {name: a, namespace: [b]}":                                             "metadata.namespace",
		"a: [":                          "document 1: is not YAML",
		"kind: Pod\n---\na: b\na: c":    "document 2: ",
		whole + "---\nkind: WasmPlugin": "document 4, WasmPlugin",
	} {
		if plugins, err := Read([]byte(data), "default"); err == nil || !strings.Contains(err.Error(), want) || plugins != nil {
			t.Errorf("%q: %+v, %v; want %q", data, plugins, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"kind":"WasmPlugin","apiVersion":"extensions.istio.io/v1alpha1","metadata":{"name":"a"},"spec":{"url":"a","plugin_config":{"a":[1e400]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		plugins, err := Read(data, "default")
		for _, p := range plugins {
			if err != nil || p.Name == "" || p.Namespace == "" || !json.Valid(p.Source.Plugin.Config) {
				t.Errorf("%+v, %v", p, err)
			}
		}
	})
}
