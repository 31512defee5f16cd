package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/pkg/xds/internal/wire"
)

// TestOrder: clusters come, then listeners, then clusters go, and no step begins
// before the one before it was acknowledged.
func TestOrder(t *testing.T) {
	s, c := start(t, pair{list("b", "a"), list("l2", "l1")})
	version := s.Set(pair{list("a=new", "c"), list("l1=new", "l3")}.snapshot())
	clusters := c.next()
	if got := describe(clusters); got != "Cluster +a +c" {
		t.Fatal(got)
	}
	c.nothing()
	if why := notApplied(t, s, version); !strings.Contains(why, "clusters") {
		t.Error(why)
	}
	c.ack(clusters)
	listeners := c.next()
	if got := describe(listeners); got != "Listener +l1 +l3 -l2" {
		t.Fatal(got)
	}
	c.nothing()
	if why := notApplied(t, s, version); !strings.Contains(why, "listeners") {
		t.Error(why)
	}
	c.ack(listeners)
	c.expect("Cluster -b")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	c.nothing()
}

// TestTypes serves three types, of which none is a cluster: what is new comes in their order, what goes in
// the opposite one, and of a type that is not among them there is nothing.
func TestTypes(t *testing.T) {
	const a, b, c, other = "x/example.A", "x/example.B", "x/example.C", "x/example.Other"
	s, path := serveTypes(t, []string{a, b, c})
	s.Set(Snapshot{a: list("a1"), b: list("b1"), c: list("c1"), other: list("o1")})
	envoy := connect(t, path)
	envoy.subscribe(other)
	envoy.expect("Other")
	for _, url := range []string{a, b, c} {
		envoy.subscribe(url)
		kind := kindOf(url)
		envoy.expect(kind + " +" + strings.ToLower(kind) + "1")
	}
	version := s.Set(Snapshot{a: list("a2"), b: list("b2"), c: list("c2")})
	for _, want := range []string{"A +a2", "B +b2", "C +c2 -c1", "B -b1", "A -a1"} {
		resp := envoy.next()
		if got := describe(resp); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		envoy.nothing()
		envoy.ack(resp)
	}
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestTransitions: A, A again, B, empty; the whole response sequence of each.
func TestTransitions(t *testing.T) {
	a := pair{list("a", "b"), list("l")}
	s, c := start(t, a)
	if err := applied(t, s, s.Set(a.snapshot())); err != nil {
		t.Error(err)
	}
	c.nothing()
	s.Set(pair{list("b", "c"), list("l")}.snapshot())
	c.expect("Cluster +c")
	c.expect("Cluster -a")
	version := s.Set(pair{}.snapshot())
	c.expect("Listener -l")
	c.expect("Cluster -b -c")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestBodies: the Any holds the very bytes and the type.
func TestBodies(t *testing.T) {
	s, path := startServer(t)
	s.Set(pair{Clusters: list("a=\x00\xffnot protobuf")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType)
	resp := c.expect("Cluster +a")
	if resp.SystemVersionInfo != "1" {
		t.Errorf("the version is %q", resp.SystemVersionInfo)
	}
	r := resp.Resources[0]
	if string(r.Resource.Value) != "\x00\xffnot protobuf" || r.Resource.TypeUrl != clusterType || r.Version == "" {
		t.Errorf("got %v", r)
	}
}

// TestSendFirst: what hands connections on comes before what takes them, and so is stopped before it.
func TestSendFirst(t *testing.T) {
	s, c := start(t, pair{}, "z2", "z1")
	s.Set(pair{Listeners: list("z1", "b", "z2", "a")}.snapshot())
	c.expect("Listener +z1 +z2 +a +b")
	s.Set(pair{Listeners: list("z1", "b=new", "z2=new", "a", "c")}.snapshot())
	c.expect("Listener +z2 +b +c")
}

func TestNothingBeforeFirstSet(t *testing.T) {
	s, path := startServer(t)
	c := connect(t, path)
	c.settle("a type that is not served") // of that there is nothing, whatever comes
	c.subscribe(clusterType)
	c.nothing()
	if !connected(s) {
		t.Error("not connected")
	}
	s.Set(pair{}.snapshot())
	c.expect("Cluster") // empty, but an answer
	c.subscribe(listenerType)
	c.expect("Listener")
}

func TestCoalesces(t *testing.T) {
	s, c := start(t, pair{list("a"), list("l")})
	s.Set(pair{list("a=0"), list("l")}.snapshot())
	first := c.next() // not yet acknowledged: the rest queues up behind it
	var version uint64
	for i := range 100 {
		version = s.Set(pair{list(fmt.Sprintf("a=%d", i+1)), list("l")}.snapshot())
	}
	c.ack(first)
	last := c.expect("Cluster +a")
	if got := string(last.Resources[0].Resource.Value); got != "100" {
		t.Errorf("body is %q, want that of the last Set", got)
	}
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	c.nothing()
}

// TestNeverAcks: such a client gets one step and no more, and hurts no other.
func TestNeverAcks(t *testing.T) {
	s, path := startServer(t)
	s.Set(pair{Clusters: list("a")}.snapshot())
	deaf := connect(t, path)
	deaf.subscribe(clusterType)
	deaf.next()
	var version uint64
	for i := range 10 {
		version = s.Set(pair{Clusters: list(fmt.Sprintf("a=%d", i))}.snapshot())
	}
	deaf.nothing()
	if why := notApplied(t, s, version); !strings.Contains(why, "not answered 1 responses") {
		t.Error(why)
	}
	good := connect(t, path)
	good.subscribe(clusterType)
	good.expect("Cluster +a")
	good.subscribe(listenerType)
	good.expect("Listener")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestReconnect: a new stream says what Envoy has, and gets the rest, in order.
func TestReconnect(t *testing.T) {
	s, path := startServer(t)
	snap := pair{list("a", "b=2"), list("l")}
	version := s.Set(snap.snapshot())
	c := connect(t, path)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, InitialResourceVersions: map[string]string{
		"a":     wire.VersionText(snap.Clusters[0].version), // has it
		"b":     "old",                                      // has another
		"stale": "1",                                        // is to go
	}})
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: listenerType, ResourceNamesSubscribe: []string{"*"},
		InitialResourceVersions: map[string]string{"l": wire.VersionText(snap.Listeners[0].version), "old": "1"},
	})
	c.expect("Cluster +b")
	c.expect("Listener -old")
	c.expect("Cluster -stale")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	c.nothing()
}

