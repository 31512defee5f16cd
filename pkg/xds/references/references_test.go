package references

import (
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// filter is one of a listener's connections.
func filter(t *testing.T, config proto.Message) *listenerv3.Filter {
	t.Helper()
	packed, err := anypb.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return &listenerv3.Filter{Name: "f", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed}}
}

// asks is a filter that asks for routes.
func asks(t *testing.T, routes string) *listenerv3.Filter {
	t.Helper()
	return filter(t, &hcmv3.HttpConnectionManager{
		StatPrefix: "s", RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes}},
	})
}

func TestOf(t *testing.T) {
	chain := func(filters ...*listenerv3.Filter) *listenerv3.FilterChain {
		return &listenerv3.FilterChain{Filters: filters}
	}
	ofEDS := func(service string) *clusterv3.Cluster {
		return &clusterv3.Cluster{Name: "a", EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: service}}
	}
	for name, tc := range map[string]struct {
		url      string
		resource proto.Message
		want     []string
	}{
		"endpoints by the cluster's name": {Cluster, ofEDS(""), []string{"a"}},
		"the same, said":                  {Cluster, ofEDS("a"), []string{"a"}},
		"endpoints by another name":       {Cluster, ofEDS("b"), []string{"b"}},
		"a cluster that has them":         {Cluster, &clusterv3.Cluster{Name: "a"}, nil},
		"routes": {Listener, &listenerv3.Listener{
			FilterChains:       []*listenerv3.FilterChain{chain(filter(t, &tcpv3.TcpProxy{StatPrefix: "s"}), asks(t, "80")), chain(), chain(asks(t, "8080"))},
			DefaultFilterChain: chain(asks(t, "last")),
		}, []string{"80", "8080", "last"}},
		"routes that it has": {Listener, &listenerv3.Listener{
			FilterChains: []*listenerv3.FilterChain{chain(filter(t, &hcmv3.HttpConnectionManager{StatPrefix: "s"}))},
		}, nil},
		"another type": {"type.googleapis.com/x", ofEDS("b"), nil},
	} {
		body, err := proto.Marshal(tc.resource)
		if err != nil {
			t.Fatal(err)
		}
		if got := Of(tc.url, "a", body); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	for _, url := range []string{Cluster, Listener} {
		if got := Of(url, "a", []byte("\xff")); got != nil {
			t.Errorf("%s: no message refers to %q", url, got)
		}
	}
}
