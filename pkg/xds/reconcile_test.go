package xds

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/xds/internal/wire"
)

// edsCluster is "name=body" of a cluster that gets its endpoints by another name, or by its own; revision makes its bytes differ.
func edsCluster(name, endpoints, revision string) string {
	b, err := proto.Marshal(&clusterv3.Cluster{AltStatName: revision, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: endpoints}})
	if err != nil {
		panic(err) // it cannot fail
	}
	return name + "=" + string(b)
}

// asksFor is a listener that asks for routes.
func asksFor(t *testing.T, routes string) string {
	t.Helper()
	manager, err := anypb.New(&hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes}}})
	if err != nil {
		t.Fatal(err)
	}
	filter := &listenerv3.Filter{ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager}}
	b, err := proto.Marshal(&listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{filter}}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// relayed is a relay whose Envoy has, and has taken, a cluster with endpoints, a cluster without, a listener and a route.
func relayed(t *testing.T) (*relaying, *client) {
	t.Helper()
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	r.give(clusterType, edsCluster("a", "", "1"), "b=")
	envoy.expect("Cluster +a +b")
	envoy.subscribe(endpointType, "a")
	r.told("Cluster ack n1", "ClusterLoadAssignment first +a")
	r.give(endpointType, "a=1")
	envoy.expect("ClusterLoadAssignment +a")
	envoy.subscribe(listenerType)
	r.told("ClusterLoadAssignment ack n2", "Listener first")
	r.give(listenerType, "l=1")
	envoy.expect("Listener +l")
	envoy.subscribe(routeURL, "r")
	r.told("Listener ack n3", "RouteConfiguration first +r")
	r.give(routeURL, "r=1")
	envoy.expect("RouteConfiguration +r")
	r.told("RouteConfiguration ack n4")
	return r, envoy
}

// again is another stream of the upstream.
func (r *relaying) again() {
	r.t.Helper()
	r.Begin()
	r.told("Cluster first held:a held:b", "ClusterLoadAssignment first +a held:a", "Listener first held:l", "RouteConfiguration first +r held:r")
}

func (r *relaying) mustHaveSuppressed(want uint64) {
	r.t.Helper()
	if got := r.Stats().Suppressed; got != want {
		r.t.Errorf("%d resources were suppressed, want %d", got, want)
	}
}

// TestReconcile: an upstream that comes back and says the same is acknowledged at once, and Envoy hears nothing of it.
func TestReconcile(t *testing.T) {
	r, envoy := relayed(t)
	r.again()
	if r.Reconciled() {
		t.Error("reconciled before the upstream has said anything")
	}
	r.give(clusterType, edsCluster("a", "", "1"), "b=")
	r.give(endpointType, "a=1")
	r.give(listenerType, "l=1")
	r.told("Cluster ack n5", "ClusterLoadAssignment ack n6", "Listener ack n7")
	if r.Reconciled() {
		t.Error("reconciled before the upstream has said anything of routes")
	}
	r.give(routeURL, "r=1")
	r.told("RouteConfiguration ack n8")
	envoy.nothing()
	r.mustHaveSuppressed(5)
	if !r.Reconciled() {
		t.Error("not reconciled")
	}
	r.give(clusterType, "b=") // the second response is as the upstream wants it
	envoy.expect("Cluster +b")
	r.told("Cluster ack n9")
}

// TestReconcileSendsDifferences: what is new, changed or gone arrives, and of a type that is sent whole what is left out is gone.
func TestReconcileSendsDifferences(t *testing.T) {
	r, envoy := relayed(t)
	r.again()
	r.give(clusterType, edsCluster("a", "", "1"), "c=new")
	envoy.expect("Cluster +c -b")
	r.give(endpointType, "-a")
	envoy.expect("ClusterLoadAssignment -a")
	r.give(listenerType, "-l", "-unknown")
	envoy.expect("Listener -l")
	r.told("Cluster ack n5", "ClusterLoadAssignment ack n6", "Listener ack n7")
	r.Begin()
	r.told("Cluster first held:a held:c", "ClusterLoadAssignment first +a", "Listener first", "RouteConfiguration first +r held:r")
	r.give(endpointType, "-a") // Envoy was told
	r.told("ClusterLoadAssignment ack n8")
	envoy.nothing()
}