// TestDisconnect: what a gone Envoy had counts for nothing.
func TestDisconnect(t *testing.T) {
	s, c := start(t, pair{})
	version := s.Set(pair{}.snapshot())
	if err := applied(t, s, version); err != nil {
		t.Fatal(err)
	}
	is, changed := s.Connected()
	c.close()
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("who waits for a change is not told")
	}
	if !is || connected(s) {
		t.Fatalf("connected before: %v, after: %v", is, connected(s))
	}
	if why := notApplied(t, s, version); !strings.Contains(why, "no Envoy is connected") {
		t.Error(why)
	}
}

func TestExplicitNames(t *testing.T) {
	s, path := startServer(t)
	s.Set(pair{Clusters: list("a", "b", "c")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType, "a", "missing")
	c.subscribe(listenerType)
	c.expect("Cluster +a")
	c.expect("Listener")
	c.expect("Cluster -missing")
	// Asked for again, it is sent again; b is new.
	c.subscribe(clusterType, "a", "b")
	c.expect("Cluster +a +b")
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, ResourceNamesUnsubscribe: []string{"b"}})
	c.settle("one")
	s.Set(pair{Clusters: list("a=2", "b=2", "missing")}.snapshot())
	c.expect("Cluster +a +missing")
	// The wildcard brings the rest; without it only what was named is left.
	c.subscribe(clusterType, "*")
	c.expect("Cluster +b")
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, ResourceNamesUnsubscribe: []string{"*"}})
	c.settle("two")
	s.Set(pair{Clusters: list("a=3", "b=3", "missing")}.snapshot())
	c.expect("Cluster +a")
	c.nothing()
}

