package build

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnscommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"understudy.mesh/pkg/mesh"
)

// The names of Istio's clusters that belong to no service; dashboards and alerts know them.
const (
	passthroughCluster         = "PassthroughCluster"
	blackHoleCluster           = "BlackHoleCluster"
	inboundPassthroughCluster  = "InboundPassthroughCluster"
	inboundPassthroughCluster6 = "InboundPassthroughCluster6"

	httpOptionsExtension = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

	// unlimited takes Envoy's circuit breakers (1,024 connections by default) out of the way, as Istio does: without a
	// DestinationRule the proxy must not be the limit.
	unlimited = 4294967295
)

// clusterName is Istio's, without a subset.
func clusterName(port uint16, host string) string { return fmt.Sprintf("outbound|%d||%s", port, host) }

func memberCluster(m mesh.Member) string { return clusterName(m.Port.Number, m.Service.Host) }

// clusters makes the clusters of a service, one a port.
func (b *maker) clusters(s *mesh.Service) []resource {
	var out []resource
	for _, p := range s.Ports {
		if p.Protocol == mesh.ProtoUDP {
			continue
		}
		c := b.newCluster(clusterName(p.Number, s.Host))
		switch p.Resolution {
		case mesh.ResolveNone:
			setOriginalDst(c)
		case mesh.ResolveStatic:
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		case mesh.ResolveDynamic:
			b.setDynamic(c)
		default:
			b.setDNS(c, p)
		}
		if p.Resolution != mesh.ResolveNone && p.Resolution != mesh.ResolveDynamic {
			c.LoadAssignment = b.assignment(c.Name, p)
		}
		switch p.Protocol {
		case mesh.ProtoHTTP:
			c.TypedExtensionProtocolOptions = b.http1Upstream
		case mesh.ProtoHTTP2, mesh.ProtoGRPCWeb:
			c.TypedExtensionProtocolOptions = b.http2Upstream
		}
		out = append(out, c)
	}
	return out
}

func (b *maker) newCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:           name,
		ConnectTimeout: durationpb.New(b.o.ConnectTimeout),
		LbPolicy:       clusterv3.Cluster_LEAST_REQUEST,
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(unlimited), MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests: wrapperspb.UInt32(unlimited), MaxRetries: wrapperspb.UInt32(unlimited),
		}}},
	}
}

// setOriginalDst makes a cluster connect to where the application dialled.
func setOriginalDst(c *clusterv3.Cluster) {
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
}

// setDNS makes a cluster resolve its endpoints. (The fields of Cluster for this are deprecated, and Envoy 1.40 logs a
// warning for each use of them.) How long a query may take is set once for all, in the bootstrap's resolver: a
// resolver in each cluster would be a c-ares channel with sockets of its own.
func (b *maker) setDNS(c *clusterv3.Cluster, p mesh.ServicePort) {
	if len(p.Endpoints) == 0 { // a workloadSelector that selects nobody
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return
	}
	setCustomType(c, "envoy.cluster.dns", b.pack(&dnsv3.DnsCluster{
		RespectDnsTtl: true, DnsLookupFamily: perFamily(&b.o, dnscommonv3.DnsLookupFamily_V4_ONLY, dnscommonv3.DnsLookupFamily_V6_ONLY, dnscommonv3.DnsLookupFamily_ALL),
		AllAddressesInSingleEndpoint: p.Resolution == mesh.ResolveDNSRR,
	}))
}

func setCustomType(c *clusterv3.Cluster, name string, config *anypb.Any) {
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: name, TypedConfig: config,
	}}
}

// assignment lists the endpoints by locality, in the order in which the localities appear.
func (b *maker) assignment(name string, p mesh.ServicePort) *endpointv3.ClusterLoadAssignment {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	groups, shift := map[string]*endpointv3.LocalityLbEndpoints{}, weightShift(p.Endpoints)
	for i := range p.Endpoints {
		ep := &p.Endpoints[i]
		if b.unreachable(ep) && p.Resolution != mesh.ResolveDNSRR { // which needs exactly one endpoint
			continue
		}
		g := groups[ep.Locality]
		if g == nil {
			g = &endpointv3.LocalityLbEndpoints{Locality: locality(ep.Locality)}
			groups[ep.Locality] = g
			cla.Endpoints = append(cla.Endpoints, g)
		}
		lb := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: envoyAddress(ep, p.Port)},
		}}
		if ep.Weight > 0 {
			lb.LoadBalancingWeight = wrapperspb.UInt32(max(1, ep.Weight>>shift))
		}
		g.LbEndpoints = append(g.LbEndpoints, lb)
	}
	return cla
}

// unreachable says whether an endpoint's address is of a family that the pod has not.
func (b *maker) unreachable(ep *mesh.Endpoint) bool {
	ip, err := netip.ParseAddr(ep.Address)
	return err == nil && !b.o.HasFamily(ip)
}

// weightShift returns by how many bits to cut weights so that their sum fits 32 bits; Envoy refuses a cluster where it
// does not.
func weightShift(endpoints []mesh.Endpoint) (shift int) {
	total := uint64(0)
	for _, ep := range endpoints {
		total += uint64(ep.Weight)
	}
	if over := bits.Len64(total) - 32; over > 0 {
		shift = over + 1 // one more for what rounding up to 1 adds
	}
	return shift
}

func envoyAddress(e *mesh.Endpoint, p mesh.Port) *corev3.Address {
	if path, unix := e.UnixPath(); unix {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	return socketAddress(e.Address, e.On(p))
}

func socketAddress(address string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// locality reads Istio's region/zone/subzone.
func locality(s string) *corev3.Locality {
	if s == "" {
		return nil
	}
	region, rest, _ := strings.Cut(s, "/")
	zone, subZone, _ := strings.Cut(rest, "/")
	return &corev3.Locality{Region: region, Zone: zone, SubZone: subZone}
}

// basicClusters makes the clusters that belong to no service.
func (b *maker) basicClusters() []resource {
	pass := b.newCluster(passthroughCluster)
	setOriginalDst(pass)
	hole := b.newCluster(blackHoleCluster)
	hole.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	hole.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	out := []resource{pass, hole}
	for _, f := range b.inboundFamilies() {
		out = append(out, b.inboundCluster(f.cluster, f.source))
	}
	return out
}

// inboundCluster connects captured inbound traffic to the application. The source address is how the pod's iptables
// rules know this traffic, and let it through to the application instead of capturing it again.
func (b *maker) inboundCluster(name, source string) *clusterv3.Cluster {
	c := b.newCluster(name)
	setOriginalDst(c)
	c.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: &corev3.SocketAddress{
		Address: source, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0},
	}}
	c.TypedExtensionProtocolOptions = b.httpOptions(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout: never(), MaxHeadersCount: wrapperspb.UInt32(maxHeaders),
			MaxResponseHeadersKb: wrapperspb.UInt32(maxHeadersKB),
		},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: b.transparentHTTP1(), Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true},
			},
		},
	})
	return c
}
