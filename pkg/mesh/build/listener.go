package build

import (
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"understudy.mesh/pkg/mesh"
)

// cleartextHTTP is what the HTTP inspector reports of HTTP/1 and of HTTP/2 without TLS.
var cleartextHTTP = [...]string{"http/1.0", "http/1.1", "h2c"}

// newListener returns a listener that gets the connections which virtualOutbound accepted for addrs and port; it binds
// nothing itself.
func (b *maker) newListener(addrs []netip.Addr, port uint16) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name:             listenerName(addrs[0], port),
		Address:          socketAddress(addrs[0].String(), port),
		BindToPort:       wrapperspb.Bool(false),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
	}
	for _, a := range addrs[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: socketAddress(a.String(), port)})
	}
	return l
}

// vipListeners makes the listeners of a service that has its addresses for itself: one a port, and nothing to tell
// apart, so that a TLS client without SNI and a server that speaks first work too.
func (b *maker) vipListeners(s *mesh.Service, addrs []netip.Addr) []resource {
	var out []resource
	for _, p := range s.Ports {
		if p.Protocol == mesh.ProtoUDP {
			continue
		}
		l := b.newListener(addrs, p.Number)
		l.FilterChains = []*listenerv3.FilterChain{newChain(nil, b.onlyFilter(l.Name, mesh.Member{Service: s, Port: p}))}
		out = append(out, l)
	}
	return out
}

// onlyFilter sends all connections of a listener, or of a prefix, to one service: the address has told which.
func (b *maker) onlyFilter(listener string, m mesh.Member) *listenerv3.Filter {
	if m.Port.Protocol.IsHTTP() {
		return b.outboundHTTP(listener, []mesh.Member{m}, false)
	}
	return b.tcpFilter(memberCluster(m))
}

// sharedListener makes the listener of an address, or of a port on every address, that several services may share.
func (b *maker) sharedListener(share mesh.Binding) []resource {
	exact := share.Addr.IsValid()
	addrs := []netip.Addr{share.Addr}
	if !exact {
		addrs = b.anyAddresses()
	}
	d := &dispatch{maker: b, listener: b.newListener(addrs, share.Port)}
	for _, s := range share.Scopes {
		if len(s.Members) == 1 && (exact || s.Prefix.IsValid()) && !anyDynamic(s.Members) {
			d.append(match(s.Prefix), b.onlyFilter(d.listener.Name, s.Members[0]))
		} else {
			d.add(s)
		}
	}
	if !exact {
		d.refuseVIPs(share.Scopes)
	}
	if d.listener.DefaultFilterChain == nil && (!exact || d.shared) {
		d.listener.DefaultFilterChain = newChain(nil, b.unknownFilter())
	}
	d.inspect()
	return []resource{d.listener}
}

// dispatch fills a listener with the filter chains that tell services apart. Envoy picks a chain by destination address
// first, the most specific prefix, then by SNI, then by the transport, then by the application protocol, and does not
// go back on a choice (envoy.config.listener.v3.FilterChainMatch): so each prefix needs a chain for what is left.
type dispatch struct {
	*maker
	listener  *listenerv3.Listener
	tls, http bool // some chain needs its inspector
	shared    bool // some chain leaves connections over
}

