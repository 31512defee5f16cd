package envoyfilter

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"
)

// Plugin is a filter whose place follows from what it is for: that of a WasmPlugin. All of them stand before the filters that listeners
// have by themselves, by phase and priority, and before any EnvoyFilter is applied, which may name them.
type Plugin struct {
	Selector map[string]string
	Phase    int
	Priority int32   // within its phase the highest is first
	Match    []Match // any of them; none is all traffic
	Network  bool    // it is a network filter; else one of HTTP
	// FilterName and Config are the filter.
	FilterName string
	Config     *anypb.Any
}

// LeastPriority is that of a plugin which has none.
const LeastPriority = math.MinInt32

// Match is traffic of a pod.
type Match struct {
	Client, Server bool     // the pod is that
	Ports          []uint16 // with one of these; none is all
}

// NewPlugin is the document that asks for a plugin.
func NewPlugin(m Meta, p Plugin) *Filter {
	e := &patch{operation: networking.EnvoyFilter_Patch_INSERT_FIRST, plugin: &p}
	if p.Network {
		e.applyTo = networking.EnvoyFilter_NETWORK_FILTER
		e.value = &listenerv3.Filter{Name: p.FilterName, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: p.Config}}
	} else {
		e.applyTo = networking.EnvoyFilter_HTTP_FILTER
		e.value = &hcmv3.HttpFilter{Name: p.FilterName, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.Config}}
	}
	return &Filter{Meta: m, selector: p.Selector, patches: []*patch{e}, plugin: &p}
}

// pluginOrder is that of two plugins in a filter chain: istiod's.
func (p Proxy) pluginOrder(a, b *Filter) int {
	own := func(f *Filter) int {
		if f.Namespace == p.Namespace {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.plugin.Phase, b.plugin.Phase), cmp.Compare(b.plugin.Priority, a.plugin.Priority), cmp.Compare(own(a), own(b)),
		cmp.Compare(a.Created, b.Created), strings.Compare(a.Name+"."+a.Namespace, b.Name+"."+b.Namespace))
}

// guards says whether a plugin is for the traffic of a filter chain.
func (r *run) guards(e *entry, c *listenerv3.FilterChain) bool {
	inbound := r.context == networking.EnvoyFilter_SIDECAR_INBOUND
	if !inbound && (r.virtual || unknown(c)) {
		return false // as under istiod, which has no plugin before what no service takes
	}
	port := c.GetFilterChainMatch().GetDestinationPort().GetValue()
	if !r.virtual {
		port = r.listener.GetAddress().GetSocketAddress().GetPortValue()
	}
	is := func(m Match) bool {
		return (inbound && m.Server || !inbound && m.Client) && (len(m.Ports) == 0 || slices.Contains(m.Ports, uint16(port)))
	}
	return len(e.plugin.Match) == 0 || slices.ContainsFunc(e.plugin.Match, is)
}

// Istio's names of the clusters to which connections go that are no service's.
const (
	passthroughCluster = "PassthroughCluster"
	blackHoleCluster   = "BlackHoleCluster"
)

// unknown says whether a chain takes connections that are no service's.
func unknown(c *listenerv3.FilterChain) bool {
	m := &tcpproxyv3.TcpProxy{}
	last := c.GetFilters()[len(c.GetFilters())-1].GetTypedConfig()
	return last.MessageIs(m) && last.UnmarshalTo(m) == nil && (m.GetCluster() == passthroughCluster || m.GetCluster() == blackHoleCluster)
}

// plugged puts the plugins that guard a chain before its filters, in their order.
func plugged[F proto.Message](r *run, plugins []*entry, c *listenerv3.FilterChain, filters []F) []F {
	var first []F
	for _, e := range plugins {
		if r.guards(e, c) {
			f := proto.Clone(e.value).(F) // patches may merge into it
			r.origins[f] = e.source()
			first = append(first, f)
			r.tell(e, true, 0, nil)
		}
	}
	return append(first, filters...)
}

// hasPlugin says whether a plugin guards a chain.
func (r *run) hasPlugin(plugins []*entry, c *listenerv3.FilterChain) bool {
	return slices.ContainsFunc(plugins, func(e *entry) bool { return r.guards(e, c) })
}

// pluginPorts are those of inbound traffic that a plugin singles out.
func (p *Plugin) pluginPorts() []uint16 {
	var ports []uint16
	for _, m := range p.Match {
		if m.Server {
			ports = append(ports, m.Ports...)
		}
	}
	return ports
}

// unguarded is why a plugin is in no filter chain.
func (p *Plugin) unguarded() string {
	kind := "HTTP"
	if p.Network {
		kind = "captured"
	}
	if len(p.Match) == 0 {
		return fmt.Sprintf("no %s traffic has a filter chain of its own here", kind)
	}
	return fmt.Sprintf("no filter chain of %s traffic is what its match wants", kind)
}
