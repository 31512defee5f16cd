package bootstrap

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	brotliv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3"
	gzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	zstdv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/zstd/compressor/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// statsListener is the name in config dumps and logs, and in statistics.
	statsListener             = "stats"
	secureStatsListener       = "secure_stats"
	secureMergedStatsListener = "secure_merged_stats"

	statsPath   = "/stats/prometheus"
	metricsPath = "/metrics"
)

// statsListeners are all that Envoy listens on by itself.
func statsListeners(c Config) []*listenerv3.Listener {
	var all []*listenerv3.Listener
	if c.StatsPort != 0 {
		plain := statsServer{name: statsListener, port: c.StatsPort, loopback: c.StatsLoopbackOnly, cluster: statsClusterName, paths: []string{statsPath}}
		plain.compressed = c.Istiod != nil && c.Istiod.StatsCompression
		all = append(all, plain.listener(c))
	}
	if c.Istiod == nil {
		return all
	}
	if port := c.Istiod.SecureStatsPort; port != 0 {
		all = append(all, statsServer{name: secureStatsListener, port: port, cluster: statsClusterName, paths: []string{statsPath}}.listener(c))
		overMutualTLS(c, all[len(all)-1])
	}
	if port := c.Istiod.SecureMergedStatsPort; port != 0 {
		all = append(all, statsServer{name: secureMergedStatsListener, port: port, cluster: agentClusterName, paths: []string{statsPath, metricsPath}}.listener(c))
		overMutualTLS(c, all[len(all)-1])
	}
	return all
}

// statsServer is a listener that serves statistics of a cluster.
type statsServer struct {
	name       string
	port       uint16
	loopback   bool
	cluster    string
	paths      []string
	compressed bool
}

// listener serves statistics to a scraper. It has no traffic direction: a drain of the
// inbound listeners leaves it, so that a draining pod can still be watched.
func (s statsServer) listener(c Config) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: s.name,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: typed(s.manager())},
		}}}},
		// A proxy that is overloaded has to be seen to be so.
		IgnoreGlobalConnLimit: true,
		BypassOverloadManager: true,
	}
	v4, v6 := "0.0.0.0", "::"
	if s.loopback {
		v4, v6 = "127.0.0.1", "::1"
	}
	l.Address = tcp(v4, s.port)
	if !c.IPv4 {
		l.Address = tcp(v6, s.port)
	} else if c.IPv6 {
		l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: tcp(v6, s.port)}}
	}
	return l
}

func (s statsServer) manager() *hcmv3.HttpConnectionManager {
	var routes []*routev3.Route
	for _, path := range s.paths {
		routes = append(routes, &routev3.Route{
			// The path itself and what is below it: "/stats/prometheusX" is not ours.
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: s.cluster},
				// A scrape of 100,000 series may take its time; the scraper has a time-out.
				Timeout: durationpb.New(0),
			}},
		})
	}
	m := &hcmv3.HttpConnectionManager{
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		StatPrefix: s.name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{Name: "backend", Domains: []string{"*"}, Routes: routes}},
		}},
	}
	if s.compressed {
		m.HttpFilters = []*hcmv3.HttpFilter{
			compressor("brotli", &brotliv3.Brotli{}), compressor("zstd", &zstdv3.Zstd{}), compressor("gzip", &gzipv3.Gzip{}),
		}
	}
	m.HttpFilters = append(m.HttpFilters, &hcmv3.HttpFilter{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: typed(&routerv3.Router{})},
	})
	return m
}

// compressor packs statistics for a scraper that asks for it.
func compressor(kind string, library proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name: "envoy.filters.http.compressor." + kind,
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: typed(&compressorv3.Compressor{
			CompressorLibrary: &corev3.TypedExtensionConfig{Name: "stats_" + kind, TypedConfig: typed(library)},
			ResponseDirectionConfig: &compressorv3.Compressor_ResponseDirectionConfig{
				//lint:ignore SA1019 Istio's Envoys take this list, and older ones of them no other
				CommonConfig: &compressorv3.Compressor_CommonDirectionConfig{ContentType: []string{
					"text/plain", "application/vnd.google.protobuf", "application/openmetrics-text", "application/openmetrics-protobuf",
				}},
			},
		})},
	}
}
