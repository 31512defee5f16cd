package wasmplugin

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	tcpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	extensions "istio.io/api/extensions/v1alpha1"

	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/wasm/wasmfilter"
)

const (
	runtime    = "envoy.wasm.runtime.v8"
	typePrefix = "type.googleapis.com/"
	// fetchTimeout is what Envoy's API wants and nobody goes by: no Envoy fetches a module here.
	fetchTimeout = 30 * time.Second
)

var failPolicies = map[extensions.FailStrategy]wasmv3.FailurePolicy{
	extensions.FailStrategy_FAIL_CLOSE:  wasmv3.FailurePolicy_FAIL_CLOSED,
	extensions.FailStrategy_FAIL_OPEN:   wasmv3.FailurePolicy_FAIL_OPEN,
	extensions.FailStrategy_FAIL_RELOAD: wasmv3.FailurePolicy_FAIL_RELOAD,
}

// config is the filter of a message that was checked, in the form in which istiod sends it. text is the configuration of the module, ""
// without one.
func config(name, poll, text string, m *extensions.WasmPlugin) (*anypb.Any, error) {
	plugin := &wasmv3.PluginConfig{Name: name, RootId: m.GetPluginName(), FailurePolicy: failPolicies[m.GetFailStrategy()]}
	if text != "" {
		value, err := pack(wrapperspb.String(text))
		if err != nil {
			return nil, err
		}
		plugin.Configuration = value
	}
	plugin.Vm = &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{Runtime: runtime, Code: code(m), EnvironmentVariables: environment(m, poll)}}
	if m.GetType() == extensions.PluginType_NETWORK {
		return pack(&tcpwasmv3.Wasm{Config: plugin})
	}
	return pack(&httpwasmv3.Wasm{Config: plugin})
}

func code(m *extensions.WasmPlugin) *corev3.AsyncDataSource {
	const file = "file://"
	if path, is := strings.CutPrefix(m.GetUrl(), file); is {
		return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}}}
	}
	url := m.GetUrl()
	if !strings.Contains(url, "://") {
		url = "oci://" + url
	}
	return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
		HttpUri: &corev3.HttpUri{Uri: url, Timeout: durationpb.New(fetchTimeout), HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "_"}},
		Sha256:  m.GetSha256(),
	}}}
}

// environment is that of the module, with what the agent is to know in it; nil if it is empty.
func environment(m *extensions.WasmPlugin, poll string) *wasmv3.EnvironmentVariables {
	env := &wasmv3.EnvironmentVariables{KeyValues: map[string]string{}}
	for _, v := range m.GetVmConfig().GetEnv() {
		if v.GetValueFrom() == extensions.EnvValueSource_HOST {
			env.HostEnvKeys = append(env.HostEnvKeys, v.GetName())
		} else {
			env.KeyValues[v.GetName()] = v.GetValue()
		}
	}
	if m.GetImagePullSecret() != "" {
		env.KeyValues[wasmfilter.EnvSecret] = m.GetImagePullSecret()
	}
	if m.GetImagePullPolicy() != extensions.PullPolicy_UNSPECIFIED_POLICY {
		env.KeyValues[wasmfilter.EnvPolicy] = m.GetImagePullPolicy().String()
	}
	if poll != "" {
		env.KeyValues[wasmfilter.EnvPoll] = poll
	}
	if len(env.KeyValues)+len(env.HostEnvKeys) == 0 {
		return nil
	}
	return env
}

// pack serializes to the same bytes every time.
func pack(m proto.Message) (*anypb.Any, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return &anypb.Any{TypeUrl: typePrefix + string(proto.MessageName(m)), Value: body}, err
}

// jsonOf is a tree as JSON text, on one line and with its keys in order, whatever the order in the document. It is made of the tree: in a
// Struct an integer beyond 2^53 would be another one.
func jsonOf(r *document.Reader, tree any) (string, *document.Error) {
	value, ferr := r.JSON(tree)
	if ferr != nil {
		return "", ferr
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // the module may compare
	if err := encoder.Encode(value); err != nil {
		return "", document.Errorf("", "cannot be JSON: %v", err)
	}
	return string(bytes.TrimSpace(out.Bytes())), nil
}
