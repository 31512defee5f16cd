package xds

import (
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/pkg/xds/internal/wire"
)

// subscriber is a subscription, with the state that it is to follow.
type subscriber struct {
	*subscription
	t  *testing.T
	st *state
}

// subscribed is what begins with a request for names, of which Envoy has some of an earlier stream, as "name=body".
func subscribed(t *testing.T, names []string, has ...string) *subscriber {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, ResourceNamesSubscribe: names, InitialResourceVersions: map[string]string{}}
	for _, r := range list(has...) {
		req.InitialResourceVersions[r.Name] = wire.VersionText(r.version)
	}
	return &subscriber{subscription: newSubscription(req), t: t}
}

func (s *subscriber) asks(names ...string) {
	s.update(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

func (s *subscriber) leaves(names ...string) {
	s.update(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: names})
}

// is makes resources the state.
func (s *subscriber) is(resources ...string) {
	s.st, _ = newState(1, Snapshot{clusterType: list(resources...)})
}

// gets takes what there is to send, which must be want, and returns its names.
func (s *subscriber) gets(want string) (names []string) {
	s.t.Helper()
	return s.takes(want, s.changed(s.st), s.removed(s.st))
}

// getsOf is the same for names alone.
func (s *subscriber) getsOf(names []string, want string) []string {
	s.t.Helper()
	changed, removed := s.among(s.st, names)
	return s.takes(want, changed, removed)
}

func (s *subscriber) takes(want string, changed []*Stored, removed []string) (names []string) {
	s.t.Helper()
	var words []string
	for _, r := range changed {
		words = append(words, "+"+r.Name)
	}
	for _, name := range removed {
		words = append(words, "-"+name)
	}
	if got := strings.Join(words, " "); got != want {
		s.t.Errorf("%q is to be sent, want %q", got, want)
	}
	s.sent("n", changed, removed)
	names = s.inflight["n"]
	delete(s.inflight, "n")
	return names
}

// kept are the names that Envoy refuses and has an earlier version of.
func (s *subscriber) kept() (names []string) {
	st := &stream{server: &Server{order: []string{clusterType}}, subs: map[string]*subscription{clusterType: s.subscription}, pushed: s.st}
	if refused := st.rejected(); refused != nil {
		for _, id := range refused.Kept {
			names = append(names, id.Name)
		}
	}
	return names
}

// TestSubscription: the protocol's rules of what is sent for which request.
func TestSubscription(t *testing.T) {
	for name, play := range map[string]func(t *testing.T){
		"a new stream tells what Envoy has of what it asks for": func(t *testing.T) {
			s := subscribed(t, []string{"a", "b", "c"}, "a=1", "b=1")
			s.is("a=1", "b=2", "c=1", "d=1")
			s.gets("+b +c")
		},
		"what it has of another stream it keeps when it refuses a change": func(t *testing.T) {
			s := subscribed(t, nil, "a=1")
			s.is("a=2", "b=2")
			s.refuse(s.gets("+a +b"), "Error adding/updating cluster(s) a: no, b: no")
			if got := s.kept(); !slices.Equal(got, []string{"a"}) {
				t.Errorf("kept are %q, want a alone", got)
			}
		},
		"it keeps it however often it refuses": func(t *testing.T) {
			s := subscribed(t, nil, "a=1")
			s.is("a=2")
			for range 2 {
				s.refuse(s.gets("+a"), "Error adding/updating cluster(s) a: no")
				s.retry()
			}
			if got := s.kept(); !slices.Equal(got, []string{"a"}) {
				t.Errorf("kept are %q, want a", got)
			}
		},
		"without the wildcard only what was named concerns it": func(t *testing.T) {
			s := subscribed(t, []string{"a", wildcard})
			s.is("a", "b", "c")
			s.accept(s.gets("+a +b +c"))
			s.leaves(wildcard)
			s.is("a", "c=2")
			s.gets("")
			s.is("c=2")
			s.gets("-a")
		},
		"a name that is left concerns it no more": func(t *testing.T) {
			s := subscribed(t, []string{"a", "b"})
			s.is("a", "b")
			s.accept(s.gets("+a +b"))
			s.leaves("b")
			s.is("a")
			s.gets("")
			s.asks("b")
			s.gets("-b")
		},
		"under the wildcard a name that is left is sent again": func(t *testing.T) {
			s := subscribed(t, []string{"a", wildcard})
			s.is("a", "b")
			s.accept(s.gets("+a +b"))
			s.leaves("a", "unknown")
			s.accept(s.gets("+a"))
			s.leaves(wildcard)
			s.is("a=2")
			s.gets("")
		},
		"what goes, goes in the order of its names": func(t *testing.T) {
			s := subscribed(t, nil)
			s.is("a", "b", "c", "d", "e", "f")
			s.accept(s.gets("+a +b +c +d +e +f"))
			s.is()
			s.gets("-a -b -c -d -e -f")
		},
		"a part of a refused response is what is still asked for": func(t *testing.T) {
			s := subscribed(t, []string{"a", "b", "c"})
			s.is("a", "b", "c")
			s.accept(s.gets("+a +b +c"))
			s.is("a=2", "b=2") // c goes
			names := s.gets("+a +b -c")
			s.refuse(names, "cannot parse")
			s.leaves("b", "c")
			s.getsOf(names, "+a")
		},
	} {
		t.Run(name, play)
	}
}

// TestDuplicates: of two resources with one name the first stays, and the other is told of.
func TestDuplicates(t *testing.T) {
	st, duplicates := newState(1, Snapshot{clusterType: list("b=1", "a=1", "b=2"), listenerType: list("a=3")})
	if !slices.Equal(duplicates, []string{"b"}) {
		t.Errorf("duplicates are %q, want b", duplicates)
	}
	if r, has := st.find(clusterType, "b"); !has || string(bodyOf(t, r)) != "1" {
		t.Errorf("b is %q (there: %v), want the first", bodyOf(t, r), has)
	}
	if r, has := st.find(listenerType, "b"); has {
		t.Errorf("there is no listener b, and it is %v", r)
	}
}

func bodyOf(t testing.TB, r *Stored) []byte {
	t.Helper()
	body, err := r.Body()
	if err != nil {
		t.Fatal(err)
	}
	return body
}
