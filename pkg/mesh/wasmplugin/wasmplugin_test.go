package wasmplugin

import (
	"encoding/json"
	"strings"
	"testing"

	"understudy.mesh/pkg/wasm"
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
	if p.Namespace != "shop" || p.Name != "headers" || s.URL != "registry.example.com/headers:v1" || s.SHA256 != hash || s.Policy != wasm.Always || s.Secret != "registry" || !s.Plugin.Network {
		t.Errorf("%+v", p)
	}
	const want = `{"configuration":{"@type":"type.googleapis.com/google.protobuf.StringValue",` +
		`"value":"{\"1\":1.5,\"large\":9007199254740993,\"list\":[1,{\"a\":true,\"b\":null}],\"text\":\"\u003ca\u003e\u0026\"}"},` +
		`"failurePolicy":"FAIL_OPEN","name":"shop.headers","rootId":"my_root_id",` +
		`"vmConfig":{"environmentVariables":{"hostEnvKeys":["POD_NAME"],"keyValues":{"A":"b"}}}}`
	if string(s.Plugin.Config) != want {
		t.Errorf("%s", s.Plugin.Config)
	}
	var back struct{ Configuration struct{ Value string } }
	if err := json.Unmarshal(s.Plugin.Config, &back); err != nil || !strings.Contains(back.Configuration.Value, `"<a>&"`) {
		t.Errorf("the module is given %q, %v", back.Configuration.Value, err)
	}
	p = plugins[1]
	if p.Namespace != "default" || p.Source.Policy != wasm.DefaultPolicy || p.Source.Plugin.Network || string(p.Source.Plugin.Config) != `{"failurePolicy":"FAIL_CLOSED","name":"default.least","rootId":""}` {
		t.Errorf("%+v, %s", p, p.Source.Plugin.Config)
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	for spec, want := range map[string]string{
		`{}`:                             "spec.url: is missing",
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
