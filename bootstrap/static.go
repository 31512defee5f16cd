package bootstrap

import (
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
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

	// httpOptionsKey is where a cluster has its HttpProtocolOptions.
	httpOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

func staticResources(c Config) *bootstrapv3.Bootstrap_StaticResources {
	r := &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{xdsCluster(c)}, Listeners: statsListeners(c)}
	if c.StatsPort != 0 || c.Istiod != nil && c.Istiod.SecureStatsPort != 0 {
		r.Clusters = append(r.Clusters, pipeCluster(statsClusterName, c.AdminPath, statsConnectTimeout))
	}
	if c.Istiod != nil {
		r.Clusters = append(r.Clusters, istiodClusters(c)...)
	}
	r.Clusters = append(r.Clusters, serviceClusters(c)...)
	if c.Istiod != nil {
		// Where a cluster's name ends in its statistics: istiod's resources mark it so, too.
		for _, cluster := range r.Clusters {
			cluster.AltStatName = cluster.Name + ";"
		}
	}
	return r
}

// xdsCluster leads to the agent's ADS socket, which speaks HTTP/2 only. One stream a
// connection: a stream that is opened again never meets the old connection's state.
func xdsCluster(c Config) *clusterv3.Cluster {
	cluster := pipeCluster(xdsClusterName, c.XDSPath, xdsConnectTimeout)
	options := http2Protocol()
	options.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(1)}
	cluster.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptionsKey: typed(options)}
	if c.Istiod != nil {
		widenXDS(cluster)
	}
	return cluster
}

// http2Options makes a cluster speak HTTP/2.
func http2Options() map[string]*anypb.Any {
	return map[string]*anypb.Any{httpOptionsKey: typed(http2Protocol())}
}

func http2Protocol() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
				},
			},
		},
	}
}

func pipeCluster(name, path string, connectTimeout time.Duration) *clusterv3.Cluster {
	return staticCluster(name, pipe(path, 0), connectTimeout)
}

// staticCluster has one endpoint.
func staticCluster(name string, address *corev3.Address, connectTimeout time.Duration) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{
					HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
				}},
			}},
		},
	}
}
