package xds

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

const endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

// relaying is a relay with an upstream that the test plays.
type relaying struct {
	t *testing.T
	*Relay
	path   string
	nonces int
}

func startRelay(t *testing.T) *relaying {
	t.Helper()
	r := makeRelay(t, func(*Relay) {})
	r.Begin()
	return r
}

// makeRelay runs a relay without an upstream, after change.
func makeRelay(t *testing.T, change func(*Relay)) *relaying {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xds.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r := &relaying{t: t, Relay: NewRelay(l, slog.New(slog.NewTextHandler(io.Discard, nil))), path: path}
	change(r.Relay)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// give is a response of the upstream: "name=body" is a resource, "-name" one that is gone.
func (r *relaying) give(url string, specs ...string) (nonce string) {
	r.t.Helper()
	r.nonces++
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Nonce: fmt.Sprint("n", r.nonces)}
	for _, spec := range specs {
		if gone, is := strings.CutPrefix(spec, "-"); is {
			resp.RemovedResources = append(resp.RemovedResources, gone)
			continue
		}
		name, body, _ := strings.Cut(spec, "=")
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: url, Value: []byte(body)}})
	}
	in, err := Read(resp)
	if err == nil {
		err = r.Give(in)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Nonce
}

// told waits until the upstream was told all of want, in the order of the types.
func (r *relaying) told(want ...string) {
	r.t.Helper()
	var got []string
	deadline := time.After(patience)
	for len(got) < len(want) {
		for _, n := range r.Take() {
			got = append(got, news(n)...)
		}
		slices.Sort(got)
		if len(got) >= len(want) {
			break
		}
		select {
		case <-r.Changed():
		case <-deadline:
			r.t.Fatalf("the upstream was told %q, want %q", got, want)
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.t.Fatalf("the upstream was told %q, want %q", got, want)
	}
}

// news is "Cluster first +a -b held:c" for what is asked for, and "Cluster ack n1" or "Cluster nack n1 words".
func news(n News) (all []string) {
	kind := kindOf(n.Type)
	if n.First || len(n.Subscribe)+len(n.Unsubscribe) > 0 {
		words := []string{kind}
		if n.First {
			words = append(words, "first")
		}
		for _, name := range n.Subscribe {
			words = append(words, "+"+name)
		}
		for _, name := range n.Unsubscribe {
			words = append(words, "-"+name)
		}
		var held []string
		for name := range n.Held {
			held = append(held, "held:"+name)
		}
		slices.Sort(held)
		all = append(all, strings.Join(append(words, held...), " "))
	}
	for _, a := range n.Answers {
		if a.Refusal == "" {
			all = append(all, kind+" ack "+a.Nonce)
		} else {
			all = append(all, kind+" nack "+a.Nonce+" "+a.Refusal)
		}
	}
	return all
}

// quiet says that the upstream is told nothing.
func (r *relaying) quiet() {
	r.t.Helper()
	time.Sleep(moment)
	for _, n := range r.Take() {
		r.t.Fatalf("the upstream was told %q, want nothing", news(n))
	}
}

// TestRelayPassesOn: one response in, one out, with its bytes; and the upstream hears of it once Envoy has answered.
func TestRelayPassesOn(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, Node: &corev3.Node{Id: "sidecar~x"}})
	r.told("Cluster first")
	if r.Node().GetId() != "sidecar~x" {
		t.Errorf("the node is %v", r.Node())
	}
	nonce := r.give(clusterType, "b=1", "a=2")
	resp := envoy.next()
	if got := describe(resp); got != "Cluster +b +a" || string(resp.Resources[0].Resource.Value) != "1" {
		t.Fatalf("Envoy got %q: %v", got, resp.Resources)
	}
	if resp.Nonce == nonce {
		t.Error("Envoy got the upstream's nonce")
	}
	r.quiet()
	if r.Answered(r.Given()) {
		t.Error("Envoy has not answered")
	}
	envoy.ack(resp)
	r.told("Cluster ack " + nonce)
	if !r.Answered(r.Given()) {
		t.Error("Envoy has answered")
	}
	envoy.ack(resp) // a second time is nobody's answer
	r.quiet()
	nonce = r.give(clusterType, "-a", "c=3")
	envoy.expect("Cluster +c -a")
	r.told("Cluster ack " + nonce)
}

