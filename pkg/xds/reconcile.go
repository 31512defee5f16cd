package xds

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The types of which one refers to another. An Envoy that gets the one waits for the other.
const (
	clusterURL   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointURL  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerURL  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeURL     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	extensionURL = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// endpointsLate is how long the upstream may take to send the endpoints of a cluster that it has changed. Envoy warms the
// cluster until it gets them, and does not ask: it has asked for the cluster before (envoy#46383).
const endpointsLate = time.Second

// reconcile takes out of the first response on a new stream of the upstream, which knows nothing of those before and sends
// everything, what Envoy has. What the upstream does not mention of a type of which it sends all is gone.
func (r *Relay) reconcile(url string, l *ledger, resources []Resource, removed []string) (news []Resource, gone []string) {
	if l.wildcard {
		mentioned := make(map[string]bool, len(resources))
		for _, m := range resources {
			mentioned[m.Name] = true
		}
		removed = slices.DeleteFunc(slices.Sorted(maps.Keys(l.held)), func(name string) bool { return mentioned[name] })
	}
	for _, name := range removed {
		_, held := l.held[name]
		if _, told := l.absent[name]; held || !told {
			gone = append(gone, name)
		}
	}
	for _, m := range resources {
		if !r.has(url, l, m) {
			news = append(news, m)
		}
	}
	r.counters.suppressed.Add(uint64(len(resources) - len(news)))
	return news, gone
}

// has says whether the Envoy that is connected has taken m as it is, and would not miss it.
func (r *Relay) has(url string, l *ledger, m Resource) bool {
	if l.upstream.distrusted {
		return false
	}
	e := l.held[m.Name]
	if _, refused := l.refused[m.Name]; refused || r.stream == nil || e.by != r.stream.number || e.newest.version != e.taken.version || !same(url, e.taken, m) {
		return false
	}
	switch url {
	case endpointURL:
		_, waits := r.stream.unmatched[m.Name]
		return !waits
	case routeURL, extensionURL:
		return !r.listenersChanged
	}
	return true
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
func (st *relayStream) note(url string, resources []Resource) {
	switch url {
	case clusterURL:
		for _, m := range resources {
			if name := endpointsOf(m); name != "" {
				st.unmatched[name] = struct{}{}
			}
		}
		if !st.waiting && len(st.unmatched) > 0 {
			st.waiting = true
			st.late.Reset(endpointsLate)
		}
	case endpointURL:
		for _, m := range resources {
			delete(st.unmatched, m.Name)
		}
	case listenerURL:
		st.relay.listenersChanged = st.relay.listenersChanged || len(resources) > 0
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
	var stored []Resource
	for _, name := range slices.Sorted(maps.Keys(st.unmatched)) {
		if e, held := l.held[name]; held && sub.in(name) {
			stored = append(stored, e.newest)
		}
	}
	if len(stored) > 0 {
		st.respond(endpointURL, l, sub, stored, nil)
	}
}

// Fields of Envoy's Cluster.
const (
	fieldClusterEDS     protowire.Number = 3 // eds_cluster_config
	fieldEDSServiceName protowire.Number = 2 // of it
)

// endpointsOf is the name of the endpoints that a cluster is without, "" if it has them itself.
func endpointsOf(cluster Resource) string {
	config, is := lastField(cluster.Body, fieldClusterEDS)
	if !is {
		return ""
	}
	if name, _ := lastField(config, fieldEDSServiceName); len(name) > 0 {
		return string(name)
	}
	return cluster.Name
}

// lastField is the value of a field that has bytes, of which the last one counts. What is no message has none.
func lastField(b []byte, wanted protowire.Number) (value []byte, has bool) {
	for len(b) > 0 {
		number, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, false
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(number, kind, b); size < 0 {
			return nil, false
		}
		if number == wanted && kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b)
			has = true
		}
		b = b[size:]
	}
	return value, has
}
