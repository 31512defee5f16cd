package xds_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/xds"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/realenvoy"
)

const endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

// newRelayed makes a relay in the place of the server. The test is its upstream.
func newRelayed(t *testing.T) (*proxy, *xds.Relay) {
	t.Helper()
	realenvoy.Path(t, root)
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "xds"))
	if err != nil {
		t.Fatal(err)
	}
	relay := xds.NewRelay(l, slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	p := &proxy{t: t, dir: dir, admin: envoy.NewAdmin(filepath.Join(dir, "admin"))}
	t.Cleanup(func() {
		p.admin.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	relay.Begin()
	return p, relay
}

// edsCluster gets its endpoints from the relay, and Envoy waits for them for as long as it takes, as istiod wants it.
func edsCluster(name string, connect time.Duration) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, ConnectTimeout: durationpb.New(connect),
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			ResourceApiVersion:    corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0),
		}},
	}
}

func give(t *testing.T, relay *xds.Relay, url, nonce string, resources map[string]proto.Message) {
	t.Helper()
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Nonce: nonce}
	for name, m := range resources {
		body, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Resource: body})
	}
	in, err := xds.Read(resp)
	if err == nil {
		err = relay.Give(in)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// await takes what Envoy asks for and says until it has asked for a type, or (nonce) answered a response.
func await(t *testing.T, relay *xds.Relay, url, nonce string) {
	t.Helper()
	for late := time.After(patience); ; {
		for _, n := range relay.Take() {
			if nonce == "" && n.Type == url && n.First {
				return
			}
			for _, a := range n.Answers {
				if a.Nonce == nonce && a.Refusal == "" {
					return
				}
				if a.Refusal != "" {
					t.Fatalf("Envoy refuses %s: %s", n.Type, a.Refusal)
				}
			}
		}
		select {
		case <-relay.Changed():
		case <-late:
			t.Fatalf("Envoy does not ask for %s, or does not answer %q", url, nonce)
		}
	}
}

// TestEnvoyWarmsChangedCluster: an Envoy does not ask for the endpoints of a cluster that has changed. It would warm that for
// ever, and not even answer.
func TestEnvoyWarmsChangedCluster(t *testing.T) {
	p, relay := newRelayed(t)
	endpoints := newCluster("c", upstream(t, "here")).LoadAssignment
	port := freeport.Get(t)
	p.launch(p.bootstrap(nil), true)
	await(t, relay, clusterType, "")
	give(t, relay, clusterType, "c1", map[string]proto.Message{"c": edsCluster("c", time.Second)})
	await(t, relay, endpointType, "")
	give(t, relay, endpointType, "e1", map[string]proto.Message{"c": endpoints})
	await(t, relay, listenerType, "")
	give(t, relay, listenerType, "l1", map[string]proto.Message{"l": newListener("l", "127.0.0.1", port, "c", false)})
	await(t, relay, listenerType, "l1")
	p.ready()
	if got := ask(t, port); got != "here" {
		t.Fatalf("before the change: %q", got)
	}

	give(t, relay, clusterType, "c2", map[string]proto.Message{"c": edsCluster("c", 2*time.Second)})
	await(t, relay, clusterType, "c2")
	p.warm()
	if got := ask(t, port); got != "here" {
		t.Errorf("after the change: %q", got)
	}
}

// TestEnvoyOfWholeStates: an Envoy that asks for whole states serves through the relay, warms what changes, keeps what it had where
// it refuses the new, and loses what is gone.
func TestEnvoyOfWholeStates(t *testing.T) {
	p, relay := newRelayed(t)
	endpoints := newCluster("c", upstream(t, "here")).LoadAssignment
	port, other := freeport.Get(t), freeport.Get(t)
	p.launch(p.bootstrap(func(b *bootstrapv3.Bootstrap) {
		b.DynamicResources.AdsConfig.ApiType = corev3.ApiConfigSource_GRPC
	}), true)
	await(t, relay, clusterType, "")
	give(t, relay, clusterType, "c1", map[string]proto.Message{"c": edsCluster("c", time.Second)})
	await(t, relay, endpointType, "")
	give(t, relay, endpointType, "e1", map[string]proto.Message{"c": endpoints})
	await(t, relay, listenerType, "")
	bad := newListener("bad", "127.0.0.1", other, "c", false)
	bad.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/no.such.Filter"}}
	give(t, relay, listenerType, "l1", map[string]proto.Message{"l": newListener("l", "127.0.0.1", port, "c", false), "bad": bad})
	awaitRefusal(t, relay, "l1")
	p.ready()
	if got := ask(t, port); got != "here" {
		t.Fatalf("before the change: %q", got)
	}
	give(t, relay, listenerType, "l2", map[string]proto.Message{"m": newListener("m", "127.0.0.1", other, "c", false)})
	await(t, relay, listenerType, "l2") // an ACK: what is refused does not come again
	if got := ask(t, other); got != "here" {
		t.Errorf("a listener beside one that is refused: %q", got)
	}
	give(t, relay, clusterType, "c2", map[string]proto.Message{"c": edsCluster("c", 2*time.Second)})
	await(t, relay, clusterType, "c2")
	p.warm()
	for _, at := range []uint16{port, other} {
		if got := ask(t, at); got != "here" {
			t.Errorf("after the change of a cluster: %q", got)
		}
	}
	if err := relay.Give(&xds.Response{Type: listenerType, Nonce: "l3", Removed: []string{"m"}}); err != nil {
		t.Fatal(err)
	}
	await(t, relay, listenerType, "l3")
	if got := p.stats("listener_manager.listener_removed")["listener_manager.listener_removed"]; got != 1 {
		t.Errorf("%d listeners are gone, want 1", got)
	}
	if got := ask(t, port); got != "here" {
		t.Errorf("after the removal of another one: %q", got)
	}
}

// awaitRefusal waits until Envoy has refused a response.
func awaitRefusal(t *testing.T, relay *xds.Relay, nonce string) {
	t.Helper()
	for late := time.After(patience); ; {
		for _, n := range relay.Take() {
			for _, a := range n.Answers {
				if a.Nonce == nonce && a.Refusal != "" {
					return
				}
			}
		}
		select {
		case <-relay.Changed():
		case <-late:
			t.Fatalf("Envoy does not refuse %q", nonce)
		}
	}
}

// warm waits until Envoy uses all clusters that it has taken.
func (p *proxy) warm() {
	p.t.Helper()
	warm := func() error {
		clusters, _, err := p.admin.Warming(p.t.Context())
		if err == nil && clusters > 0 {
			err = fmt.Errorf("%d clusters warm", clusters)
		}
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); warm() != nil; {
		select {
		case <-tick.C:
		case <-late:
			p.t.Fatal(warm())
		}
	}
}
