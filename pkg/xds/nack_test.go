package xds

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"

	"understudy.mesh/pkg/xds/internal/refusal"
)

// maxReason is what package refusal keeps of a reason.
const maxReason = 512

func TestNACK(t *testing.T) {
	s, c := start(t, pair{list("a", "b"), list("l")})
	version := s.Set(pair{list("a=bad", "b=good"), list("l=new")}.snapshot())
	resp := c.next()
	c.nack(resp, "Error adding/updating cluster(s) a: no such filter")
	c.expect("Listener +l") // the stream goes on, and nothing is sent again in this push
	err := applied(t, s, version)
	if err == nil || !strings.Contains(err.Error(), `Cluster "a"`) || !strings.Contains(err.Error(), "no such filter") {
		t.Fatalf("got %v, want the resource and the reason", err)
	}
	if strings.Contains(err.Error(), `"b"`) {
		t.Errorf("%v names a resource that Envoy did not", err)
	}
	c.nothing()
	// The repair is all that goes: Envoy named a alone, so it took b.
	version = s.Set(pair{list("a=repaired", "b=good"), list("l=new")}.snapshot())
	c.expect("Cluster +a")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	if stats := s.Stats(); stats.NACKs != 1 {
		t.Errorf("%d NACKs, want 1", stats.NACKs)
	}
}

// TestRefusedIsSentAgain: the cause may go, an address in use for one, without a change of the resource.
func TestRefusedIsSentAgain(t *testing.T) {
	s, c := start(t, pair{nil, list("l")})
	for range 2 {
		version := s.Set(pair{nil, list("l=new", "other")}.snapshot())
		resp := c.next()
		if got := describe(resp); !strings.Contains(got, "+l") {
			t.Fatalf("got %q, want what was refused once more", got)
		}
		c.nack(resp, "Error adding/updating listener(s) l: cannot bind '127.0.0.1:80': Address already in use")
		if rejected := refusedIn(t, applied(t, s, version)); !slices.Equal(rejected.Resources, listeners("l")) || !slices.Equal(rejected.Kept, listeners("l")) {
			t.Errorf("got %+v", rejected)
		}
		c.nothing() // not in the same push
	}
	version := s.Set(pair{nil, list("l=new", "other")}.snapshot())
	c.expect("Listener +l")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	s.Set(pair{nil, list("l=new", "other")}.snapshot())
	c.nothing() // it has it
}

