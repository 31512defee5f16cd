// Package wasmfilter owns the configuration of Envoy's Wasm filters: which module one wants, and the same configuration with that
// module in it, for the Envoy of this pod.
//
// Istiod sends a filter with a module from elsewhere in this form, with what the agent needs to know in variables of the module's
// environment, and so do the documents of files that ask for modules. No Envoy is ever given it as it is.
package wasmfilter

import (
	"fmt"
	"maps"
	"strings"
	"time"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	tcpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"understudy.mesh/pkg/wasm"
)

// The variables by which a configuration says how its module is to be had. The first two are Istio's; it and we take all that begin with
// envPrefix out of what Envoy gets.
const (
	envPrefix = "ISTIO_META_"
	// EnvSecret is a pull secret: the name of one that is mounted, or, as istiod sends it, the docker config itself.
	EnvSecret = envPrefix + "WASM_IMAGE_PULL_SECRET"
	// EnvPolicy is IfNotPresent or Always.
	EnvPolicy = envPrefix + "WASM_IMAGE_PULL_POLICY"
	// envOptionalSecret is the name of a pull secret that is used if it is mounted.
	envOptionalSecret = envPrefix + "UNDERSTUDY_WASM_OPTIONAL_SECRET"
	// EnvPoll is how often a tag is looked up again, as a duration.
	EnvPoll = envPrefix + "UNDERSTUDY_WASM_POLL"
)

// noSHA256 is what istiod sends where there is none.
const noSHA256 = "nil"

// Filter is the configuration of one Wasm filter, and what it wants.
type Filter struct {
	Source wasm.Source
	Poll   time.Duration // how often the source is asked again; 0: once
	Open   bool          // without its module, traffic passes

	message proto.Message
	plugin  *wasmv3.PluginConfig // within message
}

// Of reads the configuration of a filter. It is nil for one that wants no module: of another type, or with its code inline.
func Of(config *anypb.Any) (*Filter, error) {
	m, err := message(config)
	if m == nil || err != nil {
		return nil, err
	}
	f := &Filter{message: m}
	switch m := m.(type) {
	case *httpwasmv3.Wasm:
		f.plugin = m.GetConfig()
	case *tcpwasmv3.Wasm:
		f.plugin, f.Source.Plugin.Network = m.GetConfig(), true
	}
	code := f.plugin.GetVmConfig().GetCode()
	switch {
	case code.GetRemote() != nil:
		f.Source.URL = code.GetRemote().GetHttpUri().GetUri()
		if sum := code.GetRemote().GetSha256(); sum != noSHA256 {
			f.Source.SHA256 = sum
		}
	case code.GetLocal().GetFilename() != "":
		f.Source.URL = "file://" + code.GetLocal().GetFilename()
	default:
		return nil, nil
	}
	f.Open = f.plugin.GetFailurePolicy() == wasmv3.FailurePolicy_FAIL_OPEN
	if f.plugin.GetFailurePolicy() == wasmv3.FailurePolicy_UNSPECIFIED {
		//lint:ignore SA1019 older istiods send it
		f.Open = f.plugin.GetFailOpen()
	}
	if err := f.environment(); err != nil {
		return nil, err
	}
	f.Source.Plugin.Config, err = asJSON(f.plugin)
	return f, err
}

// message is the configuration of a Wasm filter, nil if it is of another type.
func message(config *anypb.Any) (proto.Message, error) {
	var m proto.Message
	switch name := typeName(config.GetTypeUrl()); name {
	case nameOf(&httpwasmv3.Wasm{}), nameOf(&tcpwasmv3.Wasm{}):
		m = empty(name)
		return m, config.UnmarshalTo(m)
	case nameOf(&xdsv3.TypedStruct{}), nameOf(&udpav1.TypedStruct{}):
	default:
		return nil, nil
	}
	outer, err := config.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	inner := outer.(interface {
		GetTypeUrl() string
		GetValue() *structpb.Struct
	})
	if m = empty(typeName(inner.GetTypeUrl())); m == nil {
		return nil, nil
	}
	text, err := protojson.Marshal(inner.GetValue())
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	return m, err
}