// TestReconcileSendsWhatEnvoyWaitsFor: endpoints after their cluster and routes after a listener, changed or not; and what Envoy
// has not taken.
func TestReconcileSendsWhatEnvoyWaitsFor(t *testing.T) {
	t.Run("endpoints", func(t *testing.T) {
		r, envoy := relayed(t)
		r.again()
		r.give(clusterType, edsCluster("a", "", "2"), "b=")
		envoy.expect("Cluster +a")
		r.give(endpointType, "a=1")
		envoy.expect("ClusterLoadAssignment +a")
		r.mustHaveSuppressed(1) // b: they were not sent for being late
	})
	t.Run("endpoints of before", func(t *testing.T) {
		r, envoy := relayed(t)
		r.give(clusterType, edsCluster("other", "a", "2"))
		envoy.expect("Cluster +other")
		r.told("Cluster ack n5")
		r.Begin()
		r.told("Cluster first held:a held:b held:other", "ClusterLoadAssignment first +a held:a", "Listener first held:l", "RouteConfiguration first +r held:r")
		r.give(endpointType, "a=1")
		envoy.expect("ClusterLoadAssignment +a")
		r.mustHaveSuppressed(0)
	})
	t.Run("routes", func(t *testing.T) {
		r, envoy := relayed(t)
		r.again()
		r.give(listenerType, "l=1", "m=1")
		envoy.expect("Listener +m")
		r.give(routeURL, "r=1")
		envoy.expect("RouteConfiguration +r")
	})
	t.Run("routes of a listener on its way", func(t *testing.T) {
		r, envoy := relayed(t)
		r.give(listenerType, "m=1")
		envoy.next()
		r.Begin()
		r.told("Cluster first held:a held:b", "ClusterLoadAssignment first +a held:a", "Listener first held:l held:m", "RouteConfiguration first +r held:r")
		r.give(routeURL, "r=1")
		envoy.expect("RouteConfiguration +r")
	})
	t.Run("refused", func(t *testing.T) {
		r, envoy := relayed(t)
		r.give(clusterType, "b=bad")
		envoy.nack(envoy.next(), "Error adding/updating cluster(s) b: bad lb")
		r.told("Cluster nack n5 Error adding/updating cluster(s) b: bad lb")
		r.again()
		r.give(clusterType, edsCluster("a", "", "1"), "b=")
		envoy.expect("Cluster +b")
	})
	t.Run("another version is on its way", func(t *testing.T) {
		r, envoy := relayed(t)
		r.give(clusterType, "b=2")
		r.again()
		r.give(clusterType, edsCluster("a", "", "1"), "b=")
		envoy.expect("Cluster +b")
		envoy.expect("Cluster +b")
	})
	t.Run("not answered", func(t *testing.T) {
		r, envoy := relayed(t)
		envoy.close()
		again := connect(t, r.path)
		again.subscribe(clusterType)
		again.next()
		r.again()
		r.give(clusterType, edsCluster("a", "", "1"), "b=")
		again.expect("Cluster +a +b")
		r.told("Cluster ack n5")
	})
}

// TestEndpointsOfChangedCluster: endpoints that do not follow their cluster are sent again.
func TestEndpointsOfChangedCluster(t *testing.T) {
	r, envoy := relayed(t)
	r.give(clusterType, edsCluster("a", "", "2"))
	envoy.expect("Cluster +a")
	envoy.expect("ClusterLoadAssignment +a")
	r.told("Cluster ack n5")
	envoy.nothing()
}

// TestReconcileOfAnotherStream: an Envoy that opens another stream says what it has, and that does not reach it again.
func TestReconcileOfAnotherStream(t *testing.T) {
	r, envoy := relayed(t)
	envoy.close()
	again := connect(t, r.path)
	again.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: endpointType, ResourceNamesSubscribe: []string{"a"},
		InitialResourceVersions: map[string]string{"a": wire.VersionText(NewResource("a", []byte("1")).version)}})
	again.subscribe(endpointType, "other")
	r.told("ClusterLoadAssignment +other")
	r.Begin()
	r.told("Cluster first held:a held:b", "ClusterLoadAssignment first +a +other held:a", "Listener first held:l", "RouteConfiguration first +r held:r")
	r.give(endpointType, "a=1", "other=1")
	again.expect("ClusterLoadAssignment +other")
}

// TestForeseen: the upstream is asked for endpoints and routes while Envoy reads what refers to them, and Envoy, which asks later, gets
// them at once; what it does not ask for by the time it serves nobody wants.
func TestForeseen(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	r.give(clusterType, edsCluster("a", "", "1"), edsCluster("b", "c", "1"), "d=")
	clusters := envoy.next()
	r.told("ClusterLoadAssignment first +a +c")
	r.give(endpointType, "a=1", "c=1")
	envoy.nothing()
	envoy.nack(clusters, "b: no")
	envoy.subscribe(endpointType, "a")
	envoy.expect("ClusterLoadAssignment +a")
	r.told("Cluster nack n1 b: no", "ClusterLoadAssignment ack n2")
	envoy.subscribe(listenerType)
	r.told("Listener first")
	r.give(listenerType, "l="+asksFor(t, "80"))
	listeners := envoy.next()
	r.told("RouteConfiguration first +80")
	r.give(routeURL, "80=1")
	envoy.nack(listeners, "l: no")
	r.told("Listener nack n3 l: no")
	if r.Answered(4) {
		t.Error("nobody has answered for the routes")
	}
	r.Forget()
	r.told("ClusterLoadAssignment -c", "RouteConfiguration -80", "RouteConfiguration ack n4")
	if !r.Answered(4) {
		t.Error("routes that Envoy does not ask for are waited for")
	}
	r.Begin()
	r.told("Cluster first", "ClusterLoadAssignment first +a held:a", "Listener first")
}

// TestForeseenLate: Envoy has asked for what it knew, and asks by itself for what comes.
func TestForeseenLate(t *testing.T) {
	r, envoy := relayed(t)
	r.give(clusterType, edsCluster("new", "", "1"))
	envoy.expect("Cluster +new")
	r.told("Cluster ack n5")
	r.quiet()
}
