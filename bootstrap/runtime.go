package bootstrap

import (
	"fmt"
	"strconv"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	// MaxConnectionsKey bounds downstream connections. As a runtime key it is
	// deprecated in Envoy; users still write it in runtimeValues, so it is moved to
	// the overload manager.
	MaxConnectionsKey = "overload.global_downstream_max_connections"
	// maxConnections is Istio's default for it: the largest int32, no bound.
	maxConnections = 2147483647
)

// runtimeDefaults are Istio's runtime values; with them a configuration behaves the
// same behind either agent.
func runtimeDefaults() map[string]string {
	return map[string]string{
		// Regular expressions of routes and filters are larger than Envoy's default allows.
		"re2.max_program_size.error_level": "32768",
		"envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst": "true",
		"envoy.reloadable_features.http_reject_path_with_fragment":                                             "false",
		"envoy.reloadable_features.fixed_heap_use_allocated":                                                   "true",
		"envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update":                                       "false",
	}
}

// layeredRuntime is the static layer and, above it, the one that the admin's
// /runtime_modify writes to.
func layeredRuntime(values map[string]string) *bootstrapv3.LayeredRuntime {
	merged := runtimeDefaults()
	for k, v := range values {
		if v == "" || k == MaxConnectionsKey {
			delete(merged, k)
			continue
		}
		merged[k] = v
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{
		{Name: "global config", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: stringStruct(merged)}},
		{Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}}},
	}}
}

// stringStruct makes a protobuf struct of strings; "true" and "false" become
// booleans, because Envoy takes a feature flag only as one.
func stringStruct(values map[string]string) *structpb.Struct {
	fields := make(map[string]*structpb.Value, len(values))
	for k, v := range values {
		switch v {
		case "true", "false":
			fields[k] = structpb.NewBoolValue(v == "true")
		default:
			fields[k] = structpb.NewStringValue(v)
		}
	}
	return &structpb.Struct{Fields: fields}
}

// overloadManager bounds the connections of all listeners together.
func overloadManager(c Config) (*overloadv3.OverloadManager, error) {
	limit := c.MaxDownstreamConnections
	if v := c.RuntimeValues[MaxConnectionsKey]; limit == 0 && v != "" {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("RuntimeValues[%q] is %q: want a number of connections, 1 or more", MaxConnectionsKey, v)
		}
		limit = n
	}
	if limit == 0 {
		limit = maxConnections
	}
	config := typed(&connlimitv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: int64(limit)})
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name:       "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: config},
	}}}, nil
}

// tcp is the address of a TCP socket.
func tcp(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// pipe is the address of a Unix socket; mode 0 leaves the mode to the umask.
func pipe(path string, mode uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: mode}}}
}

// typed packs a message of this package's own without anypb.New, whose proto.Marshal would
// load the message's reflection data.
func typed(m proto.Message) *anypb.Any {
	name := m.ProtoReflect().Descriptor().FullName()
	value, err := marshalVT(m)
	if err != nil {
		panic(fmt.Sprintf("bootstrap: marshal %s: %v", name, err)) // what is no UTF-8, and these messages hold no text from outside
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(name), Value: value}
}