// TestNACKThenRemove: what Envoy refused an update of it still has in an older form.
func TestNACKThenRemove(t *testing.T) {
	s, c := start(t, pair{list("a"), nil})
	s.Set(pair{list("a=bad"), nil}.snapshot())
	c.nack(c.next(), "bad")
	version := s.Set(pair{}.snapshot())
	c.expect("Cluster -a")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestNACKWithoutName: Envoy's message may name nothing, and then it took nothing. What
// it refuses is found by halves, and the rest comes into force.
func TestNACKWithoutName(t *testing.T) {
	s, c := start(t, pair{nil, list("old", "l4=1")})
	version := s.Set(pair{Listeners: list("l1", "l2", "l3", "l4=2")}.snapshot())
	for _, want := range []struct{ response, refusal string }{
		{"Listener +l1 +l2 +l3 +l4 -old", "cannot parse"},
		{"Listener +l1 +l2", ""},
		{"Listener +l3 +l4 -old", "Proto constraint validation failed"},
		{"Listener +l3", ""},
		{"Listener +l4 -old", "Proto constraint validation failed"},
		{"Listener +l4", "l4 is bad"},
		{"Listener -old", ""},
	} {
		resp := c.next()
		if got := describe(resp); got != want.response {
			t.Fatalf("got %q, want %q", got, want.response)
		}
		if want.refusal == "" {
			c.ack(resp)
		} else {
			c.nack(resp, want.refusal)
		}
	}
	rejected := refusedIn(t, applied(t, s, version))
	if !slices.Equal(rejected.Resources, listeners("l4")) || len(rejected.Missing()) != 0 || !slices.Equal(rejected.Reasons, []string{`Listener "l4": l4 is bad`}) {
		t.Errorf("got %+v, want l4 alone, of which Envoy keeps an earlier version", rejected)
	}
	// It would refuse that one for ever, and is not asked again; but still it has not taken it.
	version = s.Set(pair{Listeners: list("l1", "l2", "l3=3", "l4=2")}.snapshot())
	c.expect("Listener +l3")
	if rejected := refusedIn(t, applied(t, s, version)); !slices.Equal(rejected.Resources, listeners("l4")) {
		t.Errorf("got %+v", rejected)
	}
	version = s.Set(pair{Listeners: list("l1", "l2", "l3=3", "l4=3")}.snapshot())
	c.expect("Listener +l4")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestNACKKeepsTheOrder: what is to come first does, although Envoy refuses its neighbour, or it.
func TestNACKKeepsTheOrder(t *testing.T) {
	s, path := startServer(t)
	s.SendFirst("y", "z")
	version := s.Set(pair{Listeners: list("a", "b", "c", "d", "y", "z")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType)
	c.expect("Cluster")
	c.subscribe(listenerType)
	refused := func(want string) {
		t.Helper()
		resp := c.next()
		if got := describe(resp); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		c.nack(resp, "cannot parse")
	}
	refused("Listener +y +z +a +b +c +d")
	c.expect("Listener +y")
	refused("Listener +z")
	refused("Listener +a")
	c.expect("Listener +b +c +d")
	if rejected := refusedIn(t, applied(t, s, version)); !slices.Equal(rejected.Resources, listeners("a", "z")) {
		t.Errorf("got %+v", rejected)
	}
	c.nothing()
}

// TestNACKNamesTheType: a cluster and a listener may have one name.
func TestNACKNamesTheType(t *testing.T) {
	s, c := start(t, pair{list("a"), list("a")})
	version := s.Set(pair{list("a=2"), list("a=2")}.snapshot())
	c.expect("Cluster +a")
	c.nack(c.next(), "Error adding/updating listener(s) a: no")
	if rejected := refusedIn(t, applied(t, s, version)); !slices.Equal(rejected.Resources, listeners("a")) || !slices.Equal(rejected.Kept, listeners("a")) {
		t.Errorf("got %+v, want the listener", rejected)
	}
}

func clusters(names ...string) []ID  { return ids(clusterType, names) }
func listeners(names ...string) []ID { return ids(listenerType, names) }

func ids(url string, names []string) (ids []ID) {
	for _, name := range names {
		ids = append(ids, ID{url, name})
	}
	return ids
}

func refusedIn(t *testing.T, err error) *RejectedError {
	t.Helper()
	var rejected *RejectedError
	if !errors.As(err, &rejected) {
		t.Fatalf("got %v, want a *RejectedError", err)
	}
	return rejected
}

// TestNACKCutShort: Envoy's message ends after 4,096 bytes, and with it the names.
func TestNACKCutShort(t *testing.T) {
	s, c := start(t, pair{})
	version := s.Set(pair{Clusters: list("a", "b", "c", "d")}.snapshot())
	c.nack(c.next(), "Error adding/updating cluster(s) b: no, d: ...(truncated)")
	c.expect("Cluster +a")
	resp := c.next()
	if got := describe(resp); got != "Cluster +c" {
		t.Fatal(got)
	}
	c.nack(resp, "Error adding/updating cluster(s) c: neither")
	rejected := refusedIn(t, applied(t, s, version))
	if want := clusters("b", "c", "d"); !slices.Equal(rejected.Resources, want) || !slices.Equal(rejected.Missing(), want) {
		t.Errorf("got %+v, want %v", rejected, want)
	}
}

// TestNACKOfMany: an error has all names, but not all reasons, and not the whole of a long one.
func TestNACKOfMany(t *testing.T) {
	for _, tc := range []struct {
		refused, reason int // how many, and how long the reason of each is
		end, more       string
	}{
		{maxReasons, maxReason, "", ""},
		{maxReasons + 1, maxReason + 1, "...", "and 1 more"},
		{3 * maxReasons, 2 * maxReason, "...", "and 20 more"},
	} {
		var names, blamed []string
		for i := range tc.refused {
			name := fmt.Sprintf("c%02d", i)
			names, blamed = append(names, name), append(blamed, name+": "+strings.Repeat("x", tc.reason))
		}
		s, c := start(t, pair{})
		version := s.Set(pair{Clusters: list(names...)}.snapshot())
		c.nack(c.next(), "Error adding/updating cluster(s) "+strings.Join(blamed, ", "))
		rejected := refusedIn(t, applied(t, s, version))
		var want []string
		for _, name := range names[:maxReasons] {
			want = append(want, fmt.Sprintf("Cluster %q: %s%s", name, strings.Repeat("x", min(tc.reason, maxReason)), tc.end))
		}
		if tc.more != "" {
			want = append(want, tc.more)
		}
		if !slices.Equal(rejected.Resources, clusters(names...)) || !slices.Equal(rejected.Reasons, want) {
			t.Errorf("%d resources of %d, reasons %q", len(rejected.Resources), tc.refused, rejected.Reasons)
		}
	}
}

// TestPartNoLongerAskedFor: no empty response is sent for it.
func TestPartNoLongerAskedFor(t *testing.T) {
	s, path := startServer(t)
	version := s.Set(pair{Clusters: list("a", "b")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType, "a", "b")
	resp := c.next()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: clusterType, ResponseNonce: resp.Nonce, ErrorDetail: &status.Status{Message: "cannot parse"}, ResourceNamesUnsubscribe: []string{"b"},
	})
	c.expect("Cluster +a")
	c.subscribe(listenerType)
	c.expect("Listener")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestRefusedAndNoLongerAskedFor: what Envoy does not want any more is no fault of the configuration.
func TestRefusedAndNoLongerAskedFor(t *testing.T) {
	s, path := startServer(t)
	version := s.Set(pair{Clusters: list("a", "b")}.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType, "a", "b")
	c.nack(c.next(), "Error adding/updating cluster(s) a: bad, b: worse")
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, ResourceNamesUnsubscribe: []string{"a"}})
	c.subscribe(listenerType)
	c.expect("Listener")
	if rejected := refusedIn(t, applied(t, s, version)); !slices.Equal(rejected.Resources, clusters("b")) {
		t.Errorf("got %+v, want b alone", rejected)
	}
}

// TestNACKThenNewEnvoy: what the Envoy before had in an earlier version, this one has not.
func TestNACKThenNewEnvoy(t *testing.T) {
	s, path := startServer(t)
	s.Set(pair{Clusters: list("a=1")}.snapshot())
	for i, missing := range [][]ID{nil, clusters("a")} {
		c := connect(t, path)
		c.subscribe(clusterType)
		if i == 0 {
			c.expect("Cluster +a")
			c.subscribe(listenerType)
			c.expect("Listener")
			s.Set(pair{Clusters: list("a=2")}.snapshot())
			c.nack(c.next(), "no")
		} else {
			c.nack(c.next(), "no")
			c.subscribe(listenerType)
			c.expect("Listener")
		}
		rejected := refusedIn(t, applied(t, s, 2))
		if i == 0 {
			select {
			case <-s.Renewed():
				t.Error("the first Envoy counts as one in the place of another")
			default:
			}
		} else {
			select {
			case <-s.Renewed():
			case <-time.After(patience):
				t.Error("nobody hears of the second Envoy")
			}
		}
		if !slices.Equal(rejected.Missing(), missing) {
			t.Errorf("Envoy %d lacks %v, want %v", i, rejected.Missing(), missing)
		}
		c.close()
		for deadline := time.Now().Add(patience); connected(s); {
			if time.Now().After(deadline) {
				t.Fatal("still connected")
			}
			runtime.Gosched()
		}
	}
}

// FuzzNACK: whatever resources Envoy refuses, and in whatever form it says so, each of them is
// known by name in the end, and every other one is in force.
func FuzzNACK(f *testing.F) {
	f.Add([]byte{1, 2, 0, 3, 0, 0, 1}, uint8(3))
	f.Add([]byte{2, 2, 2, 2}, uint8(0))
	f.Add([]byte{1, 1, 1, 1, 1, 1}, uint8(2))
	f.Fuzz(func(t *testing.T, kinds []byte, limit uint8) {
		kinds = kinds[:min(len(kinds), 64)]
		sub := newSubscription(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType})
		var want, has []string
		var resources []*Stored
		fault := make(map[string]byte)
		for i, kind := range kinds {
			name := fmt.Sprintf("outbound|%d||a", i)
			resources = append(resources, NewStored(name, nil))
			if fault[name] = kind % 3; kind%3 != 0 {
				want = append(want, name)
			}
		}
		st := &stream{server: &Server{order: []string{clusterType}}, subs: map[string]*subscription{clusterType: sub}}
		st.pushed, _ = newState(1, pair{Clusters: resources}.snapshot())
		queue := [][]string{nil}
		for _, r := range resources {
			queue[0] = append(queue[0], r.Name)
		}
		for steps := 0; len(queue) > 0; steps++ {
			if steps > 4*len(kinds)+1 {
				t.Fatal("it does not end")
			}
			for _, names := range queue {
				changed, _ := sub.among(st.pushed, names)
				sub.sent("n", changed, nil)
				message := envoysAnswer(sub.inflight["n"], fault, int(limit))
				if message == "" {
					sub.accept(sub.inflight["n"])
				} else {
					sub.refuse(sub.inflight["n"], message)
				}
			}
			queue, sub.parts = sub.parts, nil
		}
		if got := st.rejected(); got == nil && len(want) > 0 {
			t.Fatalf("nothing is refused, want %q", want)
		} else if slices.Sort(want); got != nil && !slices.Equal(got.Missing(), clusters(want...)) {
			t.Fatalf("refused are %v, want %q", got.Missing(), want)
		}
		for name, it := range sub.known {
			if it.held {
				has = append(has, name)
			}
		}
		if len(has)+len(want) != len(kinds) {
			t.Fatalf("Envoy has %q, refuses %q of %d", has, want, len(kinds))
		}
	})
}

// envoysAnswer is Envoy's message on a response; "" for an ACK. A fault of 1 refuses a resource
// by name, one of 2 the response. Only limit names fit.
func envoysAnswer(names []string, fault map[string]byte, limit int) string {
	var blamed []string
	for _, name := range names {
		switch fault[name] {
		case 1:
			blamed = append(blamed, name+": no, not that")
		case 2:
			return "Proto constraint validation failed"
		}
	}
	if len(blamed) == 0 {
		return ""
	}
	text := "Error adding/updating cluster(s) "
	if limit++; len(blamed) > limit {
		return text + strings.Join(blamed[:limit], ", ") + refusal.Truncated
	}
	return text + strings.Join(blamed, ", ")
}