// TestUnsubscribeUnderWildcard: the protocol wants the resource sent again.
func TestUnsubscribeUnderWildcard(t *testing.T) {
	_, c := start(t, pair{Clusters: list("a", "b")})
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, ResourceNamesUnsubscribe: []string{"a"}})
	c.expect("Cluster +a")
	c.nothing()
}

// TestChunks: a large state goes in responses of bounded size, all in flight at once.
func TestChunks(t *testing.T) {
	const n = 20
	body := strings.Repeat("x", maxResponse/4)
	var clusters []*Stored
	for i := range n {
		clusters = append(clusters, NewStored(fmt.Sprintf("c%02d", i), []byte(body)))
	}
	clusters = append(clusters, NewStored("huge", []byte(strings.Repeat("x", 3*maxResponse))))
	s, path := startServer(t)
	version := s.Set(pair{Clusters: clusters}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType)
	var got []string
	var unanswered []*discoveryv3.DeltaDiscoveryResponse
	for len(got) < len(clusters) {
		resp := c.next()
		size := 0
		for _, r := range resp.Resources {
			size += len(r.Resource.Value)
			got = append(got, r.Name)
		}
		if size > maxResponse && len(resp.Resources) > 1 {
			t.Errorf("a response has %d resources of %d bytes", len(resp.Resources), size)
		}
		unanswered = append(unanswered, resp)
	}
	if !slices.IsSorted(got) || len(slices.Compact(got)) != len(clusters) {
		t.Errorf("got %q", got)
	}
	c.subscribe(listenerType)
	slices.Reverse(unanswered) // the order of ACKs means nothing
	for i, resp := range unanswered {
		if i == len(unanswered)-1 {
			c.nothing()
		}
		c.ack(resp)
	}
	c.expect("Listener")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestRemovedGoesLast: Envoy has what is new, whose responses are several, before anything goes.
func TestRemovedGoesLast(t *testing.T) {
	s, c := start(t, pair{nil, list("old")})
	large := strings.Repeat("x", maxResponse/2)
	s.Set(pair{nil, list("a="+large, "b="+large)}.snapshot())
	for _, want := range []string{"Listener +a", "Listener +b -old"} {
		c.expect(want)
	}
}

// TestStats counts four responses, of which Envoy refuses one.
func TestStats(t *testing.T) {
	s, c := start(t, pair{list("a", "b"), nil}) // two responses
	version := s.Set(pair{list("a=2"), nil}.snapshot())
	c.nack(c.next(), "Error adding/updating cluster(s) a: no")
	c.expect("Cluster -b")
	refusedIn(t, applied(t, s, version))
	want := Stats{Streams: 1, Requests: 6, Responses: 4, Resources: 4, Pushes: 2, NACKs: 1}
	if got := s.Stats(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestOtherTypes: Envoy asks for types that are not served; it hears that there is
// nothing, once, and the stream goes on.
func TestOtherTypes(t *testing.T) {
	s, c := start(t, pair{})
	const secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	c.subscribe(secret, "default")
	resp := c.next()
	if got := describe(resp); got != "Secret -default" {
		t.Error(got)
	}
	c.nack(resp, "I want it")
	c.subscribe("no type at all")
	if resp := c.next(); resp.TypeUrl != "no type at all" {
		t.Error(resp)
	}
	c.nothing()
	version := s.Set(pair{Clusters: list("a")}.snapshot())
	c.expect("Cluster +a")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestStrayAnswers: nonces that mean nothing change nothing.
func TestStrayAnswers(t *testing.T) {
	s, c := start(t, pair{})
	version := s.Set(pair{Clusters: list("a")}.snapshot())
	resp := c.next()
	c.nack(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "stray"}, "no")
	c.nack(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: listenerType, Nonce: resp.Nonce}, "the type of another")
	c.nothing()
	c.ack(resp)
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	c.ack(resp) // twice
	if stats := s.Stats(); stats.NACKs != 0 {
		t.Errorf("%d NACKs, want 0", stats.NACKs)
	}
}

// TestNewerWhileWaiting: until Envoy asks for listeners a newer state takes over.
func TestNewerWhileWaiting(t *testing.T) {
	s, path := startServer(t)
	s.Set(pair{list("a"), list("l=1")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType)
	c.expect("Cluster +a")
	version := s.Set(pair{list("a", "b"), list("l=2")}.snapshot())
	c.expect("Cluster +b")
	if why := notApplied(t, s, version); !strings.Contains(why, "has not asked for listeners") {
		t.Error(why)
	}
	c.subscribe(listenerType)
	if resp := c.expect("Listener +l"); string(resp.Resources[0].Resource.Value) != "2" {
		t.Errorf("got %v", resp)
	}
}

func TestDuplicatesAreLeftOut(t *testing.T) {
	s, path := startServer(t)
	s.Set(pair{Clusters: list("a=first", "b", "a=second")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType)
	if resp := c.expect("Cluster +a +b"); string(resp.Resources[0].Resource.Value) != "first" {
		t.Errorf("got %v", resp)
	}
}

// TestSnapshotStaysTheCallers: whoever gives it may go on to use and change its slices.
func TestSnapshotStaysTheCallers(t *testing.T) {
	s, path := startServer(t)
	given := list("b", "a", "c")
	s.Set(pair{Clusters: given}.snapshot())
	if got := describeNames(given); got != "b a c" {
		t.Errorf("it has become %q", got)
	}
	given[0] = list("d")[0]
	c := connect(t, path)
	c.subscribe(clusterType)
	c.expect("Cluster +a +b +c")
}

func describeNames(resources []*Stored) string {
	var names []string
	for _, r := range resources {
		names = append(names, r.Name)
	}
	return strings.Join(names, " ")
}

// TestWhatIsLeftOutIsLogged, for Envoy will not miss it.
func TestWhatIsLeftOutIsLogged(t *testing.T) {
	const routeType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	for name, tc := range map[string]struct {
		snapshot Snapshot
		want     string
	}{
		"nothing":      {pair{list("a"), list("a")}.snapshot(), ""}, // a name of two types
		"a second one": {pair{list("dup", "b", "dup"), nil}.snapshot(), "dup"},
		"another type": {Snapshot{routeType: list("r")}, routeType},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var log strings.Builder
			New(l, order, slog.New(slog.NewTextHandler(&log, nil))).Set(tc.snapshot)
			if lines := strings.Count(log.String(), "left out"); !strings.Contains(log.String(), tc.want) || (lines == 1) != (tc.want != "") {
				t.Errorf("logged %q, want a line with %q", log.String(), tc.want)
			}
		})
	}
}

// TestAppliedAfterStop: nobody waits for a server that is gone.
func TestAppliedAfterStop(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(l, order, slog.New(slog.NewTextHandler(io.Discard, nil)))
	_, changed, _, _ := s.look(1) // as who waits already
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	select {
	case <-changed:
	default:
		t.Error("who waits is not woken")
	}
	if err := s.Applied(t.Context(), 1); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// FuzzVersion: a version comes back from Envoy as it was given, and anything else is
// taken for unknown or for a version, never for a fault.
func FuzzVersion(f *testing.F) {
	f.Add(uint64(1), "ff")
	f.Fuzz(func(t *testing.T, v uint64, s string) {
		if got := wire.ParseVersion(wire.VersionText(v)); got != v {
			t.Errorf("%d came back as %d", v, got)
		}
		wire.ParseVersion(s)
	})
}

// TestEnd closes streams in good order, and each that an Envoy opens afterwards: it says nothing of those.
func TestEnd(t *testing.T) {
	s, path := startServer(t)
	c := connect(t, path)
	s.End()
	s.End()
	for range 3 {
		if _, ok := <-c.responses; ok {
			t.Fatal("a response after the end")
		}
		if c.ended != io.EOF { // as a client sees the gRPC status OK
			t.Errorf("the stream ends with %v, want it closed in good order", c.ended)
		}
		c = connect(t, path)
	}
}
