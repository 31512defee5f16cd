package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/xds/internal/refusal"
)

// wholeConn is a configuration stream of an Envoy that asks for whole states (SotW), as gRPC gives it.
type wholeConn = discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer

// StreamAggregatedResources serves one stream of an Envoy that asks for whole states; gRPC calls it.
func (r *Relay) StreamAggregatedResources(conn wholeConn) error {
	return r.accept(&wholeStream{ServerStream: conn, conn: conn, first: r.first, types: make(map[string]*wholeType)})
}

// wholeStream shows an Envoy that asks for whole states as one that asks for increments. It gets all clusters at each change of
// one, and all listeners: what a response does not mention is gone. Of other types it gets what has changed, and asks for no more
// than it uses.
type wholeStream struct {
	grpc.ServerStream
	conn  wholeConn
	first []string // see transport.SendFirst

	mu    sync.Mutex // one goroutine reads, another one writes
	types map[string]*wholeType
}

// wholeType is one type of resources as such an Envoy has it. A version is the pointer.
type wholeType struct {
	names map[string]struct{} // what it asks for
	// state is what it was sent last, and taken what it took last; both only of types of which all is sent.
	state, taken map[string]*kept
	sent         map[string]wholeFlight // by nonce: for what it has not answered
}

type wholeFlight struct {
	state   map[string]*kept // all that was sent
	changed []string         // what of it was not sent before
}

func sendsAll(url string) bool { return url == clusterURL || url == listenerURL }

func (s *wholeStream) of(url string) *wholeType {
	t := s.types[url]
	if t == nil {
		t = &wholeType{names: make(map[string]struct{}), state: make(map[string]*kept), taken: make(map[string]*kept), sent: make(map[string]wholeFlight)}
		s.types[url] = t
	}
	return t
}

// Recv is Envoy's next request: the names that it asks for in it are all, those of an increment's are others than before.
func (s *wholeStream) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	req, err := s.conn.Recv()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(req.GetTypeUrl())
	out := &discoveryv3.DeltaDiscoveryRequest{Node: req.GetNode(), TypeUrl: req.GetTypeUrl(), ResponseNonce: req.GetResponseNonce(), ErrorDetail: req.GetErrorDetail()}
	names := make(map[string]struct{}, len(req.GetResourceNames()))
	for _, name := range req.GetResourceNames() {
		if _, before := t.names[name]; !before {
			out.ResourceNamesSubscribe = append(out.ResourceNamesSubscribe, name)
		}
		names[name] = struct{}{}
	}
	for name := range t.names {
		if _, still := names[name]; !still {
			out.ResourceNamesUnsubscribe = append(out.ResourceNamesUnsubscribe, name)
		}
	}
	t.names = names
	if f, waits := t.sent[req.GetResponseNonce()]; waits {
		delete(t.sent, req.GetResponseNonce())
		if detail := req.GetErrorDetail(); detail == nil {
			t.taken = f.state
		} else if !t.refuse(f, detail.GetMessage()) {
			out.ErrorDetail = nil
		}
	}
	return out, nil
}

// refuse takes in that Envoy did not take all of a response: of what it refused it keeps the version before, which is sent from then
// on. It tells whether anything is refused that was new in this response.
func (t *wholeType) refuse(f wholeFlight, message string) (news bool) {
	blamed := refusal.BlamedBy(message, slices.Collect(maps.Keys(f.state)))
	all := len(blamed) == 0
	taken := make(map[string]*kept, len(f.state))
	for name, body := range f.state {
		if _, is := blamed[name]; !is && !all {
			taken[name] = body
			continue
		}
		before, had := t.taken[name]
		if had {
			taken[name] = before
		}
		if t.state[name] != body {
			continue // a newer one is on its way, or it is gone
		}
		delete(t.state, name)
		if had {
			t.state[name] = before
		}
	}
	if all {
		for name, body := range t.taken { // what the response took away is still there
			taken[name] = body
			if _, again := f.state[name]; !again && t.state[name] == nil {
				t.state[name] = body
			}
		}
	}
	t.taken = taken
	return all || slices.ContainsFunc(f.changed, func(name string) bool { _, is := blamed[name]; return is })
}

// Send gives Envoy an increment.
func (s *wholeStream) Send(r *reply) error {
	out := &discoveryv3.DiscoveryResponse{TypeUrl: r.url, Nonce: r.nonce, VersionInfo: r.version}
	resources := r.resources // of what is gone Envoy has told by asking no more
	if sendsAll(r.url) {
		resources = s.all(r)
	}
	for _, k := range resources {
		out.Resources = append(out.Resources, &anypb.Any{TypeUrl: r.url, Value: k.body()})
	}
	return s.conn.Send(out)
}

// all is what there is with an increment, in the order in which Envoy is to have it.
func (s *wholeStream) all(r *reply) []*kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(r.url)
	f := wholeFlight{}
	for _, k := range r.resources {
		t.state[k.name] = k
		f.changed = append(f.changed, k.name)
	}
	for _, name := range r.removed {
		delete(t.state, name)
	}
	f.state = maps.Clone(t.state)
	t.sent[r.nonce] = f
	place := func(name string) int {
		if slices.Contains(s.first, name) {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Values(f.state), func(a, b *kept) int { return cmp.Or(place(a.name)-place(b.name), strings.Compare(a.name, b.name)) })
}