// add adds the chains of a scope with several services, or with one that its address does not single out.
func (d *dispatch) add(s mesh.Scope) {
	d.shared = true
	var http []mesh.Member
	var tcp *listenerv3.Filter
	for _, m := range s.Members {
		switch {
		case m.Port.Protocol.IsHTTP():
			http = append(http, m)
		case m.Port.Protocol == mesh.ProtoTLS && m.Service.IsPartial(): // no SNI tells it, of which the document was told
		case m.Port.Protocol == mesh.ProtoTLS:
			match := match(s.Prefix)
			match.ServerNames = []string{m.Service.Host}
			d.tls = true
			if isDynamic(m) {
				d.append(match, d.sniFilters(m)...)
			} else {
				d.append(match, d.tcpFilter(memberCluster(m)))
			}
		default:
			tcp = d.tcpFilter(memberCluster(m))
		}
	}
	if len(http) > 0 {
		match := match(s.Prefix)
		match.ApplicationProtocols = cleartextHTTP[:]
		d.http = true
		d.append(match, d.outboundHTTP(d.listener.Name, http, true))
	}
	switch {
	case !s.Prefix.IsValid() && tcp != nil:
		d.listener.DefaultFilterChain = newChain(nil, tcp)
	case s.Prefix.IsValid():
		if tcp == nil {
			tcp = d.unknownFilter()
		}
		d.append(match(s.Prefix), tcp)
	}
}

// refuseVIPs closes connections to VIPs that no listener of their own takes: a port that the VIP's service does not
// declare is refused, and is not some other service's. A document that declares a VIP range as its own address has it.
func (d *dispatch) refuseVIPs(scopes []mesh.Scope) {
	free := slices.DeleteFunc(slices.Clone(d.o.VIPRanges), func(p netip.Prefix) bool {
		return slices.ContainsFunc(scopes, func(s mesh.Scope) bool { return s.Prefix == p.Masked() })
	})
	if m := d.matchAll(free); m != nil {
		d.append(m, d.tcpFilter(blackHoleCluster))
		named(OutboundListener+refusing, d.listener.FilterChains[len(d.listener.FilterChains)-1])
	}
}

// matchAll matches destinations in any of prefixes of the pod's families; nil when there is none.
func (b *maker) matchAll(prefixes []netip.Prefix) *listenerv3.FilterChainMatch {
	m := &listenerv3.FilterChainMatch{}
	for _, p := range prefixes {
		if b.o.HasFamily(p.Addr()) {
			m.PrefixRanges = append(m.PrefixRanges, cidr(p.Masked()))
		}
	}
	if len(m.PrefixRanges) == 0 {
		return nil
	}
	return m
}

func (d *dispatch) append(m *listenerv3.FilterChainMatch, f ...*listenerv3.Filter) {
	d.listener.FilterChains = append(d.listener.FilterChains, newChain(m, f...))
}

func newChain(m *listenerv3.FilterChainMatch, f ...*listenerv3.Filter) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{FilterChainMatch: m, Filters: f}
}

// unknownFilter takes connections that are nobody's: on to where they were going, or nowhere.
func (b *maker) unknownFilter() *listenerv3.Filter {
	if b.o.RegistryOnly {
		return b.tcpFilter(blackHoleCluster)
	}
	return b.tcpFilter(passthroughCluster)
}

// inspect adds the listener filters that the chains need.
func (d *dispatch) inspect() {
	l := d.listener
	if d.tls {
		l.ListenerFilters = append(l.ListenerFilters, d.listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{}))
	}
	if d.http {
		l.ListenerFilters = append(l.ListenerFilters, d.listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{}))
	}
	if d.tls || d.http {
		d.setDetection(l, false)
	}
}

// setDetection says how long a connection may say nothing. Then it is a server-first protocol, and goes where unrecognised bytes go; but where
// no request may pass without its filter, as the client might only be waiting for that.
func (b *maker) setDetection(l *listenerv3.Listener, inbound bool) {
	timeout := b.o.DetectionTimeout
	if b.filters.Guards(inbound) {
		timeout = 0 // for ever
	}
	l.ListenerFiltersTimeout = durationpb.New(timeout)
	l.ContinueOnListenerFiltersTimeout = true
}

func (b *maker) listenerFilter(name string, config proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(config)},
	}
}

// match matches destinations in p, or all of them when p is the zero prefix.
func match(p netip.Prefix) *listenerv3.FilterChainMatch {
	m := &listenerv3.FilterChainMatch{}
	if p.IsValid() {
		m.PrefixRanges = []*corev3.CidrRange{cidr(p)}
	}
	return m
}

func cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}
