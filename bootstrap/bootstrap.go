// Package bootstrap owns the configuration that Envoy starts with: one typed
// bootstrap message, made by a pure function and marshalled once.
//
// What is in it is Istio's sidecar bootstrap as far as it makes sense for an
// agent that serves 15020, 15021 and 15000 itself: Envoy has its admin on a Unix
// socket of its own generation, takes clusters and listeners over ADS from
// another Unix socket, and listens on the stats port and nowhere else.
package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"understudy.mesh/internal/unixsock"
)

const (
	// xdsClusterName is the static cluster that leads to the agent's ADS socket. The
	// name is Istio's: dashboards select cluster.xds-grpc.* by it.
	xdsClusterName = "xds-grpc"
	// statsClusterName is the static cluster behind the stats port: Envoy's own admin.
	statsClusterName = "prometheus_stats"

	// profilePath is where /cpuprofiler writes. Envoy's default, /var/log/envoy,
	// cannot be written on a read-only root; Istio's data directory can.
	profilePath = "/var/lib/istio/data/envoy.prof"
	// adminSocketMode lets nobody but Envoy's own user, and root, at the admin API.
	adminSocketMode = 0o600
)

// Istio's log line, in spdlog's pattern language, so that Envoy's lines and the
// agent's can be read by one parser.
const (
	logTime   = "%Y-%m-%dT%T.%fZ"
	logFormat = logTime + "\t%l\tenvoy %n %g:%#\t%v\tthread=%t"
)

// Node identifies this Envoy in config dumps and to a control plane
// (envoy.config.core.v3.Node).
type Node struct {
	// ID is Istio's service node: <type>~<IP>~<pod>.<namespace>~<domain>. Required.
	ID string
	// Cluster is the service that the pod belongs to. Required.
	Cluster string
	// Metadata must hold what JSON can: strings, numbers, booleans, nil, []any and
	// map[string]any.
	Metadata map[string]any
	// Region, Zone and SubZone are the locality; all may be empty.
	Region, Zone, SubZone string
}

// Config is everything that a bootstrap depends on.
type Config struct {
	Node Node
	// AdminPath is the Unix socket that Envoy makes for its admin API. Required, at
	// most 107 bytes; one per generation, since a starting Envoy unlinks what is there.
	AdminPath string
	// XDSPath is the agent's Unix socket that serves delta ADS. Required, at most 107
	// bytes.
	XDSPath string
	// StatsPort serves GET /stats/prometheus and nothing else; 0 means no such listener.
	StatsPort uint16
	// StatsLoopbackOnly binds StatsPort to 127.0.0.1 and ::1 instead of every address.
	StatsLoopbackOnly bool
	// IPv4 and IPv6 say which families the pod has; at least one must be set.
	IPv4, IPv6 bool
	// LogJSON makes Envoy's own log JSON lines (time, level, scope, msg) instead of
	// Istio's text.
	LogJSON bool
	// ProxyMark is set on the socket of every connection to an upstream (SO_MARK), but
	// for clusters with a bind address of their own; capture lets what carries it out. 0
	// is no mark.
	ProxyMark uint32
	// DNSServer is whom Envoy asks for names, see DNSResolver; the zero value stands for
	// the servers of resolv.conf. Envoy cannot mark these sockets, so that where only a
	// mark lets out, somebody else has to ask for it.
	DNSServer netip.AddrPort
	// RuntimeValues are ProxyConfig.runtimeValues: they go over the defaults, and ""
	// deletes a default.
	RuntimeValues map[string]string
	// StatsMatcher adds to the statistics that Envoy keeps.
	StatsMatcher StatsMatcher
	// ExtraStatTags are names of tags that extensions put into statistics' names as
	// "<tag>=.=<value>;.;" (annotation sidecar.istio.io/extraStatTags).
	ExtraStatTags []string
	// OutlierLogPath is the file to which Envoy writes each ejection and return of a host by
	// outlier detection; "" is none.
	OutlierLogPath string
	// ConnectionStats keeps downstream_cx_active of every listener, which a drain that
	// waits for the last connection needs.
	ConnectionStats bool
	// HistogramBuckets are the limits of the buckets of histograms, by prefix of their names.
	HistogramBuckets map[string][]float64
	// StatsFlushInterval is how often statistics go to where they are sent, 0 is Envoy's
	// default; StatsEvictionInterval, a multiple of it, how often those that were not used
	// are dropped, 0 is never.
	StatsFlushInterval, StatsEvictionInterval time.Duration
	// MetricsService and Statsd are where statistics are sent; the zero value is nowhere.
	// MetricsService has TLS under Istiod only.
	MetricsService Service
	Statsd         netip.AddrPort
	// Istiod is what istiod's resources need; nil is another control plane.
	Istiod *Istiod
	// MaxDownstreamConnections bounds the connections of all listeners together; 0 is
	// Istio's default, 2147483647, which is to say no bound.
	MaxDownstreamConnections uint64
}

