package build

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	grpcwebv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	preservecasev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"understudy.mesh/pkg/mesh"
)

const (
	// maxHeadersKB and maxHeaders are well above what any server takes, so that the proxy is never the limit: Envoy's
	// own are 60 KiB and 100 headers, nginx takes 32 KiB, Tomcat 8 KiB.
	maxHeadersKB = 1024
	maxHeaders   = 5000
	// retries and outboundRetryOn are Istio's default retry policy for HTTP.
	retries         = 2
	outboundRetryOn = "connect-failure,refused-stream,unavailable,cancelled"
	// inboundRetryOn covers the race between a request and the application closing an idle connection; nothing of such
	// a request was sent (Istio's ENABLE_INBOUND_RETRY_POLICY).
	inboundRetryOn = "reset-before-request"
	// hostless is the Host that an HTTP/1.0 request without one gets; Envoy cannot route a request without a host.
	hostless = "localhost"
)

// never is Envoy's zero duration: no time-out.
func never() *durationpb.Duration { return durationpb.New(0 * time.Second) }

// tcpFilter proxies bytes to a cluster, without an idle time-out: there would be none without a proxy.
func (b *maker) tcpFilter(cluster string) *listenerv3.Filter {
	return b.networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
		StatPrefix: cluster, ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		IdleTimeout: never(), AccessLog: b.accessLog,
	})
}

func (b *maker) networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(config)}}
}

// httpFilter packs an HTTP connection manager, after filling in what both directions share: no time-out and no limit of
// ours, and no header but those that Envoy cannot work without.
func (b *maker) httpFilter(m *hcmv3.HttpConnectionManager, grpcWeb bool) *listenerv3.Filter {
	m.AccessLog = b.accessLog
	m.StreamIdleTimeout = never()
	m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{
		IdleTimeout: never(), MaxHeadersCount: wrapperspb.UInt32(maxHeaders),
	}
	m.MaxRequestHeadersKb = wrapperspb.UInt32(maxHeadersKB)
	m.NormalizePath = wrapperspb.Bool(false)
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_PASS_THROUGH
	if grpcWeb {
		b.addHTTPFilter(m, "envoy.filters.http.grpc_web", &grpcwebv3.GrpcWeb{})
	}
	b.addHTTPFilter(m, "envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true})
	return b.networkFilter("envoy.filters.network.http_connection_manager", m)
}

func (b *maker) addHTTPFilter(m *hcmv3.HttpConnectionManager, name string, config proto.Message) {
	m.HttpFilters = append(m.HttpFilters, &hcmv3.HttpFilter{
		Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(config)},
	})
}

// outboundHTTP routes the requests of a listener to its HTTP services: all to the only one, or by their Host. All
// listeners of a port have one prefix of statistics, that of Istio's one listener for them: Envoy keeps statistics for
// each prefix, and a mesh has thousands of listeners and few ports.
func (b *maker) outboundHTTP(listener string, members []mesh.Member, byHost bool) *listenerv3.Filter {
	port := members[0].Port.Number
	routes := &routev3.RouteConfiguration{
		Name:                     listener,
		IgnorePortInHostMatching: true,                   // Host: name:port is name
		ValidateClusters:         wrapperspb.Bool(false), // a cluster that is late is a 503, not a listener refused
	}
	grpcWeb := false
	for _, m := range members {
		domain := "*"
		if byHost {
			domain = m.Service.Host
		}
		grpcWeb = grpcWeb || m.Port.Protocol == mesh.ProtoGRPCWeb
		host := &routev3.VirtualHost{
			Name: fmt.Sprintf("%s:%d", m.Service.Host, m.Port.Number), Domains: []string{domain},
			Routes: []*routev3.Route{routeTo(memberCluster(m), outboundRetryOn)},
		}
		if isDynamic(m) {
			host.Routes = b.dynamicRoutes(m)
		}
		routes.VirtualHosts = append(routes.VirtualHosts, host)
	}
	if byHost {
		routes.VirtualHosts = append(routes.VirtualHosts, b.unknownHosts())
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix:          "outbound_" + listenerName(b.anyAddresses()[0], port),
		RouteSpecifier:      &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes},
		HttpProtocolOptions: b.downstreamHTTP1(),
		UpgradeConfigs:      []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
	if anyDynamic(members) {
		b.addLookup(manager, port)
	}
	return b.httpFilter(manager, grpcWeb)
}

