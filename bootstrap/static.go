package bootstrap

import (
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// A Unix socket accepts at once or not at all, so these only bound a peer that is
	// stopped. They are Istio's.
	statsConnectTimeout = 250 * time.Millisecond
	xdsConnectTimeout   = time.Second

	// statsListener is the name in config dumps and logs.
	statsListener = "stats"
)

func staticResources(c Config) *bootstrapv3.Bootstrap_StaticResources {
	r := &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{xdsCluster(c.XDSPath)}}
	if c.StatsPort != 0 {
		r.Clusters = append(r.Clusters, pipeCluster(statsClusterName, c.AdminPath, statsConnectTimeout))
		r.Listeners = []*listenerv3.Listener{newStatsListener(c)}
	}
	return r
}

// xdsCluster leads to the agent's ADS socket, which speaks HTTP/2 only. One stream a
// connection: a stream that is opened again never meets the old connection's state.
func xdsCluster(path string) *clusterv3.Cluster {
	options := typed(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(1)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
				},
			},
		},
	})
	cluster := pipeCluster(xdsClusterName, path, xdsConnectTimeout)
	cluster.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
	return cluster
}

func pipeCluster(name, path string, connectTimeout time.Duration) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{
					HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: pipe(path, 0)}},
				}},
			}},
		},
	}
}

// newStatsListener serves Envoy's own statistics to a scraper. It has no traffic
// direction: a drain of the inbound listeners leaves it, so that a draining pod can
// still be watched.
func newStatsListener(c Config) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: statsListener,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: statsManager()},
		}}}},
		// A proxy that is overloaded has to be seen to be so.
		IgnoreGlobalConnLimit: true,
		BypassOverloadManager: true,
	}
	v4, v6 := "0.0.0.0", "::"
	if c.StatsLoopbackOnly {
		v4, v6 = "127.0.0.1", "::1"
	}
	l.Address = tcp(v4, c.StatsPort)
	if !c.IPv4 {
		l.Address = tcp(v6, c.StatsPort)
	} else if c.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: tcp(v6, c.StatsPort)}}
	}
	return l
}

func statsManager() *anypb.Any {
	return typed(&hcmv3.HttpConnectionManager{
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		StatPrefix: statsListener,
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: typed(&routerv3.Router{})},
		}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{
				Name:    "backend",
				Domains: []string{"*"},
				Routes: []*routev3.Route{{
					// The path itself and what is below it: "/stats/prometheusX" is not ours.
					Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/stats/prometheus"}},
					Action: &routev3.Route_Route{Route: &routev3.RouteAction{
						ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: statsClusterName},
						// A scrape of 100,000 series may take its time; the scraper has a time-out.
						Timeout: durationpb.New(0),
					}},
				}},
			}},
		}},
	})
}
