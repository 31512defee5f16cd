package wasmfilter

import (
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tcpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/wasm"
)

// filter is a typed configuration in JSON.
func filter(t testing.TB, text string) *anypb.Any {
	t.Helper()
	a := &anypb.Any{}
	if err := protojson.Unmarshal([]byte(text), a); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return a
}

const (
	httpType    = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
	networkType = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm"
)

// sent is what istiod sends for a WasmPlugin.
func sent(kind, env string) string {
	return `{"@type": "` + kind + `", "config": {"name": "default.headers", "rootId": "r", "failurePolicy": "FAIL_RELOAD",
		"configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "{\"a\":1}"},
		"vmConfig": {"runtime": "envoy.wasm.runtime.v8", "environmentVariables": {` + env + `},
			"code": {"remote": {"sha256": "nil", "httpUri": {"uri": "oci://registry.example.com/headers:v1", "timeout": "30s", "cluster": "_"}}}}}}`
}

func TestOf(t *testing.T) {
	const env = `"hostEnvKeys": ["POD_NAME"], "keyValues": {"A": "b", "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": "7", "ISTIO_META_WASM_IMAGE_PULL_POLICY": "Always",
		"ISTIO_META_WASM_IMAGE_PULL_SECRET": "{\"auths\":{}}", "ISTIO_META_UNDERSTUDY_WASM_POLL": "5m", "ISTIO_META_UNDERSTUDY_WASM_OPTIONAL_SECRET": "asmwasm-cache"}`
	for _, kind := range []string{httpType, networkType} {
		f, err := Of(filter(t, sent(kind, env)))
		if err != nil {
			t.Fatal(err)
		}
		s := f.Source
		if s.URL != "oci://registry.example.com/headers:v1" || s.SHA256 != "" || s.Policy != wasm.Always || s.Secret != "" || string(s.DockerConfig) != `{"auths":{}}` ||
			s.SecretIfThere != "asmwasm-cache" || f.Poll != 5*time.Minute || f.Open || s.Plugin.Network != (kind == networkType) {
			t.Errorf("%+v", f)
		}
		if text := string(s.Plugin.Config); strings.Contains(text, "ISTIO_META") || strings.Contains(text, "registry.example.com") || !strings.Contains(text, "POD_NAME") || !strings.Contains(text, "FAIL_RELOAD") {
			t.Errorf("%s", text)
		}
		local, err := f.With("/store/module.wasm")
		if err != nil {
			t.Fatal(err)
		}
		m, err := local.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		plugin := m.(interface{ GetConfig() *wasmv3.PluginConfig }).GetConfig()
		code := plugin.GetVmConfig().GetCode()
		if code.GetLocal().GetFilename() != "/store/module.wasm" || plugin.GetFailurePolicy() != wasmv3.FailurePolicy_FAIL_RELOAD || plugin.GetRootId() != "r" ||
			len(plugin.GetVmConfig().GetEnvironmentVariables().GetKeyValues()) != 1 || local.GetTypeUrl() != kind {
			t.Errorf("%v", plugin)
		}
	}
}

