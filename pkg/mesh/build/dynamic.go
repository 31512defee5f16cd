package build

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dynamicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dynamiccommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	dynamichttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	sethttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snidynamicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"understudy.mesh/pkg/mesh"
)

// A service of resolution DYNAMIC_DNS is a wildcard whose names Envoy looks up as they are asked for: by the Host of an
// HTTP request, or by the SNI of a TLS hello. The filter on the connection's way has the look-up done, and the cluster
// connects to what the cache of names has then. All of them share one cache.

const (
	// dynamicHosts is how many names the cache holds; Envoy's own limit, 1,024, is less than a crawler asks for in the
	// 5 minutes for which it keeps an unused one.
	dynamicHosts = 10_000
	// A name that could not be looked up is tried again after dynamicRetry, then less often. (Envoy's own are 60 s.)
	dynamicRetry     = time.Second
	dynamicRetryMost = 5 * time.Second
	// dynamicPort is the filter state in which Envoy's forward proxy looks for the port of a Host without one.
	dynamicPort = "envoy.upstream.dynamic_port"
)

// isDynamic says whether Host or SNI must say what to connect to, even where the address has told the service.
func isDynamic(m mesh.Member) bool { return m.Port.Resolution == mesh.ResolveDynamic }

// newDynamicCache describes the cache of names. Envoy refuses another description under the same name for as long as it
// lives, be it another generation's or release's: so the name has a hash of it.
func (b *maker) newDynamicCache() *dynamiccommonv3.DnsCacheConfig {
	c := &dynamiccommonv3.DnsCacheConfig{
		DnsLookupFamily:        perFamily(&b.o, clusterv3.Cluster_V4_ONLY, clusterv3.Cluster_V6_ONLY, clusterv3.Cluster_ALL),
		MaxHosts:               wrapperspb.UInt32(dynamicHosts),
		DnsFailureRefreshRate:  &clusterv3.Cluster_RefreshRate{BaseInterval: durationpb.New(dynamicRetry), MaxInterval: durationpb.New(dynamicRetryMost)},
		DnsCacheCircuitBreaker: &dynamiccommonv3.DnsCacheCircuitBreakers{MaxPendingRequests: wrapperspb.UInt32(unlimited)},
		TypedDnsResolverConfig: b.o.DNSResolver,
	}
	hash := fnv.New32a()
	hash.Write(b.pack(c).GetValue())
	c.Name = fmt.Sprintf("dynamic_dns_%08x", hash.Sum32())
	return c
}

// setDynamic makes a cluster connect to the names that its filters had looked up.
func (b *maker) setDynamic(c *clusterv3.Cluster) {
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	setCustomType(c, "envoy.clusters.dynamic_forward_proxy", b.pack(&dynamicv3.ClusterConfig{
		ClusterImplementationSpecifier: &dynamicv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: b.dynamicCache},
		AllowInsecureClusterOptions:    true, // about TLS of Envoy's own, which there is none of
	}))
}

// sniFilters has the SNI of a connection looked up, and connects it to the port that the service declares.
func (b *maker) sniFilters(m mesh.Member) []*listenerv3.Filter {
	lookup := b.networkFilter("envoy.filters.network.sni_dynamic_forward_proxy", &snidynamicv3.FilterConfig{
		DnsCacheConfig: b.dynamicCache, PortSpecifier: &snidynamicv3.FilterConfig_PortValue{PortValue: uint32(m.Port.Number)},
	})
	return []*listenerv3.Filter{lookup, b.tcpFilter(memberCluster(m))}
}

// addLookup has the Host of a request looked up before it is routed to a cluster of setDynamic's. Without a port, Host
// has that of the listener: its scheme's default is no port of the service.
func (b *maker) addLookup(m *hcmv3.HttpConnectionManager, port uint16) {
	b.addHTTPFilter(m, "envoy.filters.http.set_filter_state", &sethttpv3.Config{OnRequestHeaders: []*filterstatev3.FilterStateValue{{
		Key: &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: dynamicPort},
		Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: strconv.Itoa(int(port))},
			}},
		}},
	}}})
	b.addHTTPFilter(m, "envoy.filters.http.dynamic_forward_proxy", &dynamichttpv3.FilterConfig{
		ImplementationSpecifier: &dynamichttpv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: b.dynamicCache},
	})
}

// dynamicRoutes are those of a service whose Host says where to go: to the port of the service and to no other, which is
// as unknown as another host.
func (b *maker) dynamicRoutes(m mesh.Member) []*routev3.Route {
	route := routeTo(memberCluster(m), outboundRetryOn)
	route.Match.Headers = []*routev3.HeaderMatcher{{
		Name: ":authority",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{
				Regex: fmt.Sprintf("[^:]*(:%d)?", m.Port.Number),
			}},
		}},
	}}
	return append([]*routev3.Route{route}, b.unknownHosts().Routes...)
}

// anyDynamic says whether one of members is of resolution DYNAMIC_DNS.
func anyDynamic(members []mesh.Member) bool {
	return slices.ContainsFunc(members, isDynamic)
}
