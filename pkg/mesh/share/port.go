package share

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	mutationsv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"understudy.mesh/pkg/xds"
)

const (
	destinationInput = "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"
	serverNameInput  = "envoy.extensions.matching.common_inputs.network.v3.ServerNameInput"
	protocolInput    = "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput"
	headerInput      = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
	addressMatcher   = "envoy.extensions.matching.input_matchers.ip.v3.Ip"
	routeMessage     = "envoy.config.route.v3.Route"
	stringMessage    = "google.protobuf.StringValue"

	// destinationHeader is the address that the application dialled, for the choice of a route: Envoy chooses by headers
	// alone. What a client says in it is overwritten, and no server sees it.
	destinationHeader = "x-understudy-destination"
)

// outbound is the listener that captures: what becomes of a connection to an address that is no member's is as if there
// were no shared listener.
type outbound struct {
	body []byte
	name string               // of its address
	like *listenerv3.Listener // a listener of a port on every address; its chains are not called as any other one's
}

func newOutbound(body []byte) (*outbound, error) {
	l := &listenerv3.Listener{}
	if err := proto.Unmarshal(body, l); err != nil {
		return nil, fmt.Errorf("read the listener that captures: %w", err)
	}
	o := &outbound{body: body, like: &listenerv3.Listener{
		Address: l.GetAddress(), AdditionalAddresses: l.GetAdditionalAddresses(), TrafficDirection: l.GetTrafficDirection(),
		BindToPort: wrapperspb.Bool(false), DefaultFilterChain: l.GetDefaultFilterChain(),
	}}
	for _, c := range l.GetFilterChains() {
		if len(c.GetFilterChainMatch().GetPrefixRanges()) > 0 { // of the VIPs, to which connections are closed
			o.like.FilterChains = append(o.like.FilterChains, c)
		}
	}
	o.name = l.GetAddress().GetSocketAddress().GetAddress()
	if o.name == netip.IPv6Unspecified().String() {
		o.name = "[" + o.name + "]"
	}
	return o, nil
}

// listenerName is Istio's name of the listener of a port on every address.
func (o *outbound) listenerName(number uint16) string { return fmt.Sprintf("%s_%d", o.name, number) }

// base is what takes the connections to a port that are no member's: the listener of the port on every address, if there
// is one, and otherwise one like that which captures.
func (o *outbound) base(number uint16, there []byte) (*listenerv3.Listener, error) {
	l := proto.Clone(o.like).(*listenerv3.Listener)
	if there != nil {
		l = &listenerv3.Listener{}
		if err := proto.Unmarshal(there, l); err != nil {
			return nil, fmt.Errorf("read the listener that is there: %w", err)
		}
		return l, nil
	}
	l.Name = o.listenerName(number)
	l.GetAddress().GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: uint32(number)}
	for _, a := range l.GetAdditionalAddresses() {
		a.GetAddress().GetSocketAddress().PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: uint32(number)}
	}
	return l, nil
}

// port makes the shared listener of a port and its routes. The chain of a template that was there before is the same as
// before, byte by byte: Envoy drains no connection of a chain that stays.
func (o *outbound) port(number uint16, members []*member, there []byte) (*port, error) {
	p := &port{there: there, members: slices.SortedFunc(slices.Values(members), byAddress)}
	l, err := o.base(number, there)
	if err != nil {
		return nil, err
	}
	rest, ok := choices(l)
	if !ok {
		return nil, fmt.Errorf("a filter chain of %s is picked by more than address, server name and protocol", l.GetName())
	}
	body, err := marshal(l)
	if err != nil {
		return nil, fmt.Errorf("serialize %s: %w", l.GetName(), err)
	}
	ranges := map[uint64][]byte{}
	for _, m := range p.members {
		if ranges[m.template] == nil {
			chain, err := managerChain(chainName(l.GetName(), m.template), number, m)
			if err != nil {
				return nil, err
			}
			body = appendBytes(body, listenerChains, chain)
		}
		for _, a := range m.addrs {
			ranges[m.template] = appendRange(ranges[m.template], a.String(), a.BitLen())
		}
	}
	var list []byte
	for _, t := range slices.Sorted(maps.Keys(ranges)) {
		list = appendBytes(list, listMatchers, entry(address(ranges[t]), chainName(l.GetName(), t)))
	}
	for _, c := range rest {
		list = appendBytes(list, listMatchers, c.matcher())
	}
	body = appendBytes(body, listenerMatcher, appendBytes(nil, matcherList, list))
	p.listener, p.route = xds.NewResource(l.GetName(), body), routes(number, p.members)
	return p, nil
}