func TestOfForms(t *testing.T) {
	local := func(kind, more string) string {
		return `{"@type": "` + kind + `", "config": {"vmConfig": {"code": {"local": {"filename": "/a.wasm"}}}` + more + `}}`
	}
	for _, c := range []struct {
		text, url string
		open      bool
	}{
		{local(httpType, ""), "file:///a.wasm", false},
		{local(networkType, `, "failOpen": true`), "file:///a.wasm", true},
		{local(httpType, `, "failOpen": true, "failurePolicy": "FAIL_CLOSED"`), "file:///a.wasm", false},
		{local(httpType, `, "failurePolicy": "FAIL_OPEN"`), "file:///a.wasm", true},
		{`{"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "typeUrl": "` + httpType + `", "value": {"config": {"fail_open": true, "vm_config": {"code": {"local": {"filename": "/a.wasm"}}}}}}`, "file:///a.wasm", true},
		{`{"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "typeUrl": "` + networkType + `", "value": {"config": {"vm_config": {"code": {"local": {"filename": "/a.wasm"}}}}}}`, "file:///a.wasm", false},
		{`{"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "typeUrl": "a/b", "value": {}}`, "", false},
		{`{"@type": "` + httpType + `", "config": {"vmConfig": {"code": {"local": {"inlineBytes": "AGFzbQ=="}}}}}`, "", false},
		{`{"@type": "` + httpType + `"}`, "", false},
		{`{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "a"}`, "", false},
	} {
		f, err := Of(filter(t, c.text))
		if err != nil || (f == nil) != (c.url == "") || f != nil && (f.Source.URL != c.url || f.Open != c.open) {
			t.Errorf("%s: %+v, %v", c.text, f, err)
		}
	}
	if f, err := Of(nil); f != nil || err != nil {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestOfRefusals: none of them shows a secret.
func TestOfRefusals(t *testing.T) {
	for env, want := range map[string]string{
		`"keyValues": {"ISTIO_META_UNDERSTUDY_WASM_POLL": "often"}`:                                            "should be a duration",
		`"keyValues": {"ISTIO_META_UNDERSTUDY_WASM_POLL": "-1s"}`:                                              "should be a duration",
		`"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "{s3cret", "ISTIO_META_UNDERSTUDY_WASM_POLL":"x"}`: "should be a duration",
	} {
		if f, err := Of(filter(t, sent(httpType, env))); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %+v, %v", env, f, err)
		}
	}
	for _, text := range []string{
		`{"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "typeUrl": "` + httpType + `", "value": {"config": {"nope": 1}}}`,
	} {
		if f, err := Of(filter(t, text)); err == nil {
			t.Errorf("%s: %+v", text, f)
		}
	}
	if f, err := Of(&anypb.Any{TypeUrl: httpType, Value: []byte{0xff}}); err == nil {
		t.Errorf("%+v", f)
	}
}

// TestOfNamedSecret: the name of a mounted Secret is not a docker config, and may come as istiod names resources.
func TestOfNamedSecret(t *testing.T) {
	if f, err := Of(filter(t, sent(httpType, `"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": ""}`))); err != nil || f.Source.DockerConfig == nil || len(f.Source.DockerConfig) > 0 {
		t.Errorf("one that istiod has not found: %+v, %v", f, err)
	}
	for given, want := range map[string]string{"registry": "registry", "kubernetes://default/registry": "registry"} {
		f, err := Of(filter(t, sent(httpType, `"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "`+given+`"}`)))
		if err != nil || f.Source.Secret != want || f.Source.DockerConfig != nil {
			t.Errorf("%s: %+v, %v", given, f, err)
		}
		local, err := f.With("/a")
		if err != nil || strings.Contains(string(local.GetValue()), "registry") {
			t.Errorf("%s: %v, %v", given, local, err)
		}
	}
}

// TestOfUnlinkedConfiguration: what only Envoy knows reaches the module as bytes, and the trial of it gets the same.
func TestOfUnlinkedConfiguration(t *testing.T) {
	m := &tcpwasmv3.Wasm{Config: &wasmv3.PluginConfig{
		Configuration: &anypb.Any{TypeUrl: "type.googleapis.com/only.Envoys", Value: []byte("text")},
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			Configuration: &anypb.Any{}, Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "/a"}}}},
		}},
	}}
	config, err := pack(m)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Of(config)
	if err != nil || !strings.Contains(string(f.Source.Plugin.Config), "BytesValue") || !strings.Contains(string(f.Source.Plugin.Config), "dGV4dA==") {
		t.Fatalf("%+v, %v", f, err)
	}
	local, err := f.With("/a")
	if err != nil || !proto.Equal(local, config) {
		t.Errorf("%v, %v", local, err)
	}
}

func FuzzOf(f *testing.F) {
	config := filter(f, sent(httpType, `"keyValues": {"ISTIO_META_WASM_IMAGE_PULL_SECRET": "a", "B": "c"}`))
	f.Add(config.GetTypeUrl(), config.GetValue())
	f.Add(networkType, config.GetValue())
	f.Add("type.googleapis.com/udpa.type.v1.TypedStruct", []byte{})
	f.Fuzz(func(t *testing.T, url string, value []byte) {
		filter, err := Of(&anypb.Any{TypeUrl: url, Value: value})
		if err != nil || filter == nil {
			return
		}
		local, err := filter.With("/store/a.wasm")
		if err != nil {
			t.Fatal(err)
		}
		again, err := Of(local)
		if err != nil || again == nil || again.Source.URL != "file:///store/a.wasm" || again.Source.Secret != "" || again.Source.DockerConfig != nil {
			t.Errorf("%+v, %v", again, err)
		}
	})
}