// empty is a message of one of the two types, nil for any other name.
func empty(name string) proto.Message {
	switch name {
	case nameOf(&httpwasmv3.Wasm{}):
		return &httpwasmv3.Wasm{}
	case nameOf(&tcpwasmv3.Wasm{}):
		return &tcpwasmv3.Wasm{}
	}
	return nil
}

func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

func nameOf(m proto.Message) string { return string(proto.MessageName(m)) }

// environment reads the variables that are for the agent, and takes them out.
func (f *Filter) environment() error {
	env := f.plugin.GetVmConfig().GetEnvironmentVariables()
	values := env.GetKeyValues()
	if secret, there := values[EnvSecret]; there {
		switch {
		case secret == "":
			f.Source.DockerConfig = []byte{} // istiod found no such Secret, with which nothing is to be had
		case strings.HasPrefix(strings.TrimSpace(secret), "{"):
			f.Source.DockerConfig = []byte(secret)
		default:
			f.Source.Secret = secret[strings.LastIndexByte(secret, '/')+1:]
		}
	}
	f.Source.SecretIfThere = values[envOptionalSecret]
	switch values[EnvPolicy] {
	case "IfNotPresent":
		f.Source.Policy = wasm.IfNotPresent
	case "Always":
		f.Source.Policy = wasm.Always
	}
	if text := values[EnvPoll]; text != "" {
		var err error
		if f.Poll, err = time.ParseDuration(text); err != nil || f.Poll <= 0 {
			return fmt.Errorf("%s is %q, should be a duration such as 5m", EnvPoll, text)
		}
	}
	maps.DeleteFunc(values, func(name, _ string) bool { return strings.HasPrefix(name, envPrefix) })
	if env != nil && len(values)+len(env.GetHostEnvKeys()) == 0 {
		f.plugin.GetVmConfig().EnvironmentVariables = nil
	}
	return nil
}

// asJSON is the plugin's configuration without its code. A configuration of a type that is not linked reaches a module as its bytes, as
// those in a BytesValue do.
func asJSON(plugin *wasmv3.PluginConfig) ([]byte, error) {
	plugin = proto.CloneOf(plugin)
	if vm := plugin.GetVmConfig(); vm != nil {
		vm.Code = nil
		vm.Configuration = known(vm.GetConfiguration())
	}
	plugin.Configuration = known(plugin.GetConfiguration())
	text, err := protojson.Marshal(plugin)
	if err != nil {
		return nil, fmt.Errorf("the configuration of the filter %q cannot be JSON: %w", plugin.GetName(), err)
	}
	return text, nil
}

func known(config *anypb.Any) *anypb.Any {
	if config.GetTypeUrl() == "" {
		return nil // which istiod sends where there is none
	}
	if _, err := protoregistry.GlobalTypes.FindMessageByURL(config.GetTypeUrl()); err == nil {
		return config
	}
	bytes, err := pack(wrapperspb.Bytes(config.GetValue()))
	if err != nil {
		return nil // a message of bytes serializes
	}
	return bytes
}

// With is the configuration for an Envoy that has the module at a path.
func (f *Filter) With(path string) (*anypb.Any, error) {
	m := proto.Clone(f.message)
	var vm *wasmv3.VmConfig
	switch m := m.(type) {
	case *httpwasmv3.Wasm:
		vm = m.GetConfig().GetVmConfig()
	case *tcpwasmv3.Wasm:
		vm = m.GetConfig().GetVmConfig()
	}
	vm.Code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
		Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}},
	}}
	return pack(m)
}

// pack serializes to the same bytes every time, so that what did not change changes nothing.
func pack(m proto.Message) (*anypb.Any, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + nameOf(m), Value: body}, err
}