// TestRelayRefusal: the upstream hears Envoy's words; an Envoy that starts anew gets what was taken last.
func TestRelayRefusal(t *testing.T) {
	const blames = "Error adding/updating cluster(s) a: bad lb"
	for name, tc := range map[string]struct{ message, restarted, lacking string }{
		"one by name": {blames, "Cluster +a=old +b=new", "x"},
		"all":         {"no such field", "Cluster +a=old +b=old", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := startRelay(t)
			envoy := connect(t, r.path)
			envoy.subscribe(clusterType)
			r.told("Cluster first")
			nonce := r.give(clusterType, "a=old", "b=old")
			envoy.expect("Cluster +a +b")
			r.told("Cluster ack " + nonce)
			nonce = r.give(clusterType, "a=new", "b=new", "c=new")
			envoy.nack(envoy.next(), tc.message+", c: bad lb")
			r.told("Cluster nack " + nonce + " " + tc.message + ", c: bad lb")
			if s := r.Status()[clusterType]; !slices.Equal(s.Lacking, []string{"c"}) || s.Refused["c"] == "" {
				t.Errorf("status is %+v", s)
			}
			envoy.close()
			again := connect(t, r.path)
			again.subscribe(clusterType)
			resp := again.next()
			got := []string{"Cluster"}
			for _, m := range resp.Resources {
				got = append(got, "+"+m.Name+"="+string(m.Resource.Value))
			}
			if strings.Join(got, " ") != tc.restarted {
				t.Errorf("an Envoy that starts anew gets %q, want %q", got, tc.restarted)
			}
		})
	}
}

// TestRelayParts: of extensions each comes to Envoy in a response of its own, so that a bad one takes nothing from the others; the upstream, which
// has sent one response, hears of all of it once.
func TestRelayParts(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(extensionURL, "a", "b", "c")
	r.told("TypedExtensionConfig first +a +b +c")
	nonce := r.give(extensionURL, "a=1", "b=1", "-c")
	bad := envoy.next()
	if got := describe(bad); got != "TypedExtensionConfig +a" {
		t.Fatalf("Envoy got %q", got)
	}
	envoy.nack(bad, "no such module")
	r.quiet()
	envoy.expect("TypedExtensionConfig +b -c")
	r.told("TypedExtensionConfig nack " + nonce + " no such module")
	if s := r.Status()[extensionURL]; !slices.Equal(s.Lacking, []string{"a"}) || len(s.Refused) != 1 || s.Held != 1 {
		t.Errorf("status is %+v", s)
	}
	nonce = r.give(extensionURL, "a=2", "b=2")
	envoy.expect("TypedExtensionConfig +a")
	envoy.expect("TypedExtensionConfig +b")
	r.told("TypedExtensionConfig ack " + nonce)
}

// TestRelayServesAnEnvoyAnew: the upstream notices nothing of an Envoy that starts again, and Envoy nothing of an upstream
// that is away.
func TestRelayServesAnEnvoyAnew(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	envoy.subscribe(endpointType, "a", "b")
	r.told("Cluster first", "ClusterLoadAssignment first +a +b")
	r.give(clusterType, "a=1", "b=1")
	r.give(endpointType, "a=1", "-b")
	envoy.expect("Cluster +a +b")
	envoy.expect("ClusterLoadAssignment +a -b")
	r.told("Cluster ack n1", "ClusterLoadAssignment ack n2")
	envoy.close()

	again := connect(t, r.path)
	again.subscribe(clusterType)
	again.expect("Cluster +a +b")
	again.subscribe(endpointType, "a")
	again.expect("ClusterLoadAssignment +a")
	again.subscribe(endpointType, "b")
	again.expect("ClusterLoadAssignment -b")
	again.subscribe(endpointType, "c") // that is new
	r.told("ClusterLoadAssignment +c")
	again.subscribe(endpointType, "a") // again: it may have been dropped
	again.expect("ClusterLoadAssignment +a")
	r.quiet()
}

// TestRelayBegin: a new upstream hears of every name that Envoy has, and nothing of what another one gave.
func TestRelayBegin(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	envoy.subscribe(endpointType, "a")
	r.told("Cluster first", "ClusterLoadAssignment first +a")
	r.give(clusterType, "a=1", "b=1")
	resp := envoy.next()
	r.Begin()
	r.told("Cluster first held:a held:b", "ClusterLoadAssignment first +a")
	envoy.ack(resp)
	r.quiet()
	r.give(clusterType, "a=1", "-b")
	envoy.expect("Cluster -b")
	r.told("Cluster ack n2")
	r.Begin()
	r.told("Cluster first held:a", "ClusterLoadAssignment first +a")
}

