package build

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	fileaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	dynamiccommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/internal/document"
)

const typePrefix = "type.googleapis.com/"

// Istio's default access log, the format of EnvoyTextLogFormat in its pilot/pkg/model.
const defaultLogFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" ` +
	`%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ` +
	`"%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ` +
	`%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// Istio's default access log with accessLogEncoding JSON, its EnvoyJSONLogFormatIstio.
const defaultJSONLogFormat = `{"start_time":"%START_TIME%","route_name":"%ROUTE_NAME%","method":"%REQ(:METHOD)%",
"path":"%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%","protocol":"%PROTOCOL%","response_code":"%RESPONSE_CODE%",
"response_flags":"%RESPONSE_FLAGS%","response_code_details":"%RESPONSE_CODE_DETAILS%",
"connection_termination_details":"%CONNECTION_TERMINATION_DETAILS%","bytes_received":"%BYTES_RECEIVED%",
"bytes_sent":"%BYTES_SENT%","duration":"%DURATION%","upstream_service_time":"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
"x_forwarded_for":"%REQ(X-FORWARDED-FOR)%","user_agent":"%REQ(USER-AGENT)%","request_id":"%REQ(X-REQUEST-ID)%",
"authority":"%REQ(:AUTHORITY)%","upstream_host":"%UPSTREAM_HOST%","upstream_cluster":"%UPSTREAM_CLUSTER_RAW%",
"upstream_local_address":"%UPSTREAM_LOCAL_ADDRESS%","downstream_local_address":"%DOWNSTREAM_LOCAL_ADDRESS%",
"downstream_remote_address":"%DOWNSTREAM_REMOTE_ADDRESS%","requested_server_name":"%REQUESTED_SERVER_NAME%",
"upstream_transport_failure_reason":"%UPSTREAM_TRANSPORT_FAILURE_REASON%"}`

// maker makes Envoy messages from services. It holds the parts that all of them share, and lives for one Build.
type maker struct {
	o             mesh.Options
	accessLog     []*accesslogv3.AccessLog
	http1Upstream map[string]*anypb.Any // for services that speak HTTP/1, and
	http2Upstream map[string]*anypb.Any // HTTP/2
	dynamicCache  *dynamiccommonv3.DnsCacheConfig
	filters       *envoyfilter.Set
	err           error // the first of what could not be serialized: then nothing that was made is whole
}

func newMaker(o mesh.Options) (*maker, error) {
	b := &maker{o: o}
	var err error
	if b.accessLog, err = newAccessLog(o.AccessLog); err != nil {
		return nil, err
	}
	b.dynamicCache = b.newDynamicCache()
	b.http1Upstream = b.explicitUpstream(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: b.transparentHTTP1()},
	})
	b.http2Upstream = b.explicitUpstream(&httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		},
	})
	return b, b.err
}

// explicitUpstream makes a cluster speak the protocol of config.
func (b *maker) explicitUpstream(config *httpv3.HttpProtocolOptions_ExplicitHttpConfig) map[string]*anypb.Any {
	return b.httpOptions(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: config},
	})
}

func (b *maker) httpOptions(options *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpOptionsExtension: b.pack(options)}
}

// newAccessLog returns the access logs of every filter: one, or none without a path.
func newAccessLog(l mesh.AccessLog) ([]*accesslogv3.AccessLog, error) {
	if l.Path == "" {
		return nil, nil
	}
	format := &corev3.SubstitutionFormatString{}
	if l.JSON {
		l.Format = cmp.Or(l.Format, defaultJSONLogFormat)
		fields := &structpb.Struct{}
		if err := protojson.Unmarshal([]byte(l.Format), fields); err != nil || !json.Valid([]byte(l.Format)) {
			return nil, fmt.Errorf("accessLogFormat is %s, with accessLogEncoding JSON it should be a JSON object of format strings", document.Abridge(l.Format))
		}
		format.Format = &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields}
	} else {
		l.Format = cmp.Or(l.Format, defaultLogFormat)
		format.Format = &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: l.Format},
		}}
	}
	name, config := accessLogger(l.Path, format)
	// Not marshal: the fields of a JSON format are a map.
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("serialize access log: %w", err)
	}
	return []*accesslogv3.AccessLog{{
		Name: name,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: &anypb.Any{
			TypeUrl: typePrefix + string(proto.MessageName(config)), Value: body,
		}},
	}}, nil
}

// accessLogger picks Envoy's logger for a path. The standard streams are written to as
// they are: they cannot be opened by name where they are a pipe of another user's.
func accessLogger(path string, format *corev3.SubstitutionFormatString) (name string, config proto.Message) {
	switch path {
	case "/dev/stdout":
		return "envoy.access_loggers.stdout", &streamaccesslogv3.StdoutAccessLog{
			AccessLogFormat: &streamaccesslogv3.StdoutAccessLog_LogFormat{LogFormat: format},
		}
	case "/dev/stderr":
		return "envoy.access_loggers.stderr", &streamaccesslogv3.StderrAccessLog{
			AccessLogFormat: &streamaccesslogv3.StderrAccessLog_LogFormat{LogFormat: format},
		}
	}
	return "envoy.access_loggers.file", &fileaccesslogv3.FileAccessLog{
		Path: path, AccessLogFormat: &fileaccesslogv3.FileAccessLog_LogFormat{LogFormat: format},
	}
}

// pack packs m for a typed_config, and keeps an error for the end of what is being made.
func (b *maker) pack(m proto.Message) *anypb.Any {
	packed, err := toAny(m)
	if b.err == nil {
		b.err = err
	}
	return packed
}

func toAny(m proto.Message) (*anypb.Any, error) {
	body, err := marshal(m)
	if err != nil {
		return nil, fmt.Errorf("serialize %s: %w", proto.MessageName(m), err)
	}
	return &anypb.Any{TypeUrl: typePrefix + string(proto.MessageName(m)), Value: body}, nil
}

// anyAddresses returns the wildcard addresses of the pod's families, IPv4 first.
func (b *maker) anyAddresses() []netip.Addr {
	var out []netip.Addr
	if b.o.IPv4 {
		out = append(out, netip.IPv4Unspecified())
	}
	if b.o.IPv6 {
		out = append(out, netip.IPv6Unspecified())
	}
	return out
}

// listenerName is Istio's: the address and the port.
func listenerName(addr netip.Addr, port uint16) string {
	if addr.Is6() && addr.IsUnspecified() {
		return fmt.Sprintf("[::]_%d", port)
	}
	return fmt.Sprintf("%s_%d", addr, port)
}

// perFamily picks what is for a pod with IPv4 only, with IPv6 only, or with both.
func perFamily[T any](o *mesh.Options, v4, v6, both T) T {
	switch {
	case !o.IPv6:
		return v4
	case !o.IPv4:
		return v6
	}
	return both
}
