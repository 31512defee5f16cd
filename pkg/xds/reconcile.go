package xds

import (
	"iter"
	"maps"
	"slices"
	"time"

	"understudy.mesh/pkg/xds/internal/canonical"
	"understudy.mesh/pkg/xds/references"
)

// The types of which one refers to another. An Envoy that gets the one waits for the other.
const (
	clusterURL   = references.Cluster
	endpointURL  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerURL  = references.Listener
	routeURL     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	extensionURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// endpointsLate is how long the upstream may take to send the endpoints of a cluster that it has changed. Envoy warms the
// cluster until it gets them, and does not ask: it has asked for the cluster before (envoy#46383).
const endpointsLate = time.Second

// reconcile takes out of the first response on a new stream of the upstream, which knows nothing of those before and sends
// everything, what Envoy has. What the upstream does not mention of a type of which it sends all is gone.
func (r *Relay) reconcile(url string, l *ledger, resources []*kept, removed []string) (news []*kept, gone []string) {
	if l.wildcard {
		mentioned := make(map[string]bool, len(resources))
		for _, k := range resources {
			mentioned[k.name] = true
		}
		removed = slices.DeleteFunc(slices.Sorted(maps.Keys(l.held)), func(name string) bool { return mentioned[name] })
	}
	for _, name := range removed {
		_, held := l.held[name]
		if _, told := l.absent[name]; held || !told {
			gone = append(gone, name)
		}
	}
	for _, k := range resources {
		if !r.has(url, l, k) {
			news = append(news, k)
		}
	}
	r.counters.suppressed.Add(uint64(len(resources) - len(news)))
	return news, gone
}

// has says whether the Envoy that is connected has taken k as it is, and would not miss it.
func (r *Relay) has(url string, l *ledger, k *kept) bool {
	if l.upstream.distrusted {
		return false
	}
	e, held := l.held[k.name]
	if _, refused := l.refused[k.name]; !held || refused || r.stream == nil || e.by != r.stream.number || e.taken == nil || e.newest.version != e.taken.version || !means(url, e.taken, k) {
		return false
	}
	switch url {
	case endpointURL:
		_, waits := r.stream.unmatched[k.name]
		return !waits
	case routeURL, extensionURL:
		return !r.listenersChanged
	}
	return true
}

// means says whether k, which is in memory, means to Envoy what it has taken.
func means(url string, taken, k *kept) bool {
	if taken.version == k.version {
		return true
	}
	if taken.size != k.size {
		return false
	}
	loaded, err := taken.load(url)
	return err == nil && canonical.Same(url, loaded.body(), k.body())
}

// Distrust has everything passed on that the upstream sends on its next stream, whether Envoy has it or not.
func (r *Relay) Distrust() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.ledgers {
		l.upstream.distrusted = true
	}
}

// note remembers what Envoy waits for once it has got these resources.
func (st *relayStream) note(url string, resources []*kept) {
	switch url {
	case clusterURL:
		st.unmatched = withRoom(st.unmatched, len(resources))
		for _, k := range resources {
			if name := references.Endpoints(k.name, k.body()); name != "" {
				st.unmatched[name] = struct{}{}
			}
		}
		if !st.waiting && len(st.unmatched) > 0 {
			st.waiting = true
			st.late.Reset(endpointsLate)
		}
		st.relay.foresee(endpointURL, maps.Keys(st.unmatched))
	case endpointURL:
		for _, k := range resources {
			delete(st.unmatched, k.name)
		}
	case listenerURL:
		st.relay.listenersChanged = st.relay.listenersChanged || len(resources) > 0
		var routes []string
		for _, k := range resources {
			routes = append(routes, references.Of(url, k.name, k.body())...)
		}
		st.relay.foresee(routeURL, slices.Values(routes))
	}
}

// foresee has the upstream asked for what the first resources of a type refer to, while Envoy reads these: it asks once it has read all of
// them, which takes it seconds in a large mesh. What it does not ask for after all, Forget drops.
func (r *Relay) foresee(url string, names iter.Seq[string]) {
	if r.ledgers[url] != nil {
		return
	}
	l := newLedger(url)
	for name := range names {
		l.subscribe(name)
	}
	if l.wanted() {
		r.ledgers[url] = l
		r.wake()
	}
}

// overdue sends the endpoints again that clusters wait for, as far as there are any.
func (r *Relay) overdue(st *relayStream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st.waiting = false
	l, sub := r.ledgers[endpointURL], st.interests[endpointURL]
	if sub == nil {
		return
	}
	var stored []*kept
	for _, name := range slices.Sorted(maps.Keys(st.unmatched)) {
		if e, held := l.held[name]; held && sub.in(name) {
			stored = append(stored, e.newest)
		}
	}
	if len(stored) > 0 {
		st.respond(endpointURL, l, sub, stored, nil)
	}
}