// TestRelayUnsubscribe: what nobody asks for is forgotten, and asked for anew where somebody wants it again.
func TestRelayUnsubscribe(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(endpointType, "a", "b")
	r.told("ClusterLoadAssignment first +a +b")
	r.give(endpointType, "a=1", "b=1")
	envoy.expect("ClusterLoadAssignment +a +b")
	r.told("ClusterLoadAssignment ack n1")
	envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: endpointType, ResourceNamesUnsubscribe: []string{"a"}})
	r.told("ClusterLoadAssignment -a")
	envoy.subscribe(endpointType, "a")
	r.told("ClusterLoadAssignment +a")
	envoy.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: endpointType, ResourceNamesUnsubscribe: []string{"a", "b"}})
	envoy.subscribe(endpointType, "b") // before the upstream is told
	envoy.expect("ClusterLoadAssignment +b")
	r.told("ClusterLoadAssignment -a")
	r.Begin()
	r.told("ClusterLoadAssignment first +b held:b")
}

// TestRelayWithoutEnvoy: what comes while no Envoy is there is for the next one, whose answer the upstream gets.
func TestRelayWithoutEnvoy(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	r.give(clusterType, "a=1")
	envoy.next()
	envoy.close()
	for r.connected() {
		<-r.Changed()
	}
	r.give(clusterType, "b=1")
	r.quiet()
	if r.Answered(1) || !r.Room() {
		t.Error("nobody has answered, and there is room")
	}
	again := connect(t, r.path)
	again.subscribe(clusterType)
	again.expect("Cluster +a +b")
	r.told("Cluster ack n1", "Cluster ack n2")
}

// TestRelayRefusesWhatIsNoResponse: Envoy gets nothing of it.
func TestRelayRefusesWhatIsNoResponse(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	cluster := func(m *discoveryv3.Resource) *discoveryv3.DeltaDiscoveryResponse {
		return &discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "x", Resources: []*discoveryv3.Resource{m}}
	}
	for name, resp := range map[string]*discoveryv3.DeltaDiscoveryResponse{
		"not asked for": {TypeUrl: listenerType, Nonce: "x"},
		"no name":       cluster(&discoveryv3.Resource{Resource: &anypb.Any{TypeUrl: clusterType}}),
		"no body":       cluster(&discoveryv3.Resource{Name: "a"}),
		"another type":  cluster(&discoveryv3.Resource{Name: "a", Resource: &anypb.Any{TypeUrl: listenerType}}),
	} {
		in, err := Read(resp)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Give(in); err == nil {
			t.Errorf("%s: it was passed on", name)
		}
	}
	envoy.nothing()
	r.give(clusterType)
	envoy.expect("Cluster")
	r.told("Cluster ack n1")
}

// TestRelayBackPressure: an Envoy that does not read holds up what the upstream sends, and not what it is told.
func TestRelayBackPressure(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	given := 0
	for r.Room() { // the client takes one, its transport some more
		r.give(clusterType, "a="+strings.Repeat(fmt.Sprint(given%10), 1<<20))
		given++
		time.Sleep(time.Millisecond)
		if given > 200 {
			t.Fatal("there always is room")
		}
	}
	envoy.subscribe(endpointType, "a")
	r.told("ClusterLoadAssignment first +a")
	for range given {
		envoy.next()
	}
	for !r.Room() {
		<-r.Changed()
	}
}

// TestRelayReplaced: of two streams the newer one is Envoy's.
func TestRelayReplaced(t *testing.T) {
	r := startRelay(t)
	older := connect(t, r.path)
	older.subscribe(clusterType)
	r.told("Cluster first")
	newer := connect(t, r.path)
	newer.subscribe(clusterType)
	select {
	case _, open := <-older.responses:
		if open {
			t.Fatal("the older stream got a response")
		}
	case <-time.After(patience):
		t.Fatal("the older stream is open")
	}
	r.give(clusterType, "a=1")
	newer.expect("Cluster +a")
}

// TestRelayEnd closes Envoy's stream in good order.
func TestRelayEnd(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	r.End()
	for range envoy.responses {
	}
	if envoy.ended != io.EOF {
		t.Errorf("the stream ended with %v, want status OK", envoy.ended)
	}
}

// connected says whether an Envoy has a stream.
func (r *relaying) connected() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stream != nil
}
