package envoyfilter

import (
	"cmp"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Istio's prefixes of the statistics of what stands in a module's place.
const (
	allowPrefix = "wasm-default-allow"
	denyPrefix  = "wasm-default-deny"
)

// Extension is the configuration of a Wasm filter, which listeners only name: Envoy discovers it, so that a module that
// changes, or comes late, changes no listener.
type Extension struct {
	Name     string     // stable for as long as the documents have the same patches
	Document string     // kind, namespace and name of the one that adds the filter
	Config   *anypb.Any // as the documents say it: the module is still to be had
}

// wasmPlugin is the configuration of a Wasm filter whose module is to be had: out of a file, or from elsewhere. It is nil of
// any other filter.
func wasmPlugin(config *anypb.Any) *wasmv3.PluginConfig {
	if !isWasm(config) {
		return nil
	}
	var plugin *wasmv3.PluginConfig
	m, _ := config.UnmarshalNew() // a bad one is Envoy's to refuse
	switch m := m.(type) {
	case *httpwasmv3.Wasm:
		plugin = m.GetConfig()
	case *tcpwasmv3.Wasm:
		plugin = m.GetConfig()
	}
	code := plugin.GetVmConfig().GetCode()
	if code.GetLocal().GetFilename() == "" && code.GetRemote().GetHttpUri().GetUri() == "" {
		return nil
	}
	return plugin
}

func isWasm(config *anypb.Any) bool {
	return config.MessageIs(&httpwasmv3.Wasm{}) || config.MessageIs(&tcpwasmv3.Wasm{})
}

// failsOpen says whether traffic may pass a plugin that is not there.
func failsOpen(plugin *wasmv3.PluginConfig) bool {
	if policy := plugin.GetFailurePolicy(); policy != wasmv3.FailurePolicy_UNSPECIFIED {
		return policy == wasmv3.FailurePolicy_FAIL_OPEN
	}
	//lint:ignore SA1019 documents have it
	return plugin.GetFailOpen()
}

// Placeholder is what stands in the place of a Wasm filter, of HTTP or of connections, whose module is not there. It lets
// everything pass, or nothing, as Istio has it.
func Placeholder(network, open bool) (*anypb.Any, error) {
	rules, prefix := &rbacv3.RBAC{}, denyPrefix // no rule allows anything
	if open {
		rules, prefix = nil, allowPrefix
	}
	if network {
		return pack(&networkrbacv3.RBAC{Rules: rules, StatPrefix: prefix})
	}
	return pack(&httprbacv3.RBAC{Rules: rules, RulesStatPrefix: prefix})
}

// discovered makes a filter name its configuration in the place of having it. The agent always has one for the name, so
// that a listener warms for no longer than Envoy takes to start the module; what the agent has first is what serves first.
func discovered(config *anypb.Any, plugin *wasmv3.PluginConfig) (*corev3.ExtensionConfigSource, error) {
	placeholder, err := Placeholder(config.MessageIs(&tcpwasmv3.Wasm{}), failsOpen(plugin))
	if err != nil {
		return nil, err
	}
	return &corev3.ExtensionConfigSource{
		ConfigSource:  &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}},
		DefaultConfig: placeholder, // of an Envoy that refuses its first
		TypeUrls:      []string{config.GetTypeUrl(), placeholder.GetTypeUrl()},
	}, nil
}

// source is what brought a filter: the patches, and the title of the first one's document.
type source struct{ name, document string }

// source names a patch.
func (e *entry) source() source {
	if e.plugin != nil {
		return source{e.plugin.FilterName, e.owner.Title()}
	}
	kind := strings.ToLower(cmp.Or(e.owner.Kind, "EnvoyFilter"))
	return source{fmt.Sprintf("%s/%s/%s/%d", kind, e.owner.Namespace, e.owner.Name, e.place), e.owner.Title()}
}

// extension notes the configuration of a filter that is to discover it, and returns the filter's name and source. The name is
// that of the patches which made it. Both are empty for one that has its configuration.
func (r *run) extension(filter proto.Message) (name string, source *corev3.ExtensionConfigSource, err error) {
	_, config, _ := parts(filter)
	plugin := wasmPlugin(config)
	if plugin == nil {
		return "", nil, nil
	}
	origin := r.origins[filter]
	if source, err = discovered(config, plugin); err != nil {
		return "", nil, err
	}
	r.extensions = append(r.extensions, Extension{Name: origin.name, Document: origin.document, Config: config})
	return origin.name, source, nil
}

// discoverNetwork and discoverHTTP have filters discover their configurations.
func (r *run) discoverNetwork(filters []*listenerv3.Filter) error {
	for _, f := range filters {
		name, source, err := r.extension(f)
		if err != nil {
			return err
		}
		if source != nil {
			f.Name, f.ConfigType = name, &listenerv3.Filter_ConfigDiscovery{ConfigDiscovery: source}
		}
	}
	return nil
}

func (r *run) discoverHTTP(filters []*hcmv3.HttpFilter) error {
	for _, f := range filters {
		name, source, err := r.extension(f)
		if err != nil {
			return err
		}
		if source != nil {
			f.Name, f.ConfigType = name, &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: source}
		}
	}
	return nil
}
