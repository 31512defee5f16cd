package istiod

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// nameTable is a response with a name table of "host=address" in the registry External.
func nameTable(nonce string, hosts ...string) *discoveryv3.DeltaDiscoveryResponse {
	field := func(b []byte, number protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), value)
	}
	var b []byte
	for _, h := range hosts {
		host, addr, _ := strings.Cut(h, "=")
		b = field(b, 1, string(field(field(nil, 1, host), 2, string(field(field(nil, 1, addr), 2, "External")))))
	}
	return &discoveryv3.DeltaDiscoveryResponse{TypeUrl: namesType, Nonce: nonce, Resources: []*discoveryv3.Resource{{Resource: &anypb.Any{TypeUrl: namesType, Value: b}}}}
}

// cold is an agent whose Envoy has its first configuration.
func cold(t *testing.T) (*fake, *agent, *envoy, *fakeStream) {
	t.Helper()
	return coldWith(t, nil)
}

// coldWith is cold with an agent that change has changed.
func coldWith(t *testing.T, change func(*Istiod)) (*fake, *agent, *envoy, *fakeStream) {
	t.Helper()
	f := startFake(t)
	a := newAgent(t, f, change)
	e, s := a.first(f)
	return f, a, e, s
}

// first has Envoy get its first configuration.
func (a *agent) first(f *fake) (*envoy, *fakeStream) {
	a.t.Helper()
	e := a.envoy()
	e.asks(clusterType)
	s := f.stream()
	s.asked("Cluster node")
	s.give(clusterType, "a=1")
	e.gets("Cluster +a", "")
	s.asked("Cluster ack n1")
	e.asks(endpointType, "a")
	s.asked("ClusterLoadAssignment +a")
	s.give(endpointType, "a=1")
	e.gets("ClusterLoadAssignment +a", "")
	s.asked("ClusterLoadAssignment ack n2")
	e.asks(listenerType)
	s.asked("Listener", "NameTable")
	a.pending("config: waiting")
	s.give(listenerType, "virtualOutbound=1")
	e.gets("Listener +virtualOutbound", "")
	s.asked("Listener ack n3")
	return e, s
}

// TestColdStart: node on the first message, an ACK each, names after the listeners; ready once both are in force.
func TestColdStart(t *testing.T) {
	_, a, _, s := cold(t)
	if got := s.headers.Get("ClusterID"); len(got) != 1 || got[0] != "c1" {
		t.Errorf("the header ClusterID is %q", got)
	}
	if len(s.headers.Get("authorization")) > 0 {
		t.Error("a token was sent in clear")
	}
	a.pending("dns: waiting")
	s.send(nameTable("t1", "a.example=10.0.0.1"))
	s.asked("NameTable ack t1")
	a.answers("a.example=10.0.0.1")
	a.pending("ready")
}

// TestOutage: Envoy's stream stays, what it holds is told to the next istiod, in order, and what went meanwhile goes.
func TestOutage(t *testing.T) {
	f, a, e, s := cold(t)
	s.send(nameTable("t1", "a.example=10.0.0.1"))
	a.pending("ready")
	f.stop()
	<-s.gone
	e.asks(endpointType, "b") // while istiod is away
	f.start()
	again := f.stream()
	again.asked("Cluster node held:a", "ClusterLoadAssignment +a +b held:a", "Listener held:virtualOutbound", "NameTable")
	again.give(clusterType, "-a", "b=1")
	e.gets("Cluster +b -a", "")
	again.asked("Cluster ack n1")
	again.give(endpointType, "b=1")
	e.gets("ClusterLoadAssignment +b", "")
	again.asked("ClusterLoadAssignment ack n2")
	a.pending("ready")
}

// TestEnvoyAnew: istiod does not notice.
func TestEnvoyAnew(t *testing.T) {
	_, a, e, s := cold(t)
	e.close()
	again := a.envoy()
	again.asks(clusterType)
	again.gets("Cluster +a", "")
	again.asks(listenerType)
	again.gets("Listener +virtualOutbound", "")
	s.quiet()
}

// TestRefusal: istiod hears Envoy's words, and the pod is not ready without a capture listener.
func TestRefusal(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, nil)
	e := a.envoy()
	e.asks(listenerType)
	s := f.stream()
	s.asked("Listener node", "NameTable")
	s.give(listenerType, "virtualOutbound=1", "other=1")
	e.gets("Listener +virtualOutbound +other", "Error adding/updating listener(s) virtualOutbound: no such filter")
	if req := s.next(); request(req) != "Listener nack n1" || !strings.Contains(req.GetErrorDetail().GetMessage(), "no such filter") {
		t.Errorf("istiod hears %v", req)
	}
	a.pending("config: failed: listener \"virtualOutbound\" of istiod: Envoy refuses it: no such filter")
	s.give(listenerType, "virtualOutbound=2")
	e.gets("Listener +virtualOutbound", "")
	s.send(nameTable("t1"))
	a.pending("ready")
	page := httptest.NewRecorder()
	a.DebugPages()[debugPage].ServeHTTP(page, httptest.NewRequest(http.MethodGet, debugPage, nil))
	if !strings.Contains(page.Body.String(), `"connected": true`) {
		t.Errorf("the page says %s", page.Body)
	}
}

