package canonical_test

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"understudy.mesh/pkg/xds/internal/canonical"
)

const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// scrambled are bytes of m in which maps have another order than in body, if it has a map that can have one.
func scrambled(t *testing.T, m proto.Message, body []byte) []byte {
	t.Helper()
	for range 1000 { // proto.Marshal goes through a map in a random order
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != string(body) {
			return b
		}
	}
	t.Fatal("it always has the same bytes")
	return nil
}

func metadata(t *testing.T) *corev3.Metadata {
	t.Helper()
	fields, err := structpb.NewStruct(map[string]any{"config": "a", "external": true, "services": []any{map[string]any{"name": "x", "host": "y", "namespace": "z"}}})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": fields, "other": fields}}
}

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestSameInAnotherOrder: istiod gives the entries of maps no order, wherever they are; anything else does have one.
func TestSameInAnotherOrder(t *testing.T) {
	route := func(prefix string) *routev3.Route {
		return &routev3.Route{
			Match:    &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix}},
			Action:   &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}},
			Metadata: metadata(t),
		}
	}
	routes := func(prefixes ...string) *routev3.RouteConfiguration {
		host := &routev3.VirtualHost{Name: "h", Domains: []string{"*"}}
		for _, p := range prefixes {
			host.Routes = append(host.Routes, route(p))
		}
		return &routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{host}}
	}
	nested := func() *listenerv3.Listener {
		manager := &hcmv3.HttpConnectionManager{StatPrefix: "x", RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes("/")}}
		return &listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(t, manager)},
		}}}}}
	}
	marshal := func(m proto.Message) []byte {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const routeType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	cluster := &clusterv3.Cluster{Name: "c", Metadata: metadata(t)}
	listener := marshal(nested())
	other := listener
	for string(other) == string(listener) { // the order within the Any is made anew each time
		other = marshal(nested())
	}
	for name, tc := range map[string]struct {
		url  string
		a, b []byte
		want bool
	}{
		"metadata of a cluster":    {clusterType, marshal(cluster), scrambled(t, cluster, marshal(cluster)), true},
		"metadata of a route":      {routeType, marshal(routes("/a", "/b")), scrambled(t, routes("/a", "/b"), marshal(routes("/a", "/b"))), true},
		"within another message":   {listenerType, listener, other, true},
		"routes in another order":  {routeType, marshal(routes("/a", "/b")), marshal(routes("/b", "/a")), false},
		"another value":            {clusterType, []byte("\n\x01a"), []byte("\n\x01b"), false},
		"a type that nobody knows": {"type.googleapis.com/no.such.Type", []byte("\n\x01a"), []byte("\n\x01b"), false},
		"no messages":              {clusterType, []byte("\xff1"), []byte("\xff2"), false},
		"cut off":                  {clusterType, []byte("\n\x05a"), []byte("\n\x05b"), false},
	} {
		if got := canonical.Same(tc.url, tc.a, tc.b); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if !canonical.Same(tc.url, tc.a, tc.a) {
			t.Errorf("%s: not the same as itself", name)
		}
	}
}

// FuzzSame: whatever comes, a comparison ends, is the same both ways round, and what it takes for the same marshals to the same.
func FuzzSame(f *testing.F) {
	f.Add([]byte("\n\x01a"), []byte("\n\x01b"))
	entry := func(key string) string {
		return "\n" + string(rune(len(key)+4)) + "\n" + string(rune(len(key))) + key + "\x12\x00"
	}
	f.Add([]byte("\xca\x01\x0e"+entry("a")+entry("b")), []byte("\xca\x01\x0e"+entry("b")+entry("a")))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		got := canonical.Same(clusterType, a, b)
		if got != canonical.Same(clusterType, b, a) {
			t.Error("another answer the other way round")
		}
		if !canonical.Same(clusterType, a, a) {
			t.Error("not the same as itself")
		}
		var one, two clusterv3.Cluster
		if got && proto.Unmarshal(a, &one) == nil && proto.Unmarshal(b, &two) == nil && !proto.Equal(&one, &two) {
			t.Errorf("%v and %v count as the same", &one, &two)
		}
	})
}
