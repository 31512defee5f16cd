package envoyfilter

import (
	"encoding/json"
	"regexp"
	"strings"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
)

const (
	typePrefix = "type.googleapis.com/"
	typeKey    = "@type"
)

// newValue makes the Envoy message of a patch's value. A field goes by its JSON name or its name in the .proto file, as
// protojson has it.
//
// Of an @type that is not linked into the agent, the value goes on as a TypedStruct, which Envoy turns into the real
// message and checks: to link all of Envoy's API would double the agent's size.
func newValue(to networking.EnvoyFilter_ApplyTo, value *structpb.Struct) (proto.Message, *Problem) {
	var m proto.Message
	switch to {
	case networking.EnvoyFilter_HTTP_FILTER:
		m = &hcmv3.HttpFilter{}
	case networking.EnvoyFilter_NETWORK_FILTER:
		m = &listenerv3.Filter{}
	default:
		m = &corev3.TypedExtensionConfig{}
	}
	text, err := json.Marshal(carry(value.AsMap()))
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	if err != nil {
		return nil, problem("", "is no %s: %s", m.ProtoReflect().Descriptor().FullName(), plain(err))
	}
	return m, nil
}

// plain is what protojson says, without its place in a text that nobody has seen, and with the spaces that it varies.
func plain(err error) string {
	text := strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\u00a0", " ")), " ")
	return regexp.MustCompile(`^proto: (?:syntax error )?(?:\(line \d+:\d+\): )?`).ReplaceAllString(text, "")
}

// carry puts what has an unlinked @type into a TypedStruct, and takes what has a linked one out of a TypedStruct that
// its writer put it into, so that it is seen through here.
func carry(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = carry(v[i])
		}
	case map[string]any:
		url, _ := v[typeKey].(string)
		if inner, value, is := typedStruct(url, v); is && linked(inner) {
			value[typeKey] = inner
			return carry(value)
		} else if is {
			return v // Envoy's to read
		}
		if url != "" && !linked(url) {
			delete(v, typeKey)
			return map[string]any{typeKey: typeURL(&xdsv3.TypedStruct{}), "typeUrl": url, "value": v}
		}
		for k := range v {
			v[k] = carry(v[k])
		}
	}
	return v
}

// typedStruct is what a TypedStruct has in it, of the older name or the newer.
func typedStruct(url string, fields map[string]any) (inner string, value map[string]any, is bool) {
	if name := url[strings.LastIndexByte(url, '/')+1:]; name != string(proto.MessageName(&udpav1.TypedStruct{})) && name != string(proto.MessageName(&xdsv3.TypedStruct{})) {
		return "", nil, false
	}
	inner, _ = fields["typeUrl"].(string)
	if inner == "" {
		inner, _ = fields["type_url"].(string)
	}
	value, ok := fields["value"].(map[string]any)
	if !ok {
		value = map[string]any{}
	}
	return inner, value, true
}

func linked(url string) bool {
	_, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	return err == nil
}

func typeURL(m proto.Message) string { return typePrefix + string(proto.MessageName(m)) }

// pack serializes to the same bytes every time, so that a patch that did not change changes nothing.
func pack(m proto.Message) (*anypb.Any, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return &anypb.Any{TypeUrl: typeURL(m), Value: body}, err
}

// complete says what a value lacks that is to stand by itself: MERGE needs neither a name nor a configuration.
func (p *patch) complete() *Problem {
	if p.operation == networking.EnvoyFilter_Patch_MERGE {
		return nil
	}
	name, config, discovery := parts(p.value)
	switch {
	case name == "":
		return problem(".name", "is missing")
	case config == nil && discovery == nil:
		return problem(".typedConfig", "is missing: a filter without it is none")
	}
	return nil
}

// parts are those that HttpFilter, Filter and TypedExtensionConfig have in common.
func parts(value proto.Message) (name string, config *anypb.Any, discovery *corev3.ExtensionConfigSource) {
	switch v := value.(type) {
	case *hcmv3.HttpFilter:
		return v.GetName(), v.GetTypedConfig(), v.GetConfigDiscovery()
	case *listenerv3.Filter:
		return v.GetName(), v.GetTypedConfig(), v.GetConfigDiscovery()
	case *corev3.TypedExtensionConfig:
		return v.GetName(), v.GetTypedConfig(), nil
	}
	return "", nil, nil
}

// setConfig gives a filter its configuration.
func setConfig(filter proto.Message, config *anypb.Any) {
	switch f := filter.(type) {
	case *hcmv3.HttpFilter:
		f.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}
	case *listenerv3.Filter:
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: config}
	}
}