// everyPath matches every request but CONNECT. (OPTIONS * never gets as far: Envoy answers 404 itself.)
func everyPath() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// routeTo sends every request to a cluster, without a time-out; without retryOn there are no retries.
func routeTo(cluster, retryOn string) *routev3.Route {
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}, Timeout: never(),
	}
	if retryOn != "" {
		action.RetryPolicy = &routev3.RetryPolicy{RetryOn: retryOn, NumRetries: wrapperspb.UInt32(retries)}
	}
	return &routev3.Route{Match: everyPath(), Action: &routev3.Route_Route{Route: action}}
}

// unknownHosts is what happens to a Host that nobody declared: Istio's allow_any, or its block_all.
func (b *maker) unknownHosts() *routev3.VirtualHost {
	if !b.o.RegistryOnly {
		return &routev3.VirtualHost{
			Name: "allow_any", Domains: []string{"*"}, Routes: []*routev3.Route{routeTo(passthroughCluster, "")},
		}
	}
	const badGateway = 502 // Istio's answer to an unknown host under REGISTRY_ONLY
	return &routev3.VirtualHost{Name: "block_all", Domains: []string{"*"}, Routes: []*routev3.Route{{
		Match:  everyPath(),
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: badGateway}},
	}}}
}

// inboundHTTP forwards captured requests to the application, which should see what it would see without a proxy. routes
// is the name of its route configuration.
func (b *maker) inboundHTTP(cluster, routes string) *listenerv3.Filter {
	everything, connect := routeTo(cluster, inboundRetryOn), routeTo(cluster, inboundRetryOn)
	connect.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}}
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: "inbound_0.0.0.0",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: routes, ValidateClusters: wrapperspb.Bool(false),
			VirtualHosts: []*routev3.VirtualHost{{
				Name: "inbound", Domains: []string{"*"}, Routes: []*routev3.Route{connect, everything},
			}},
		}},
		HttpProtocolOptions:       b.downstreamHTTP1(),
		Http2ProtocolOptions:      &corev3.Http2ProtocolOptions{AllowConnect: true},
		GenerateRequestId:         wrapperspb.Bool(false),
		PreserveExternalRequestId: true,
		SkipXffAppend:             true,
		Proxy_100Continue:         true,
	}
	// Envoy refuses upgrades that it is not told of. SPDY/3.1 is kubectl exec, tcp is Docker's.
	for _, upgrade := range []string{"websocket", "CONNECT", "SPDY/3.1", "tcp"} {
		m.UpgradeConfigs = append(m.UpgradeConfigs, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: upgrade})
	}
	return b.httpFilter(m, false)
}

// downstreamHTTP1 is transparentHTTP1 that takes HTTP/1.0 too, with and without a Host.
func (b *maker) downstreamHTTP1() *corev3.Http1ProtocolOptions {
	h1 := b.transparentHTTP1()
	h1.AcceptHttp_10, h1.DefaultHostForHttp_10 = true, hostless
	return h1
}

// transparentHTTP1 keeps HTTP/1 as the two ends wrote it: the case of header names, and trailers.
func (b *maker) transparentHTTP1() *corev3.Http1ProtocolOptions {
	config := b.pack(&preservecasev3.PreserveCaseFormatterConfig{ForwardReasonPhrase: true})
	return &corev3.Http1ProtocolOptions{
		EnableTrailers:     true,
		AllowChunkedLength: false, // both lengths in one request is how requests are smuggled, RFC 9112 6.3
		HeaderKeyFormat: &corev3.Http1ProtocolOptions_HeaderKeyFormat{
			HeaderFormat: &corev3.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{
				StatefulFormatter: &corev3.TypedExtensionConfig{Name: "preserve_case", TypedConfig: config},
			},
		},
	}
}
