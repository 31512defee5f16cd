package bootstrap

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// Names of secrets (Istio's): the workload's own certificate and roots, and files.
	workloadSecret = "default"
	rootSecret     = "ROOTCA"
	certPrefix     = "file-cert:"
	rootPrefix     = "file-root:"
	certSeparator  = "~"
	systemRoots    = "system"

	tlsSocketName = "envoy.transport_sockets.tls"
)

// transportSocket is the client's side of a service's TLS; nil is plain text.
func (s Service) transportSocket(c Config, cluster string, http2 bool) *corev3.TransportSocket {
	if !s.secure() {
		return nil
	}
	common := &tlsv3.CommonTlsContext{}
	sni, root := s.SNI, rootPrefix+systemRoots
	if s.CA != "" {
		root = rootPrefix + s.CA
	}
	switch s.TLS {
	case "SIMPLE":
		common.AlpnProtocols = []string{"h2"}
	case "MUTUAL":
		common.AlpnProtocols = []string{"h2"}
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secret(c, certPrefix+s.Certificate+certSeparator+s.Key)}
	case "ISTIO_MUTUAL":
		common.AlpnProtocols = []string{"istio", "h2"}
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secret(c, workloadSecret)}
		root = rootSecret
		if sni == "" {
			sni = meshSNI(cluster)
		}
	}
	if !http2 {
		common.AlpnProtocols = nil
	}
	names := &tlsv3.CertificateValidationContext{}
	for _, name := range s.SubjectAltNames {
		//lint:ignore SA1019 the newer field needs a matcher for each type of name, and this one does not
		names.MatchSubjectAltNames = append(names.MatchSubjectAltNames, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}})
	}
	common.ValidationContextType = validation(c, names, root)
	return tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: sni})
}

// meshSNI is what is asked for within the mesh where nobody says a name.
func meshSNI(cluster string) string {
	if cluster == metricsServiceCluster || cluster == accessLogServiceCluster {
		return cluster
	}
	return "tracer"
}

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: tlsSocketName, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: typed(context)}}
}

func validation(c Config, names *tlsv3.CertificateValidationContext, root string) *tlsv3.CommonTlsContext_CombinedValidationContext {
	return &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
		DefaultValidationContext: names, ValidationContextSdsSecretConfig: secret(c, root),
	}}
}

// secret is one that the agent serves over SDS.
func secret(c Config, name string) *tlsv3.SdsSecretConfig {
	server := sdsClusterName
	if isFile := strings.HasPrefix(name, certPrefix) || strings.HasPrefix(name, rootPrefix); isFile && c.Istiod != nil && c.Istiod.FilesPath != "" {
		server = filesClusterName
	}
	config := &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices:              []*corev3.GrpcService{envoyGRPC(server)},
		}},
	}}
	if name == workloadSecret || name == rootSecret {
		// It comes when the CA has signed it, however long that takes.
		config.SdsConfig.InitialFetchTimeout = durationpb.New(0)
	}
	return config
}

func envoyGRPC(cluster string) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster}}}
}

// overMutualTLS makes a listener take nobody but who has a certificate of the mesh.
func overMutualTLS(c Config, l *listenerv3.Listener) {
	l.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: typed(&inspectorv3.TlsInspector{})},
	}}
	chain := l.FilterChains[0]
	chain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
	chain.TransportSocket = tlsSocket(&tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret(c, workloadSecret)},
			ValidationContextType:          validation(c, &tlsv3.CertificateValidationContext{}, rootSecret),
		},
	})
}
