package istiod

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// early has an agent know who its Envoy will be.
func early(i *Istiod) { i.c.Node = &corev3.Node{Id: "sidecar~1.1.1.1~app.default~x"} }

// TestBeforeEnvoy: istiod is asked for what every Envoy asks for while this one starts, which gets it at once, and istiod one answer.
func TestBeforeEnvoy(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, early)
	s := f.stream()
	s.asked("Cluster node", "Listener", "NameTable")
	s.give(clusterType, "a="+ofEDS(t))
	s.give(listenerType, "virtualOutbound=1")
	s.quiet()
	e := a.envoy()
	e.asks(clusterType)
	s.asked("ClusterLoadAssignment +a") // while Envoy reads its clusters
	s.give(endpointType, "a=1")
	e.gets("Cluster +a", "")
	s.asked("Cluster ack n1")
	e.asks(endpointType, "a")
	e.gets("ClusterLoadAssignment +a", "")
	s.asked("ClusterLoadAssignment ack n3")
	e.asks(listenerType)
	e.gets("Listener +virtualOutbound", "")
	s.asked("Listener ack n2")
	s.send(nameTable("t1", "v.example=240.240.0.1"))
	s.asked("NameTable ack t1")
	a.pending("ready")
	s.quiet()
}

// ofEDS is a cluster that gets its endpoints by its own name.
func ofEDS(t *testing.T) string {
	t.Helper()
	b, err := proto.Marshal(&clusterv3.Cluster{EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBeforeEnvoyButLate: what istiod has not said by then comes as ever.
func TestBeforeEnvoyButLate(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, early)
	s := f.stream()
	s.asked("Cluster node", "Listener", "NameTable")
	e := a.envoy()
	e.asks(clusterType)
	s.quiet()
	s.give(clusterType, "a=1")
	e.gets("Cluster +a", "")
	s.asked("Cluster ack n1")
	s.end <- nil
	s = f.stream()
	s.asked("Cluster node held:a", "Listener", "NameTable")
}

// TestBeforeEnvoyLacks: the extensions that Envoy lacks are named once it is there.
func TestBeforeEnvoyLacks(t *testing.T) {
	f := startFake(t)
	var mu sync.Mutex
	var log bytes.Buffer
	a := newAgent(t, f, func(i *Istiod) {
		early(i)
		i.log = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))
	})
	s := f.stream()
	s.asked("Cluster node", "Listener", "NameTable")
	body := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "type.googleapis.com/istio.Own")
	s.give(clusterType, "a="+string(body))
	s.quiet()
	e := a.envoy()
	node := proto.Clone(a.c.Node).(*corev3.Node)
	node.Extensions = []*corev3.Extension{{TypeUrls: []string{"envoy.Some"}}}
	e.say(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, Node: node})
	e.gets("Cluster +a", "")
	s.asked("Cluster ack n1")
	for late := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		told := strings.Contains(log.String(), "extensions=istio.Own")
		mu.Unlock()
		if told {
			break
		}
		if time.Now().After(late) {
			t.Fatal("nobody says that Envoy lacks an extension")
		}
	}
}

// TestBeforeEnvoyAway: what was kept is Envoy's as soon as it is there, if istiod could not be reached before.
func TestBeforeEnvoyAway(t *testing.T) {
	f := startFake(t)
	path := keptUnder(t, f)
	f.stop()
	b := newAgent(t, f, func(i *Istiod) {
		keeping(path)(i)
		early(i)
	})
	for late := time.Now().Add(deadline); b.failures.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("istiod was not called")
		}
	}
	b.inherits()
	b.pending("ready")
}
