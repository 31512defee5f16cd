package bootstrap

import (
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// Clusters of what Envoy sends to; istiod's resources refer to the last.
	metricsServiceCluster   = "envoy_metrics_service"
	accessLogServiceCluster = "envoy_accesslog_service"

	serviceConnectTimeout = time.Second
	// zipkinRefresh is how often a Zipkin without a TTL is resolved.
	zipkinRefresh = 30 * time.Second
)

// Service is where Envoy sends something, and how it gets there.
type Service struct {
	// Host is a name or an address; "" is no service.
	Host string
	Port uint16
	// TLS is Istio's mode: SIMPLE verifies the service by CA, MUTUAL shows it Certificate as
	// well, ISTIO_MUTUAL does both with the workload's own; "" and DISABLE are plain text.
	TLS string
	// Certificate, Key and CA are files; CA "" is the system's roots.
	Certificate, Key, CA string
	// SNI is the name that is asked for. SubjectAltNames are those of which the service's
	// certificate must have one; none accept every name.
	SNI             string
	SubjectAltNames []string
	// Keepalive says that TCP keep-alives are wanted; 0 leaves each number to the kernel.
	Keepalive                                bool
	KeepaliveProbes                          uint32
	KeepaliveTimeSecs, KeepaliveIntervalSecs uint32
}

// Tracer is where spans go.
type Tracer struct {
	// Kind is "zipkin" or "datadog"; "" is none.
	Kind string
	Service
}

// cluster is a service that is found by its name.
func (s Service) cluster(c Config, name string, http2 bool) *clusterv3.Cluster {
	out := staticCluster(name, tcp(s.Host, s.Port), serviceConnectTimeout)
	out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	//lint:ignore SA1019 a cluster of STRICT_DNS has it here in Istio's Envoys of every age
	out.RespectDnsTtl = true
	out.DnsLookupFamily = lookupFamily(c)
	out.TransportSocket = s.transportSocket(c, name, http2)
	if http2 {
		out.TypedExtensionProtocolOptions = http2Options()
	}
	if s.Keepalive {
		out.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: unlessZero(s.KeepaliveProbes), KeepaliveTime: unlessZero(s.KeepaliveTimeSecs), KeepaliveInterval: unlessZero(s.KeepaliveIntervalSecs),
		}}
	}
	return out
}

func unlessZero(n uint32) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(n)
}

func lookupFamily(c Config) clusterv3.Cluster_DnsLookupFamily {
	switch {
	case !c.IPv6:
		return clusterv3.Cluster_V4_ONLY
	case !c.IPv4:
		return clusterv3.Cluster_V6_ONLY
	}
	return clusterv3.Cluster_ALL
}

// serviceClusters are those of the services that Envoy sends to.
func serviceClusters(c Config) []*clusterv3.Cluster {
	var all []*clusterv3.Cluster
	if c.Istiod != nil {
		switch t := c.Istiod.Tracer; t.Kind {
		case "zipkin":
			zipkin := t.cluster(c, "zipkin", false)
			//lint:ignore SA1019 as with the TTL
			zipkin.DnsRefreshRate = durationpb.New(zipkinRefresh)
			all = append(all, zipkin)
		case "datadog":
			all = append(all, t.cluster(c, "datadog_agent", false))
		}
		if s := c.Istiod.AccessLogService; s.Host != "" {
			all = append(all, s.cluster(c, accessLogServiceCluster, true))
		}
	}
	if c.MetricsService.Host != "" {
		all = append(all, c.MetricsService.cluster(c, metricsServiceCluster, true))
	}
	return all
}

// tracing is the tracer of listeners that have none of their own.
func tracing(c Config) *tracev3.Tracing {
	if c.Istiod == nil {
		return nil
	}
	http := &tracev3.Tracing_Http{}
	switch c.Istiod.Tracer.Kind {
	case "zipkin":
		http.Name = "envoy.tracers.zipkin"
		http.ConfigType = &tracev3.Tracing_Http_TypedConfig{TypedConfig: typed(&tracev3.ZipkinConfig{
			CollectorCluster:         "zipkin",
			CollectorEndpoint:        "/api/v2/spans",
			CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_JSON,
			TraceId_128Bit:           true,
			SharedSpanContext:        wrapperspb.Bool(false),
		})}
	case "datadog":
		http.Name = "envoy.tracers.datadog"
		http.ConfigType = &tracev3.Tracing_Http_TypedConfig{TypedConfig: typed(&tracev3.DatadogConfig{
			CollectorCluster: "datadog_agent",
			ServiceName:      c.Node.Cluster,
		})}
	default:
		return nil
	}
	return &tracev3.Tracing{Http: http}
}

// statsSinks are where statistics are pushed to.
func statsSinks(c Config) []*metricsv3.StatsSink {
	var all []*metricsv3.StatsSink
	if c.MetricsService.Host != "" {
		all = append(all, &metricsv3.StatsSink{
			Name: "envoy.stat_sinks.metrics_service",
			ConfigType: &metricsv3.StatsSink_TypedConfig{TypedConfig: typed(&metricsv3.MetricsServiceConfig{
				TransportApiVersion: corev3.ApiVersion_V3,
				GrpcService:         envoyGRPC(metricsServiceCluster),
			})},
		})
	}
	if c.Statsd.IsValid() {
		all = append(all, &metricsv3.StatsSink{
			Name: "envoy.stat_sinks.statsd",
			ConfigType: &metricsv3.StatsSink_TypedConfig{TypedConfig: typed(&metricsv3.StatsdSink{
				StatsdSpecifier: &metricsv3.StatsdSink_Address{Address: tcp(c.Statsd.Addr().String(), c.Statsd.Port())},
			})},
		})
	}
	return all
}

// secure tells whether a service is reached over TLS.
func (s Service) secure() bool {
	return slices.Contains([]string{"SIMPLE", "MUTUAL", "ISTIO_MUTUAL"}, strings.ToUpper(s.TLS))
}
