package bootstrap

import (
	"fmt"

	xdsv1 "github.com/cncf/xds/go/udpa/type/v1"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	localityv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// What istiod's resources refer to by name.
	sdsClusterName      = "sds-grpc"
	filesClusterName    = "sds-files-grpc"
	agentClusterName    = "agent"
	localClusterName    = "local_cluster"
	internalBufferKB    = 64
	xdsKeepaliveSeconds = 300
	// manyXDS is no bound: Envoy's default of 1,024 is for upstreams that can be overrun.
	manyXDS = 100_000
)

// Istiod is what a bootstrap has besides where istiod makes Envoy's configuration: what its
// resources refer to, and what Istio's agent offers by ProxyConfig.
type Istiod struct {
	// SDSPath is the Unix socket that serves the workload's certificate and roots. Required,
	// at most 107 bytes.
	SDSPath string
	// FilesPath is the one that serves certificates from files, where that is another: "" is SDSPath.
	FilesPath string
	// StateOfTheWorld makes Envoy ask for whole sets of resources instead of increments.
	StateOfTheWorld bool
	// MetadataDiscovery asks for the metadata of peers, which takes an Envoy of Istio's.
	MetadataDiscovery bool
	// SelfDiscovery gives Envoy a cluster of the workload's own endpoints, from which it learns
	// how near its zone is to others.
	SelfDiscovery bool
	// LoadStats is where Envoy reports load, an ApiConfigSource in JSON; "" is nowhere.
	LoadStats string
	// Tracer gets spans.
	Tracer Tracer
	// AccessLogService is the cluster envoy_accesslog_service.
	AccessLogService Service
	// SecureStatsPort serves Envoy's statistics over mutual TLS, and SecureMergedStatsPort those
	// of the agent's AgentPort, of Envoy and the application together; 0 is none.
	SecureStatsPort, SecureMergedStatsPort, AgentPort uint16
	// StatsCompression compresses what StatsPort serves.
	StatsCompression bool
}

// extensions are those of Envoy itself.
func extensions(c Config) []*corev3.TypedExtensionConfig {
	if c.Istiod == nil {
		return nil
	}
	var all []*corev3.TypedExtensionConfig
	if c.Istiod.metadataDiscovery() {
		// The type is of Istio's Envoy, and only in there.
		source := structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"ads": structpb.NewStructValue(&structpb.Struct{})}})
		all = append(all, &corev3.TypedExtensionConfig{
			Name: "metadata_discovery",
			TypedConfig: typed(&xdsv1.TypedStruct{
				TypeUrl: "type.googleapis.com/istio.workload.BootstrapExtension",
				Value:   &structpb.Struct{Fields: map[string]*structpb.Value{"config_source": source}},
			}),
		})
	}
	return append(all, &corev3.TypedExtensionConfig{
		Name:        "envoy.bootstrap.internal_listener",
		TypedConfig: typed(&internalv3.InternalListener{BufferSizeKb: wrapperspb.UInt32(internalBufferKB)}),
	})
}

// metadataDiscovery tells whether peers' metadata can be asked for, which is in increments only.
func (i *Istiod) metadataDiscovery() bool {
	return i != nil && i.MetadataDiscovery && !i.StateOfTheWorld
}

// istiodClusters are those that istiod's resources refer to.
func istiodClusters(c Config) []*clusterv3.Cluster {
	i := c.Istiod
	secrets := func(name, path string) *clusterv3.Cluster {
		cluster := pipeCluster(name, path, xdsConnectTimeout)
		cluster.TypedExtensionProtocolOptions = http2Options()
		return cluster
	}
	all := []*clusterv3.Cluster{secrets(sdsClusterName, i.SDSPath)}
	if i.FilesPath != "" {
		all = append(all, secrets(filesClusterName, i.FilesPath))
	}
	if i.SecureMergedStatsPort != 0 {
		all = append(all, staticCluster(agentClusterName, tcp(loopback(c), i.AgentPort), statsConnectTimeout))
	}
	if i.SelfDiscovery {
		all = append(all, localCluster())
	}
	return all
}

// loopback is where the agent listens for sure.
func loopback(c Config) string {
	if c.IPv4 {
		return "127.0.0.1"
	}
	return "::1"
}

// localCluster has the endpoints of the workload itself.
func localCluster() *clusterv3.Cluster {
	policy := typed(&leastv3.LeastRequest{LocalityLbConfig: &localityv3.LocalityLbConfig{
		LocalityConfigSpecifier: &localityv3.LocalityLbConfig_ZoneAwareLbConfig_{
			ZoneAwareLbConfig: &localityv3.LocalityLbConfig_ZoneAwareLbConfig{MinClusterSize: wrapperspb.UInt64(1)},
		},
	}})
	return &clusterv3.Cluster{
		Name:                 localClusterName,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		ConnectTimeout:       durationpb.New(xdsConnectTimeout),
		LoadBalancingPolicy: &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
			TypedExtensionConfig: &corev3.TypedExtensionConfig{Name: "envoy.load_balancing_policies.least_request", TypedConfig: policy},
		}}},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{
			ServiceName: localClusterName,
			EdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				ResourceApiVersion:    corev3.ApiVersion_V3,
			},
		},
	}
}

// widenXDS gives the cluster of the agent's socket the limits that Istio's has.
func widenXDS(cluster *clusterv3.Cluster) {
	threshold := func(priority corev3.RoutingPriority) *clusterv3.CircuitBreakers_Thresholds {
		return &clusterv3.CircuitBreakers_Thresholds{
			Priority: priority, MaxConnections: wrapperspb.UInt32(manyXDS),
			MaxPendingRequests: wrapperspb.UInt32(manyXDS), MaxRequests: wrapperspb.UInt32(manyXDS),
		}
	}
	cluster.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{
		threshold(corev3.RoutingPriority_DEFAULT), threshold(corev3.RoutingPriority_HIGH),
	}}
	cluster.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{
		TcpKeepalive: &corev3.TcpKeepalive{KeepaliveTime: wrapperspb.UInt32(xdsKeepaliveSeconds)},
	}
}

// addIstiodManager adds what the cluster manager has under istiod.
func addIstiodManager(c Config, m *bootstrapv3.ClusterManager) error {
	if c.Istiod.SelfDiscovery {
		m.LocalClusterName = localClusterName
	}
	if c.Istiod.LoadStats != "" {
		m.LoadStatsConfig = &corev3.ApiConfigSource{}
		if err := protojson.Unmarshal([]byte(c.Istiod.LoadStats), m.LoadStatsConfig); err != nil {
			return fmt.Errorf("ISTIO_META_LOAD_STATS_CONFIG_JSON: want an envoy.config.core.v3.ApiConfigSource: %w", err)
		}
	}
	// As in Istio, where each of these settings brings it.
	m.EnableDeferredClusterCreation = m.LocalClusterName != "" || m.LoadStatsConfig != nil || m.OutlierDetection != nil
	return nil
}
