package xds

import (
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/pkg/xds/internal/wire"
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
	// known is what Envoy was sent, and every name that it asked for.
	known map[string]item
	// answered is false until the first response: Envoy waits for one, if an empty one.
	answered bool
	// inflight are the responses that were neither ACKed nor NACKed, by nonce. A
	// response is kept as the names in it.
	inflight map[string][]string
	// parts are names of which Envoy refused some and did not say which; each part goes
	// in a response of its own.
	parts [][]string
	// rejected is what Envoy refused, until it takes it or there is no such resource.
	rejected map[string]rejection
}

// item is one resource as Envoy has it, as far as we know.
type item struct {
	// version was sent last; 0, which differs from every version, when the state is not
	// known: refused, or asked for anew.
	version uint64
	// held says that Envoy has the resource, if in an earlier version: it keeps that
	// when it refuses a later one.
	held bool
}

// newSubscription starts from the first request of a type on a stream, which also
// tells what Envoy still has of an earlier stream.
func newSubscription(first *discoveryv3.DeltaDiscoveryRequest) *subscription {
	s := &subscription{
		url:      first.GetTypeUrl(),
		names:    make(map[string]struct{}),
		known:    make(map[string]item, len(first.GetInitialResourceVersions())),
		inflight: make(map[string][]string),
		rejected: make(map[string]rejection),
		// No name at all in the first request is the older form of "*".
		wildcard: len(first.GetResourceNamesSubscribe()) == 0,
	}
	for name, version := range first.GetInitialResourceVersions() {
		s.known[name] = item{wire.ParseVersion(version), true}
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
		s.forget(name)
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
			s.forget(name)
		}
	default:
		delete(s.names, name)
		delete(s.known, name)
	}
}

// forget makes the version of a resource unknown, so that it is sent again.
func (s *subscription) forget(name string) { s.known[name] = item{0, s.known[name].held} }

func (s *subscription) wants(name string) bool {
	if s.wildcard {
		return true
	}
	_, ok := s.names[name]
	return ok
}

// changed gives the resources of st that Envoy wants and does not have in this version.
func (s *subscription) changed(st *state) []*Stored {
	var out []*Stored
	for _, r := range st.resources[s.url] {
		if s.wants(r.Name) && s.known[r.Name].version != r.version {
			out = append(out, r)
		}
	}
	return out
}

// removed gives the names, sorted, that Envoy has or asked for and st has not. What it has by name, it has for a listener that
// drains: without it, that one would answer everything with 500.
func (s *subscription) removed(st *state) []string {
	kept := 0
	for _, r := range st.resources[s.url] {
		if _, known := s.known[r.Name]; known {
			kept++
		}
	}
	if kept == len(s.known) {
		return nil
	}
	var out []string
	for name, it := range s.known {
		lingers := named(s.url) && (it.held || it.version != 0)
		if _, has := st.find(s.url, name); !has && !lingers {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// among gives what changed and removed do, of names alone.
func (s *subscription) among(st *state, names []string) (changed []*Stored, removed []string) {
	for _, name := range names {
		it, known := s.known[name]
		switch r, has := st.find(s.url, name); {
		case has && s.wants(name) && it.version != r.version:
			changed = append(changed, r)
		case !has && known:
			removed = append(removed, name)
		}
	}
	return changed, removed
}

// sent notes a response on its way.
func (s *subscription) sent(nonce string, changed []*Stored, removed []string) {
	names := make([]string, 0, len(changed)+len(removed))
	for _, r := range changed {
		s.known[r.Name] = item{r.version, s.known[r.Name].held}
		names = append(names, r.Name)
	}
	for _, name := range removed {
		delete(s.known, name)
		names = append(names, name)
	}
	s.inflight[nonce] = names
	s.answered = true
}
