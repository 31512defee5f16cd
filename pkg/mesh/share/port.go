package share

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	mutationsv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	"understudy.mesh/pkg/xds"
)

const (
	destinationInput = "envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"
	serverNameInput  = "envoy.extensions.matching.common_inputs.network.v3.ServerNameInput"
	protocolInput    = "envoy.extensions.matching.common_inputs.network.v3.ApplicationProtocolInput"
	headerInput      = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
	addressMatcher   = "envoy.extensions.matching.input_matchers.ip.v3.Ip"
	mutationMessage  = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
	routeMessage     = "envoy.config.route.v3.Route"
	stringMessage    = "google.protobuf.StringValue"

	// destinationHeader is the address that the application dialled, for the choice of a route: Envoy chooses by headers
	// alone. What a client says in it is overwritten, and no server sees it.
	destinationHeader = "x-understudy-destination"
	// entrySize is about what an entry of the routes has beside the route.
	entrySize = 128
)

var errListener = errors.New("it is not a listener as this release makes them")

// outbound is the listener that captures: what becomes of a connection to an address that is no member's is as if there
// were no shared listener.
type outbound struct {
	resource   *xds.Stored
	host       string // of its address, as it is in Istio's names
	address    []byte
	additional [][]byte
	rest       []byte   // fields of a listener like it: its direction, and its chain for what no other takes
	refusing   [][]byte // its chains for prefixes, those of the VIPs: they close connections
}

func newOutbound(r *xds.Stored) (*outbound, error) {
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	o := &outbound{resource: r}
	ok := fields(body, func(number protowire.Number, whole, value []byte, _ uint64) bool {
		switch number {
		case listenerAddress:
			o.address = value
		case listenerAdditional:
			o.additional = append(o.additional, value)
		case listenerDirection, listenerDefault:
			o.rest = append(o.rest, whole...)
		case listenerChains:
			if c, ok := newChoice(value); ok && len(c.ranges) > 0 {
				o.refusing = append(o.refusing, value)
			}
		}
		return true
	})
	ok = ok && fields(o.address, func(_ protowire.Number, _, socket []byte, _ uint64) bool {
		return fields(socket, func(number protowire.Number, _, value []byte, _ uint64) bool {
			if number == socketHost {
				o.host = string(value)
			}
			return true
		})
	})
	if !ok || o.host == "" {
		return nil, fmt.Errorf("read the listener that captures: %w", errListener)
	}
	if o.host == netip.IPv6Unspecified().String() {
		o.host = "[" + o.host + "]"
	}
	return o, nil
}

// listenerName is Istio's name of the listener of a port on every address.
func (o *outbound) listenerName(number uint16) string { return fmt.Sprintf("%s_%d", o.host, number) }

// base is what takes the connections to a port that are no member's, without its chains: the listener of the port on every
// address, if there is one, and otherwise one like that which captures.
func (o *outbound) base(number uint16, there []byte) (body []byte, chains [][]byte, ok bool) {
	if there != nil {
		ok = fields(there, func(number protowire.Number, whole, value []byte, _ uint64) bool {
			if number == listenerChains {
				chains = append(chains, value)
			} else {
				body = append(body, whole...)
			}
			return number != listenerMatcher
		})
		return body, chains, ok
	}
	body = appendBytes(slices.Clip(o.rest), listenerName, o.listenerName(number))
	body = appendBytes(appendBytes(body, listenerAddress, withPort(o.address, number)), listenerBind, "") // false
	for _, a := range o.additional {
		_ = fields(a, func(_ protowire.Number, _, value []byte, _ uint64) bool {
			body = appendBytes(body, listenerAdditional, appendBytes(nil, additionalAddress, withPort(value, number)))
			return true
		})
	}
	return body, o.refusing, true
}