// TestGarbage: nothing of it reaches Envoy, and it is never answered twice.
func TestGarbage(t *testing.T) {
	_, a, e, s := cold(t)
	s.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/istio.security.Authorization", Nonce: "g1"})
	s.asked("Authorization nack g1")
	s.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "g2", Resources: []*discoveryv3.Resource{{Name: "x"}}})
	s.asked("Cluster nack g2")
	s.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: namesType, Nonce: "g3", Resources: []*discoveryv3.Resource{{Resource: &anypb.Any{Value: []byte{0xff}}}}})
	s.asked("NameTable nack g3")
	for range 2 {
		s.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "g4", Resources: []*discoveryv3.Resource{{Name: "b", Resource: &anypb.Any{TypeUrl: clusterType}}}})
	}
	s.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType})
	e.gets("Cluster +b", "")
	s.asked("Cluster ack g4")
	s.quiet()
	for _, sample := range a.Samples() {
		if sample.Name == "xds_upstream_rejects_total" && sample.Value != 5 {
			t.Errorf("%v responses are counted as refused, want 5", sample.Value)
		}
	}
}

// TestTooLarge: the stream is closed, Envoy's stays as it is.
func TestTooLarge(t *testing.T) {
	f, a, e, s := cold(t)
	s.give(clusterType, "large="+strings.Repeat("x", 2<<20))
	again := f.stream()
	again.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	if why := a.now().LastError; why != "" && !strings.Contains(why, "larger than max") {
		t.Errorf("the reason is %q", why)
	}
	again.give(clusterType, "a=1", "b=1")
	e.gets("Cluster +b", "")
}

// TestRefused: istiod does not want this agent, which the readiness says.
func TestRefused(t *testing.T) {
	f := startFake(t)
	asked := make(chan struct{}, 16)
	f.refuse = func() error { asked <- struct{}{}; return status.Error(codes.Unauthenticated, "no valid token") }
	a := newAgent(t, f, nil)
	a.envoy().asks(clusterType)
	<-asked
	a.pending("no valid token")
	f.mu.Lock()
	f.refuse = nil
	f.mu.Unlock()
	f.stream().asked("Cluster node")
}

// TestOtherTypes: of what is not Envoy's istiod is not asked, whose error would end the stream.
func TestOtherTypes(t *testing.T) {
	_, _, e, s := cold(t)
	e.asks("type.googleapis.com/istio.networking.v1.ServiceEntry")
	s.quiet()
}

// TestBundle: the roots that the mesh adds are asked for last, once a stream, and passed on; a bad one is no reason to refuse the rest,
// what is no message is.
func TestBundle(t *testing.T) {
	f := startFake(t)
	got := make(chan []string, 8)
	a := newAgent(t, f, func(i *Istiod) {
		i.c.Bundle = func(roots []string) error {
			got <- roots
			if slices.Contains(roots, "bad") {
				return errors.New("bad")
			}
			return nil
		}
	})
	a.envoy().asks(listenerType)
	s := f.stream()
	s.asked("Listener node", "NameTable", "ProxyConfig")
	give := func(nonce string, value []byte) {
		s.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: bundleType, Nonce: nonce, Resources: []*discoveryv3.Resource{{Resource: &anypb.Any{TypeUrl: bundleType, Value: value}}}})
	}
	for nonce, roots := range map[string][]string{"b1": {"one", "two"}, "b2": {"bad", "two"}} {
		value, err := proto.Marshal(&meshv1alpha1.ProxyConfig{CaCertificatesPem: roots})
		if err != nil {
			t.Fatal(err)
		}
		give(nonce, value)
		s.asked("ProxyConfig ack " + nonce)
		if told := <-got; !slices.Equal(told, roots) {
			t.Errorf("told %q, want %q", told, roots)
		}
	}
	give("b3", []byte{0xff})
	s.asked("ProxyConfig nack b3")
	f.stop()
	<-s.gone
	f.start()
	f.stream().asked("Listener node", "NameTable", "ProxyConfig")
}

// TestPublishEnds leaves Envoy with what it has, and begins anew when it is called again.
func TestPublishEnds(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, nil)
	a.envoy().asks(clusterType)
	s := f.stream()
	s.asked("Cluster node")
	a.stop()
	<-s.gone
	if a.now().Connected {
		t.Error("the stream is open")
	}
}

// TestCallsInAMinute: an istiod that is away is called 12 times in its first minute at most; that it is called more often is left to a
// chance of one in 100,000.
func TestCallsInAMinute(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for outage := range 10_000 {
		b := &backoff{random: func(n time.Duration) time.Duration { return time.Duration(random.Int64N(int64(n))) }}
		calls := 0
		for at := b.after(errEnded, 0); at < time.Minute; at += b.after(errEnded, 0) {
			calls++
		}
		if calls > 12 {
			t.Fatalf("%d calls in the first minute of outage %d", calls, outage)
		}
	}
}

// TestBackoff: full jitter that doubles to half a minute; longer for who is not wanted; none for a stream that has lived.
func TestBackoff(t *testing.T) {
	b := &backoff{random: func(n time.Duration) time.Duration { return n }}
	unavailable := status.Error(codes.Unavailable, "gone")
	for i, want := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		if got := b.after(unavailable, 0); got != want {
			t.Errorf("failure %d: %v, want %v", i, got, want)
		}
	}
	for range 2 {
		if got := b.after(errEnded, longLived); got != 500*time.Millisecond {
			t.Errorf("after a long life: %v", got)
		}
	}
	b.random = func(time.Duration) time.Duration { return 0 }
	for _, c := range []codes.Code{codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument} {
		if got := b.after(errors.Join(errors.New("x"), status.Error(c, "no")), 0); got != refusedFirst {
			t.Errorf("%v: %v, want %v", c, got, refusedFirst)
		}
	}
}