// Proto returns the node as Envoy says it to a control plane, but for what it adds of itself. The error names what of the
// metadata is no JSON.
func (n Node) Proto() (*corev3.Node, error) {
	metadata, err := structpb.NewStruct(n.Metadata)
	if err != nil {
		return nil, fmt.Errorf("Node.Metadata: %w", err)
	}
	return &corev3.Node{
		Id: n.ID, Cluster: n.Cluster, Metadata: metadata,
		Locality: &corev3.Locality{Region: n.Region, Zone: n.Zone, SubZone: n.SubZone},
	}, nil
}

// Build makes the bootstrap. It reads and changes nothing; its errors name the
// field of Config that is wrong.
func Build(c Config) (*bootstrapv3.Bootstrap, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	node, err := c.Node.Proto()
	if err != nil {
		return nil, err
	}
	stats, err := statsConfig(c)
	if err != nil {
		return nil, err
	}
	overload, err := overloadManager(c)
	if err != nil {
		return nil, err
	}
	manager, err := clusterManager(c)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Node: node,
		Admin: &bootstrapv3.Admin{
			Address:               pipe(c.AdminPath, adminSocketMode),
			ProfilePath:           profilePath,
			IgnoreGlobalConnLimit: true,
		},
		ApplicationLogConfig: logConfig(c.LogJSON),
		LayeredRuntime:       layeredRuntime(c.RuntimeValues),
		StatsConfig:          stats,
		// A pod has many clusters and uses few: their statistics are made when they are
		// first needed.
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		StatsSinks:          statsSinks(c),
		//lint:ignore SA1019 listeners of istiod's that name no tracer have this one
		Tracing:             tracing(c),
		ClusterManager:      manager,
		OverloadManager:     overload,
		DynamicResources:    dynamicResources(c),
		StaticResources:     staticResources(c),
		BootstrapExtensions: extensions(c),

		TypedDnsResolverConfig: DNSResolver(c.DNSServer),
	}
	setStatsTimes(b, c)
	return b, nil
}

// MarshalBinary gives the file that `envoy -c` reads; its name has to end in .pb. Equal messages give
// equal bytes. As JSON it would need the descriptions of every type in it, which then stay on the heap;
// `GET /config_dump` on the admin shows what Envoy made of it.
func MarshalBinary(b *bootstrapv3.Bootstrap) ([]byte, error) {
	raw, err := marshalVT(b)
	if err != nil {
		return nil, fmt.Errorf("marshal Envoy's bootstrap: %w", err)
	}
	return raw, nil
}

