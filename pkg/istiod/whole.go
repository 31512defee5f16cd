package istiod

import (
	"maps"
	"slices"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"understudy.mesh/pkg/istiod/internal/wire"
	"understudy.mesh/pkg/xds"
)

// wholeStream shows a stream to istiod of whole states (SotW) as one of increments, for an agent that was told to speak that. Of
// clusters and listeners each response has all, so that what it does not mention is gone; of other types it has what has changed.
type wholeStream struct {
	grpc.ClientStream
	conn discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient

	mu    sync.Mutex // one goroutine reads, another one writes
	types map[string]*wholeType
}

// wholeType is one type of resources as istiod was asked for it.
type wholeType struct {
	names    map[string]struct{}
	held     map[string]struct{}      // what there is, of types of which all comes
	nonce    string                   // of the newest response
	open     map[string]wholeResponse // those that were not answered, by nonce
	accepted string                   // the version that was taken last
}

type wholeResponse struct {
	version string
	before  map[string]struct{} // what there was before it
}

func sendsAll(url string) bool { return url == clusterType || url == listenerType }

func (s *wholeStream) of(url string) *wholeType {
	t := s.types[url]
	if t == nil {
		t = &wholeType{names: make(map[string]struct{}), held: make(map[string]struct{}), open: make(map[string]wholeResponse)}
		s.types[url] = t
	}
	return t
}

// Send asks, or answers. Each request has all the names that are asked for; one that answers nothing has the newest nonce, without
// which it would count as the first of its type.
func (s *wholeStream) Send(req *discoveryv3.DeltaDiscoveryRequest) error {
	s.mu.Lock()
	t := s.of(req.GetTypeUrl())
	for _, name := range req.GetResourceNamesSubscribe() {
		t.names[name] = struct{}{}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(t.names, name)
	}
	for name := range req.GetInitialResourceVersions() {
		t.held[name] = struct{}{}
	}
	out := &discoveryv3.DiscoveryRequest{
		Node: req.GetNode(), TypeUrl: req.GetTypeUrl(), ResourceNames: slices.Sorted(maps.Keys(t.names)), ResponseNonce: t.nonce, ErrorDetail: req.GetErrorDetail(),
	}
	if nonce := req.GetResponseNonce(); nonce != "" {
		out.ResponseNonce = nonce
		if req.GetErrorDetail() == nil {
			t.accepted = t.open[nonce].version
		} else {
			maps.Copy(t.held, t.open[nonce].before) // nothing of it may have gone
		}
		delete(t.open, nonce)
	}
	out.VersionInfo = t.accepted
	s.mu.Unlock()
	return s.conn.Send(out)
}

// Recv is istiod's next response.
func (s *wholeStream) Recv() (*xds.Response, error) {
	resp, err := s.conn.Recv()
	if err != nil {
		return nil, err
	}
	url := resp.GetTypeUrl()
	out := &xds.Response{Type: url, Nonce: resp.GetNonce()}
	names := make(map[string]struct{}, len(resp.GetResources()))
	for _, body := range resp.GetResources() {
		name := ""
		if passes(url) {
			if name = wire.ResourceName(body.GetValue()); name != "" {
				names[name] = struct{}{}
			}
		}
		out.Add(body.GetTypeUrl(), xds.NewResource(name, body.GetValue()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of(url)
	t.nonce = resp.GetNonce()
	t.open[t.nonce] = wholeResponse{resp.GetVersionInfo(), t.held}
	if sendsAll(url) {
		for _, name := range slices.Sorted(maps.Keys(t.held)) {
			if _, still := names[name]; !still {
				out.Removed = append(out.Removed, name)
			}
		}
		t.held = names
	}
	return out, nil
}