// chainName depends on the template alone: a chain that gets another name is another chain.
func chainName(listener string, template uint64) string {
	return fmt.Sprintf("%s-%016x", listener, template)
}

// managerChain is the chain of a template: that of a member, but that its routes are the port's.
func managerChain(name string, number uint16, m *member) ([]byte, error) {
	l := &listenerv3.Listener{}
	if err := proto.Unmarshal(m.body, l); err != nil {
		return nil, fmt.Errorf("read %s: %w", m.name, err)
	}
	chain := l.GetFilterChains()[0]
	last := chain.GetFilters()[len(chain.GetFilters())-1]
	manager := &hcmv3.HttpConnectionManager{}
	if err := last.GetTypedConfig().UnmarshalTo(manager); err != nil {
		return nil, fmt.Errorf("read the connection manager of %s: %w", m.name, err)
	}
	manager.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
		RouteConfigName: routesOf(number),
		ConfigSource: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0), // a listener without routes would answer 404
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		},
	}}
	mutation, err := anypb.New(&mutationv3.HeaderMutation{Mutations: []*mutationsv3.HeaderMutation{{
		Action: &mutationsv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: destinationHeader, Value: "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}})
	if err != nil {
		return nil, fmt.Errorf("serialize a header mutation: %w", err)
	}
	manager.EarlyHeaderMutationExtensions = append(manager.EarlyHeaderMutationExtensions, &corev3.TypedExtensionConfig{
		Name: "envoy.http.early_header_mutation.header_mutation", TypedConfig: mutation,
	})
	config, err := marshal(manager)
	if err != nil {
		return nil, fmt.Errorf("serialize the connection manager of %s: %w", m.name, err)
	}
	last.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: managerType, Value: config}}
	chain.Name, chain.FilterChainMatch = name, nil
	return marshal(chain)
}

// routesOf is Istio's name of the routes of a port.
func routesOf(number uint16) string { return strconv.Itoa(int(number)) }

// entrySize is about what an entry of the routes has beside the route.
const entrySize = 128

// routes are those of a port: which of them a request takes is told by the address that the application dialled, and by
// nothing that it says.
func routes(number uint16, members []*member) xds.Resource {
	name, url := appendBytes(nil, extensionName, "route"), appendBytes(nil, anyType, typePrefix+routeMessage)
	size := 0
	for _, m := range members {
		size += len(m.addrs) * (len(m.route) + entrySize)
	}
	w := &backwards{b: make([]byte, size)}
	for _, m := range slices.Backward(members) {
		for _, a := range slices.Backward(m.addrs) {
			begun := w.n
			w.bytes(anyValue, m.route)
			w.put(url)
			w.close(extensionConfig, begun)
			w.put(name)
			w.close(matchAction, begun)
			w.close(entryValue, begun)
			w.bytes(entryKey, []byte(a.String()))
			w.close(mapEntry, begun)
		}
	}
	w.close(treeMap, 0)
	header := extension("destination", headerInput, appendBytes(nil, headerName, destinationHeader))
	w.bytes(treeInput, header)
	w.close(matcherTree, 0)
	w.close(hostMatcher, 0)
	w.bytes(hostDomains, []byte("*"))
	w.bytes(hostName, []byte("addresses"))
	w.close(routesHosts, 0)
	w.bytes(routesRemove, []byte(destinationHeader))
	w.bytes(routesValidate, nil) // false: a cluster that is late is a 503
	w.bytes(routesName, []byte(routesOf(number)))
	return xds.NewResource(routesOf(number), w.message())
}

// marshal serializes m to the same bytes every time.
func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
