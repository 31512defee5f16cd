package build

import (
	"fmt"
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

// Names of filter chains, by which EnvoyFilters pick them; Istio's. Those of chains that close every connection end in
// refusing.
const (
	refusing           = "-blackhole"
	outboundRest       = OutboundListener + "-catchall-tcp"
	inboundHTTPRest    = InboundListener + "-catchall-http"
	inboundRest        = InboundListener
	inboundRoutePrefix = "inbound|"
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
func (b *maker) captureListeners() []resource { return []resource{b.outbound(), b.inbound()} }

func (b *maker) captureListener(name string, port uint16, direction corev3.TrafficDirection) *listenerv3.Listener {
	l := b.newListener(b.anyAddresses(), port)
	l.Name, l.BindToPort, l.TrafficDirection = name, nil, direction
	return l
}

// outbound accepts the application's connections and hands each to the listener of its original destination; what no
// listener takes is unknown traffic.
func (b *maker) outbound() *listenerv3.Listener {
	l := b.captureListener(OutboundListener, b.o.OutboundPort, corev3.TrafficDirection_OUTBOUND)
	l.UseOriginalDst = wrapperspb.Bool(true)
	hole := b.tcpFilter(blackHoleCluster)
	// A connection to the port itself was never redirected, and would be forwarded to itself for ever.
	l.FilterChains = []*listenerv3.FilterChain{named(OutboundListener+refusing, newChain(portMatch(b.o.OutboundPort), hole))}
	if m := b.matchAll(b.o.VIPRanges); m != nil {
		l.FilterChains = append(l.FilterChains, named(OutboundListener+refusing, newChain(m, hole)))
	}
	l.DefaultFilterChain = named(outboundRest, newChain(nil, b.unknownFilter()))
	return l
}

// inbound forwards captured connections to the application on the port that the client dialled. HTTP/1 and HTTP/2
// without TLS go through an HTTP filter, so that they can be drained politely; everything else is bytes.
func (b *maker) inbound() *listenerv3.Listener {
	l := b.captureListener(InboundListener, b.o.InboundPort, corev3.TrafficDirection_INBOUND)
	b.setDetection(l, true)
	if b.o.TransparentMark != 0 {
		l.Transparent = wrapperspb.Bool(true)
	}
	refused := b.refusedPorts()
	l.ListenerFilters = b.inboundFilters(append(b.serverFirstPorts(), refused...))
	hole := b.tcpFilter(blackHoleCluster)
	for _, p := range refused {
		l.FilterChains = append(l.FilterChains, named(InboundListener+refusing, newChain(portMatch(p), hole)))
	}
	for _, port := range b.filters.Ports() {
		if !slices.Contains(refused, port) {
			l.FilterChains = append(l.FilterChains, b.inboundChains(port)...)
		}
	}
	l.FilterChains = append(l.FilterChains, b.inboundChains(0)...)
	return l
}

// inboundChains take the connections to a port, or with 0 to every port that has no chains of its own: an EnvoyFilter for
// one port needs chains which are that port's. Envoy looks at the port first, so each of them is for all families.
func (b *maker) inboundChains(port uint16) []*listenerv3.FilterChain {
	var out []*listenerv3.FilterChain
	for _, f := range b.inboundFamilies() {
		recognised, all := match(f.all), match(f.all)
		recognised.ApplicationProtocols = cleartextHTTP[:]
		nameHTTP, name, routes := inboundHTTPRest, inboundRest, f.cluster
		if port != 0 {
			nameHTTP = listenerName(b.anyAddresses()[0], port)
			name, routes = nameHTTP, fmt.Sprintf("%s%d||", inboundRoutePrefix, port)
			recognised.DestinationPort, all.DestinationPort = wrapperspb.UInt32(uint32(port)), wrapperspb.UInt32(uint32(port))
		}
		out = append(out, named(nameHTTP, newChain(recognised, b.inboundHTTP(f.cluster, routes))), named(name, newChain(all, b.tcpFilter(f.cluster))))
	}
	return out
}

func named(name string, c *listenerv3.FilterChain) *listenerv3.FilterChain {
	c.Name = name
	return c
}

// refusedPorts returns the ports to which captured traffic is never forwarded: those of the agent and Envoy, which
// serve connections of their own, and the capture ports, where it would loop.
func (b *maker) refusedPorts() []uint16 {
	ports := append([]uint16{b.o.InboundPort, b.o.OutboundPort}, b.o.ReservedPorts...)
	slices.Sort(ports)
	return slices.Compact(ports)
}

// serverFirst are the ports of SMTP, DNS, MySQL and MongoDB, which count as TCP whatever comes there: as under istiod, where a Service says
// nothing else.
var serverFirst = [...]uint16{25, 53, 3306, 27017}

// serverFirstPorts returns those of them that no EnvoyFilter or plugin names.
func (b *maker) serverFirstPorts() []uint16 {
	return slices.DeleteFunc(slices.Clone(serverFirst[:]), func(p uint16) bool { return slices.Contains(b.filters.Ports(), p) })
}

// inboundFilters find out the original destination, with TPROXY have the application called from the original
// source, and then find out whether the client speaks HTTP; to some ports it need not speak first.
func (b *maker) inboundFilters(silent []uint16) []*listenerv3.ListenerFilter {
	out := []*listenerv3.ListenerFilter{b.listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})}
	if mark := b.o.TransparentMark; mark != 0 {
		out = append(out, b.listenerFilter("envoy.filters.listener.original_src", &originalsrcv3.OriginalSrc{Mark: mark}))
	}
	inspector := b.listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{})
	inspector.FilterDisabled = anyPort(silent)
	return append(out, inspector)
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