// withPort is an Address with another port.
func withPort(address []byte, port uint16) (out []byte) {
	_ = fields(address, func(_ protowire.Number, _, socket []byte, _ uint64) bool {
		var with []byte
		_ = fields(socket, func(number protowire.Number, whole, _ []byte, _ uint64) bool {
			if number != socketPort {
				with = append(with, whole...)
			}
			return true
		})
		with = protowire.AppendVarint(protowire.AppendTag(with, socketPort, protowire.VarintType), uint64(port))
		out = appendBytes(out, socketAddress, with)
		return true
	})
	return out
}

// managerChain is the chain of a template: that of a member, but that its routes are those of the given name.
func managerChain(name, routes string, m *member) ([]byte, error) {
	body, err := m.resource.Body()
	if err != nil {
		return nil, err
	}
	more, err := byDestination(routes)
	if err != nil {
		return nil, fmt.Errorf("serialize the connection manager of %s: %w", name, err)
	}
	chain := appendBytes(nil, chainNamed, name)
	fields(body, func(number protowire.Number, _, value []byte, _ uint64) bool {
		return number != listenerChains || fields(value, func(number protowire.Number, _, value []byte, _ uint64) bool {
			if number == chainFilters {
				chain = appendBytes(chain, chainFilters, withRoutes(value, more))
			}
			return true
		})
	})
	return chain, nil
}

// withRoutes is a filter, which more is appended to in the place of its routes if it is a connection manager.
func withRoutes(filter, more []byte) (out []byte) {
	fields(filter, func(number protowire.Number, whole, value []byte, _ uint64) bool {
		url, config, ok := unpack(value)
		if number != filterConfig || !ok || url != managerType {
			out = append(out, whole...)
			return true
		}
		var manager []byte
		fields(config, func(number protowire.Number, whole, _ []byte, _ uint64) bool {
			if number != managerRoutes {
				manager = append(manager, whole...)
			}
			return true
		})
		out = appendBytes(out, filterConfig, pack(managerType, append(manager, more...)))
		return true
	})
	return out
}

// byDestination is the fields of a connection manager whose routes go by the address that the application dialled.
func byDestination(name string) ([]byte, error) {
	mutation, err := (&mutationv3.HeaderMutation{Mutations: []*mutationsv3.HeaderMutation{{
		Action: &mutationsv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: destinationHeader, Value: "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}).MarshalVTStrict()
	if err != nil {
		return nil, err
	}
	routes, err := (&hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
		RouteConfigName: name,
		ConfigSource: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0), // a listener without routes would answer 404
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		},
	}}}).MarshalVTStrict()
	return appendBytes(routes, managerEarly, extension("envoy.http.early_header_mutation.header_mutation", mutationMessage, mutation)), err
}

// routes is a route configuration of members in their order. Which of its routes a request takes is told by the address that
// the application dialled, and by nothing that it says.
func routes(called string, members []*member) (*xds.Stored, error) {
	size := 0
	for _, m := range members {
		size += len(m.addrs) * (int(m.route.size) + entrySize)
	}
	var bodies xds.Bodies
	w := &backwards{b: make([]byte, size)}
	name, url := appendBytes(nil, extensionName, "route"), appendBytes(nil, anyType, typePrefix+routeMessage)
	for _, m := range slices.Backward(members) {
		body, err := bodies.Of(m.resource)
		if err != nil {
			return nil, err
		}
		for _, a := range slices.Backward(m.addrs) {
			begun := w.n
			w.bytes(anyValue, m.route.of(body))
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
	w.bytes(treeInput, extension("destination", headerInput, appendBytes(nil, headerName, destinationHeader)))
	w.close(matcherTree, 0)
	w.close(hostMatcher, 0)
	w.bytes(hostDomains, []byte("*"))
	w.bytes(hostName, []byte("addresses"))
	w.close(routesHosts, 0)
	w.bytes(routesRemove, []byte(destinationHeader))
	w.bytes(routesValidate, nil) // false: a cluster that is late is a 503
	w.bytes(routesName, []byte(called))
	return xds.NewStored(called, w.message()), nil
}
