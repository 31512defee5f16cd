package envoyfilter

import (
	"math/rand/v2"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var someConfig = &anypb.Any{TypeUrl: "type.googleapis.com/x.Y"}

func plugin(m Meta, p Plugin) *Filter {
	m.Kind = "WasmPlugin"
	p.FilterName, p.Config = m.Name, someConfig
	return NewPlugin(m, p)
}

// TestPluginOrder wants istiod's order of plugins, whatever that of the documents, and EnvoyFilters after them all.
func TestPluginOrder(t *testing.T) {
	const last = 4
	filters := []*Filter{
		plugin(Meta{Namespace: "default", Name: "b-authn"}, Plugin{Phase: 1, Priority: LeastPriority}),
		plugin(Meta{Namespace: "root", Name: "root-authn-high"}, Plugin{Phase: 1, Priority: 10}),
		plugin(Meta{Namespace: "default", Name: "authn-high"}, Plugin{Phase: 1, Priority: 10}),
		plugin(Meta{Namespace: "default", Name: "c-authn-old", Created: -1}, Plugin{Phase: 1, Priority: LeastPriority}),
		plugin(Meta{Namespace: "default", Name: "a-authz"}, Plugin{Phase: 2, Priority: -1}),
		plugin(Meta{Namespace: "default", Name: "none"}, Plugin{Phase: last, Priority: 100}),
		plugin(Meta{Namespace: "default", Name: "stats"}, Plugin{Phase: 3}),
		plugin(Meta{Namespace: "other", Name: "others"}, Plugin{Phase: 1}),
		plugin(Meta{Namespace: "default", Name: "labelled"}, Plugin{Phase: 1, Selector: map[string]string{"app": "b"}}),
		filter(t, Meta{Namespace: "root", Name: "anchored"}, patchOf("HTTP_FILTER", at("a-authz"), "INSERT_BEFORE", named("envoy.filters.http.n"))),
		filter(t, Meta{Namespace: "default", Name: "first"}, patchOf("HTTP_FILTER", `{}`, "INSERT_FIRST", named("envoy.filters.http.first"))),
	}
	for range 50 {
		rand.Shuffle(len(filters), func(i, j int) { filters[i], filters[j] = filters[j], filters[i] })
		l := listener(t, "envoy.filters.http.grpc_web")
		report, err := apply(t, setOf(filters...), l)
		if err != nil {
			t.Fatal(err)
		}
		const want = "first authn-high root-authn-high c-authn-old b-authn n a-authz stats none grpc_web router"
		if got := names(t, l); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		for _, r := range report {
			p, reason := r.Patches[0], ""
			switch r.Name {
			case "others":
				reason = "namespace other is neither"
			case "labelled":
				reason = `its selector wants the label app=b, the pod's is "a"`
			}
			if (p.Result == Skipped) != (reason != "") || !strings.Contains(p.Reason, reason) {
				t.Fatalf("%+v", r)
			}
		}
	}
}

// TestPluginMatch: a plugin stands before the traffic that its match names and before no other, as one of HTTP or of connections.
func TestPluginMatch(t *testing.T) {
	tcp := func(cluster string, port uint32) *listenerv3.FilterChain {
		config, err := pack(&tcpproxyv3.TcpProxy{StatPrefix: "x", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster}})
		if err != nil {
			t.Fatal(err)
		}
		c := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{Name: "envoy.filters.network.tcp_proxy", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}}}
		if port != 0 {
			c.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(port)}
		}
		return c
	}
	inbound := listener(t)
	inbound.Name = "virtualInbound"
	port := proto.CloneOf(inbound.FilterChains[0])
	port.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(9080)}
	sealed := tcp("BlackHoleCluster", 15006)
	sealed.Name = "sealed"
	inbound.FilterChains = append([]*listenerv3.FilterChain{sealed, port, tcp("inbound", 9080), tcp("InboundPassthroughCluster", 0)}, inbound.FilterChains...)
	outbound := listener(t)
	outbound.TrafficDirection = corev3.TrafficDirection_OUTBOUND
	outbound.Address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 443}}}}
	outbound.FilterChains, outbound.DefaultFilterChain = append(outbound.FilterChains, tcp("outbound|443||a", 0)), tcp("PassthroughCluster", 0)
	capture := proto.CloneOf(outbound)
	capture.Name = "virtualOutbound"
	client, server := Match{Client: true}, Match{Server: true}
	for _, c := range []struct {
		match        []Match
		network      bool
		in, out, own string // per chain of the listener: whether the plugin is there; own is its result
	}{
		{nil, false, "_x__x", "x__", "applied"},
		{nil, true, "_xxxx", "xx_", "applied"},
		{[]Match{server}, false, "_x__x", "___", "applied"},
		{[]Match{client}, true, "_____", "xx_", "applied"},
		{[]Match{{Server: true, Client: true, Ports: []uint16{9080, 443}}}, true, "_xx__", "xx_", "applied"},
		{[]Match{{Server: true, Ports: []uint16{1}}, {Client: true, Ports: []uint16{443}}}, false, "_____", "x__", "applied"},
		{[]Match{{Server: true, Ports: []uint16{1}}}, false, "_____", "___", "unmatched"},
	} {
		s := setOf(plugin(Meta{Namespace: "default", Name: "p"}, Plugin{Match: c.match, Network: c.network}))
		in, out, all := proto.CloneOf(inbound), proto.CloneOf(outbound), proto.CloneOf(capture)
		var notes []Note
		for _, l := range []*listenerv3.Listener{in, out, all} {
			n, err := s.Patch(l, strings.HasPrefix(l.Name, "virtual"), func(c *listenerv3.FilterChain) bool { return c.GetName() == "sealed" })
			if err != nil {
				t.Fatal(err)
			}
			notes = append(notes, n.Notes...)
		}
		where := func(l *listenerv3.Listener) (out string) {
			chains := l.FilterChains
			if l.DefaultFilterChain != nil {
				chains = append(chains[:len(chains):len(chains)], l.DefaultFilterChain)
			}
			for _, chain := range chains {
				has := chain.Filters[0].GetName() == "p"
				if chain.Filters[0].GetName() == connectionManager {
					has = strings.HasPrefix(names(t, &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{chain}}), "p ")
				}
				out += map[bool]string{true: "x", false: "_"}[has]
			}
			return out
		}
		if where(in) != c.in || where(out) != c.out || where(all) != "___" {
			t.Errorf("%+v: inbound %s, outbound %s, capture %s; want %s, %s, none", c.match, where(in), where(out), where(all), c.in, c.out)
		}
		if p := s.Report(notes)[0].Patches[0]; string(p.Result) != c.own || c.own == "unmatched" && p.Reason == "" {
			t.Errorf("%+v: %+v", c.match, p)
		}
	}
	s := setOf(plugin(Meta{Namespace: "default", Name: "p"}, Plugin{Match: []Match{{Client: true, Ports: []uint16{1}}, {Server: true, Ports: []uint16{3, 2, 3}}}}))
	if got := s.Ports(); len(got) != 2 || got[0] != 2 || got[1] != 3 {
		t.Errorf("%v", got)
	}
}