// marshalVT prefers the generated marshaller (build tag vtprotobuf), which works
// without reflection.
func marshalVT(m proto.Message) ([]byte, error) {
	if vt, ok := m.(interface{ MarshalVTStrict() ([]byte, error) }); ok {
		return vt.MarshalVTStrict()
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

func (c *Config) check() error {
	var errs []error
	if c.Node.ID == "" || c.Node.Cluster == "" {
		errs = append(errs, fmt.Errorf("Node.ID %q and Node.Cluster %q: Envoy asks for both with xDS", c.Node.ID, c.Node.Cluster))
	}
	sockets := []struct{ name, path string }{{"AdminPath", c.AdminPath}, {"XDSPath", c.XDSPath}}
	if c.Istiod != nil {
		sockets = append(sockets, struct{ name, path string }{"Istiod.SDSPath", c.Istiod.SDSPath})
		if c.Istiod.FilesPath != "" {
			sockets = append(sockets, struct{ name, path string }{"Istiod.FilesPath", c.Istiod.FilesPath})
		}
	} else if c.MetricsService.secure() {
		errs = append(errs, errors.New("MetricsService.TLS without Istiod: there is nobody to ask for certificates"))
	}
	for _, p := range sockets {
		if p.path == "" {
			errs = append(errs, fmt.Errorf("%s is empty: want the path of a Unix socket", p.name))
		} else if err := unixsock.CheckPath(p.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	if c.AdminPath != "" && c.AdminPath == c.XDSPath {
		errs = append(errs, fmt.Errorf("AdminPath and XDSPath are both %q: they are two sockets", c.AdminPath))
	}
	if !c.IPv4 && !c.IPv6 {
		errs = append(errs, errors.New("neither IPv4 nor IPv6 is set: a pod has at least one"))
	}
	return errors.Join(errs...)
}

func logConfig(asJSON bool) *bootstrapv3.Bootstrap_ApplicationLogConfig {
	format := &bootstrapv3.Bootstrap_ApplicationLogConfig_LogFormat{
		LogFormat: &bootstrapv3.Bootstrap_ApplicationLogConfig_LogFormat_TextFormat{TextFormat: logFormat},
	}
	if asJSON {
		// %j is the message escaped for JSON.
		format.LogFormat = &bootstrapv3.Bootstrap_ApplicationLogConfig_LogFormat_JsonFormat{
			JsonFormat: stringStruct(map[string]string{
				"time": logTime, "level": "%l", "scope": "envoy %n", "msg": "%j", "caller": "%g:%#", "thread": "%t",
			}),
		}
	}
	return &bootstrapv3.Bootstrap_ApplicationLogConfig{LogFormat: format}
}

// clusterManager holds what concerns all clusters; nil when nothing does.
func clusterManager(c Config) (*bootstrapv3.ClusterManager, error) {
	concerned := c.ProxyMark != 0 || c.OutlierLogPath != "" || c.Istiod != nil && (c.Istiod.SelfDiscovery || c.Istiod.LoadStats != "")
	if !concerned {
		return nil, nil
	}
	m := &bootstrapv3.ClusterManager{}
	// Every upstream connection carries the mark. What goes on to the application needs none:
	// its clusters have a source address that capture knows.
	if c.ProxyMark != 0 {
		m.UpstreamBindConfig = &corev3.BindConfig{SocketOptions: []*corev3.SocketOption{{
			Description: "the proxy's mark", // in Envoy's log when it may not set it
			Level:       syscall.SOL_SOCKET,
			Name:        syscall.SO_MARK,
			Value:       &corev3.SocketOption_IntValue{IntValue: int64(c.ProxyMark)},
			State:       corev3.SocketOption_STATE_PREBIND,
		}}}
	}
	if c.OutlierLogPath != "" {
		m.OutlierDetection = &bootstrapv3.ClusterManager_OutlierDetection{EventLogPath: c.OutlierLogPath}
	}
	if c.Istiod != nil {
		if err := addIstiodManager(c, m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func dynamicResources(c Config) *bootstrapv3.Bootstrap_DynamicResources {
	ads := func() *corev3.ConfigSource {
		return &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			ResourceApiVersion:    corev3.ApiVersion_V3,
			// Envoy must not go on without its configuration, however long that takes:
			// it would be ready and serve nothing.
			InitialFetchTimeout: durationpb.New(0),
		}
	}
	api := corev3.ApiConfigSource_DELTA_GRPC
	if c.Istiod != nil && c.Istiod.StateOfTheWorld {
		api = corev3.ApiConfigSource_GRPC
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		CdsConfig: ads(),
		LdsConfig: ads(),
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   api,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices:              []*corev3.GrpcService{envoyGRPC(xdsClusterName)},
		},
	}
}
