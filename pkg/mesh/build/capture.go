package build

import (
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	originalsrcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Istio's names of the two listeners that iptables redirects to; without them nothing
// that is captured gets anywhere.
const (
	OutboundListener = "virtualOutbound"
	InboundListener  = "virtualInbound"
)

// family is one IP family of captured inbound traffic.
type family struct {
	cluster string
	source  string // the address from which the application is dialled; Istio's iptables rules know it
	all     netip.Prefix
}

func (b *maker) inboundFamilies() []family {
	var out []family
	if b.o.IPv4 {
		out = append(out, family{inboundPassthroughCluster, "127.0.0.6", netip.PrefixFrom(netip.IPv4Unspecified(), 0)})
	}
	if b.o.IPv6 {
		out = append(out, family{inboundPassthroughCluster6, "::6", netip.PrefixFrom(netip.IPv6Unspecified(), 0)})
	}
	return out
}

// captureListeners makes virtualOutbound and virtualInbound, the only listeners that bind a port.
func (b *maker) captureListeners() ([]resource, error) {
	out, err := b.outbound()
	if err != nil {
		return nil, err
	}
	in, err := b.inbound()
	return []resource{out, in}, err
}

func (b *maker) captureListener(name string, port uint16, direction corev3.TrafficDirection) *listenerv3.Listener {
	l := b.newListener(b.anyAddresses(), port)
	l.Name, l.BindToPort, l.TrafficDirection = name, nil, direction
	return l
}

// outbound accepts the application's connections and hands each to the listener of its original destination; what no
// listener takes is unknown traffic.
func (b *maker) outbound() (*listenerv3.Listener, error) {
	l := b.captureListener(OutboundListener, b.o.OutboundPort, corev3.TrafficDirection_OUTBOUND)
	l.UseOriginalDst = wrapperspb.Bool(true)
	hole, err := b.tcpFilter(blackHoleCluster, blackHoleCluster)
	if err != nil {
		return nil, err
	}
	unknown, err := b.unknownFilter()
	if err != nil {
		return nil, err
	}
	// A connection to the port itself was never redirected, and would be forwarded to itself for ever.
	l.FilterChains = []*listenerv3.FilterChain{newChain(portMatch(b.o.OutboundPort), hole)}
	if m := b.matchAll(b.o.VIPRanges); m != nil {
		l.FilterChains = append(l.FilterChains, newChain(m, hole))
	}
	l.DefaultFilterChain = newChain(nil, unknown)
	return l, nil
}

// inbound forwards captured connections to the application on the port that the client dialled. HTTP/1 and HTTP/2
// without TLS go through an HTTP filter, so that they can be drained politely; everything else is bytes.
func (b *maker) inbound() (*listenerv3.Listener, error) {
	l := b.captureListener(InboundListener, b.o.InboundPort, corev3.TrafficDirection_INBOUND)
	b.setDetection(l)
	if b.o.TransparentMark != 0 {
		l.Transparent = wrapperspb.Bool(true)
	}
	refused := b.refusedPorts()
	if err := b.setInboundFilters(l, refused); err != nil {
		return nil, err
	}
	hole, err := b.tcpFilter(blackHoleCluster, blackHoleCluster)
	if err != nil {
		return nil, err
	}
	for _, p := range refused {
		l.FilterChains = append(l.FilterChains, newChain(portMatch(p), hole))
	}
	for _, f := range b.inboundFamilies() {
		http, err := b.inboundHTTP(f.cluster)
		if err != nil {
			return nil, err
		}
		tcp, err := b.tcpFilter(f.cluster, f.cluster)
		if err != nil {
			return nil, err
		}
		recognised := match(f.all)
		recognised.ApplicationProtocols = cleartextHTTP[:]
		l.FilterChains = append(l.FilterChains, newChain(recognised, http), newChain(match(f.all), tcp))
	}
	return l, nil
}

// refusedPorts returns the ports to which captured traffic is never forwarded: those of the agent and Envoy, which
// serve connections of their own, and the capture ports, where it would loop.
func (b *maker) refusedPorts() []uint16 {
	ports := append([]uint16{b.o.InboundPort, b.o.OutboundPort}, b.o.ReservedPorts...)
	slices.Sort(ports)
	return slices.Compact(ports)
}

// setInboundFilters finds out the original destination, with TPROXY has the application called from the original
// source, and then finds out whether the client speaks HTTP; to a refused port it
// need not speak first.
func (b *maker) setInboundFilters(l *listenerv3.Listener, refused []uint16) error {
	dst, err := listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
	if err != nil {
		return err
	}
	inspector, err := listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{})
	if err != nil {
		return err
	}
	inspector.FilterDisabled = anyPort(refused)
	l.ListenerFilters = []*listenerv3.ListenerFilter{dst}
	if mark := b.o.TransparentMark; mark != 0 {
		src, err := listenerFilter("envoy.filters.listener.original_src", &originalsrcv3.OriginalSrc{Mark: mark})
		if err != nil {
			return err
		}
		l.ListenerFilters = append(l.ListenerFilters, src)
	}
	l.ListenerFilters = append(l.ListenerFilters, inspector)
	return nil
}

// anyPort matches connections to one of ports. Envoy takes an "or" of two rules or more, and there are always two
// ports: the capture ports.
func anyPort(ports []uint16) *listenerv3.ListenerFilterChainMatchPredicate {
	set := &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{}
	for _, p := range ports {
		set.Rules = append(set.Rules, &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1},
			},
		})
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{OrMatch: set}}
}

func portMatch(port uint16) *listenerv3.FilterChainMatch {
	return &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(port))}
}
