package extension

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	tcpProxy = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	alpn     = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
	exchange = "envoy.tcp.metadataexchange.config.MetadataExchange"
	stats    = "stats.PluginConfig"
)

// using is a message in which the URLs of types stand as those of an Any do.
func using(types ...string) string {
	var b []byte
	for _, name := range types {
		b = protowire.AppendString(protowire.AppendTag(b, fieldTypeURL, protowire.BytesType), typePrefix+name)
	}
	return string(b)
}

// within is a message that has others as the bytes of a field.
func within(message string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), message))
}

// knowing is the node of an Envoy that has the extensions of these types.
func knowing(types ...string) *corev3.Node {
	return &corev3.Node{Id: "sidecar~1.1.1.1~app.default~x", Extensions: []*corev3.Extension{
		{Name: "some", TypeUrls: types}, {Name: "off", TypeUrls: []string{"envoy.extensions.off"}, Disabled: true},
	}}
}

func TestExtensionsThatEnvoyLacks(t *testing.T) {
	for name, tc := range map[string]struct {
		node     *corev3.Node
		resource string
		want     []string
	}{
		"it has all":                     {knowing(tcpProxy), using(tcpProxy), nil},
		"one of Istio's, each once":      {knowing(tcpProxy), using(exchange, tcpProxy, exchange), []string{exchange}},
		"within a struct":                {knowing(tcpProxy), using(alpn) + within(using("udpa.type.v1.TypedStruct")+within(using(stats))), []string{alpn, stats}},
		"one that is switched off":       {knowing(tcpProxy), using("envoy.extensions.off"), []string{"envoy.extensions.off"}},
		"values are none":                {knowing(tcpProxy), using("google.protobuf.StringValue", "envoy.config.core.v3.Address"), nil},
		"an Envoy that names none":       {&corev3.Node{}, using(alpn), nil},
		"a URL in a text":                {knowing(tcpProxy), within("see " + typePrefix + alpn), nil},
		"a length beyond the end":        {knowing(tcpProxy), "\x0a\x7f" + typePrefix + alpn, nil},
		"a length within the prefix":     {knowing(tcpProxy), "\x0a\x05" + typePrefix + alpn, nil},
		"nothing before it":              {knowing(tcpProxy), typePrefix + alpn, nil},
		"the types of a discovery":       {knowing(tcpProxy), "\x22" + string(rune(len(typePrefix+stats))) + typePrefix + stats, []string{stats}},
		"another field than those":       {knowing(tcpProxy), "\x1a" + string(rune(len(typePrefix+stats))) + typePrefix + stats, nil},
		"no message, only URLs in a row": {knowing(tcpProxy), strings.Repeat("\x0a"+string(rune(len(typePrefix+stats)))+typePrefix+stats, 3), []string{stats}},
	} {
		if got := Of(tc.node).Lacks([]byte(tc.resource)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: lacks %q, want %q", name, got, tc.want)
		}
	}
}

// FuzzTypes: what comes from istiod may be anything.
func FuzzTypes(f *testing.F) {
	f.Add([]byte("\x0a\x7f" + typePrefix))
	f.Add([]byte(strings.Repeat(typePrefix, 3)))
	f.Fuzz(func(t *testing.T, message []byte) {
		for name := range Types(message) {
			if len(name) == 0 || len(name) > maxTypeURL || !bytes.Contains(message, name) {
				t.Errorf("%q is a type of %q", name, message)
			}
		}
	})
}
