package xds

import (
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// wildcard is the name that stands for every resource of a type.
const wildcard = "*"

// subscription is what one stream wants and has of one type. The rules are those of
// the xDS protocol document, "Incremental xDS" and "How the client specifies what
// resources to return".
type subscription struct {
	url      string
	wildcard bool
	names    map[string]struct{} // asked for by name
	// known is what Envoy has, as far as we know: the version that was sent last, or 0
	// for a name whose state is not known (refused, or asked for anew), which makes it
	// differ from every version.
	known map[string]uint64
	// answered is false until the first response: Envoy waits for one, if an empty one.
	answered bool
	// inflight are the responses that were neither ACKed nor NACKed, by nonce. A
	// response is kept as the names in it.
	inflight map[string][]string
	// refused are names of responses that were NACKed in the running push.
	refused []string
}

// newSubscription starts from the first request of a type on a stream, which also
// tells what Envoy still has of an earlier stream.
func newSubscription(first *discoveryv3.DeltaDiscoveryRequest) *subscription {
	s := &subscription{
		url:      first.GetTypeUrl(),
		names:    make(map[string]struct{}),
		known:    make(map[string]uint64, len(first.GetInitialResourceVersions())),
		inflight: make(map[string][]string),
		// No name at all in the first request is the older form of "*".
		wildcard: len(first.GetResourceNamesSubscribe()) == 0,
	}
	for name, version := range first.GetInitialResourceVersions() {
		s.known[name] = parseVersion(version)
	}
	for _, name := range first.GetResourceNamesSubscribe() {
		_, has := s.known[name]
		s.subscribe(name, !has)
	}
	return s
}

// update applies the subscription changes of a later request, and says whether there
// were any.
func (s *subscription) update(req *discoveryv3.DeltaDiscoveryRequest) bool {
	for _, name := range req.GetResourceNamesSubscribe() {
		s.subscribe(name, true)
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		s.unsubscribe(name)
	}
	return len(req.GetResourceNamesSubscribe())+len(req.GetResourceNamesUnsubscribe()) > 0
}

// subscribe adds a name. Whoever asks for a resource by name gets it, or word that
// there is none, even when it was sent before: Envoy may have dropped it since.
func (s *subscription) subscribe(name string, send bool) {
	if name == wildcard {
		s.wildcard = true
		return
	}
	s.names[name] = struct{}{}
	if send {
		s.known[name] = 0
	}
}

func (s *subscription) unsubscribe(name string) {
	switch {
	case name == wildcard:
		s.wildcard = false
		for known := range s.known {
			if !s.wants(known) {
				delete(s.known, known)
			}
		}
	case s.wildcard:
		// Still wanted: the protocol has the server say so, by sending it again.
		delete(s.names, name)
		if _, has := s.known[name]; has {
			s.known[name] = 0
		}
	default:
		delete(s.names, name)
		delete(s.known, name)
	}
}

func (s *subscription) wants(name string) bool {
	if s.wildcard {
		return true
	}
	_, ok := s.names[name]
	return ok
}

// changed gives the resources of st that Envoy wants and does not have in this version.
func (s *subscription) changed(st *state) []Resource {
	var out []Resource
	for _, r := range st.resources[s.url] {
		if s.wants(r.Name) && s.known[r.Name] != r.Version {
			out = append(out, r)
		}
	}
	return out
}

// removed gives the names, sorted, that Envoy has or asked for and st has not.
func (s *subscription) removed(st *state) []string {
	var out []string
	for name := range s.known {
		if !st.has(s.url, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// sent notes a response on its way.
func (s *subscription) sent(nonce string, changed []Resource, removed []string) {
	names := make([]string, 0, len(changed)+len(removed))
	for _, r := range changed {
		s.known[r.Name] = r.Version
		names = append(names, r.Name)
	}
	for _, name := range removed {
		delete(s.known, name)
		names = append(names, name)
	}
	s.inflight[nonce] = names
	s.answered = true
}

// refuse notes names that Envoy refused, for retry.
func (s *subscription) refuse(names []string) { s.refused = append(s.refused, names...) }

// retry makes the next push send again what Envoy refused, whether it changes or not:
// Envoy may have taken a part, and the cause may have gone (an address in use).
func (s *subscription) retry() {
	for _, name := range s.refused {
		if _, has := s.known[name]; has {
			s.known[name] = 0
		}
	}
	s.refused = nil
}
