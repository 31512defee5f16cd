package envoyfilter

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"
)

// Proxy is whom a Set is for.
type Proxy struct {
	// Namespace is the pod's. RootNamespace is the mesh's, whose documents are for every namespace.
	Namespace, RootNamespace string
	// Labels are the pod's, which a workloadSelector selects by.
	Labels map[string]string
	// Metadata is that of Envoy's node: match.proxy.metadata compares with it, and proxyVersion with its ISTIO_VERSION.
	Metadata map[string]any
	// NoWasm leaves out every Wasm filter, for this reason; "" none.
	NoWasm string
}

// state is what became of a patch before any listener is looked at.
type state int

const (
	active  state = iota
	skipped       // it is for others, or has no effect
)

// entry is one patch in a Set.
type entry struct {
	*patch
	owner  *member
	id     int           // its place in Set.entries
	place  int           // in its document
	value  proto.Message // of patch, its discovered configuration filled in
	state  state
	reason string // why it is not active
}

// member is one document in a Set.
type member struct {
	*Filter
	refused string // why nothing of it applies
	entries []*entry
}

// Set is the documents that are there, and of them the patches that are for one proxy, in the order in which they apply.
// It is immutable; nil is the empty one.
type Set struct {
	members       []*member // all, by order
	entries       []*entry
	network, http []*entry // the active ones by what they apply to, across documents
	// networkPlugins and httpPlugins are those that are no patch's.
	networkPlugins, httpPlugins []*entry
	ports                       []uint16
	inbound, outbound           bool // see Guards
	sum                         uint64
	again                       func(refused func(*Filter) string) *Set // the same set, of which other documents are withheld
}

// NewSet orders filters as Istio does, and picks what is for p. refused gives for each document why it is to be withheld, ""
// if it is not.
func NewSet(filters []*Filter, p Proxy, refused func(*Filter) string) *Set {
	if len(filters) == 0 {
		return nil
	}
	s := &Set{again: func(more func(*Filter) string) *Set {
		return NewSet(filters, p, func(f *Filter) string { return cmp.Or(refused(f), more(f)) })
	}}
	for _, f := range slices.SortedFunc(slices.Values(filters), p.order) {
		m := &member{Filter: f, refused: refused(f)}
		unselected := p.unselected(f)
		for place, patch := range f.patches {
			e := &entry{patch: patch, owner: m, id: len(s.entries), place: place, value: patch.value, reason: cmp.Or(patch.ignored, unselected, p.mismatch(patch))}
			if e.reason != "" || m.refused != "" {
				e.state = skipped
			}
			m.entries, s.entries = append(m.entries, e), append(s.entries, e)
		}
		s.members = append(s.members, m)
	}
	s.fill(p.NoWasm)
	return s
}

// Without is the set without a document, which is withheld for the reason.
func (s *Set) Without(bad *Filter, reason string) *Set {
	return s.again(func(f *Filter) string {
		if f == bad {
			return reason
		}
		return ""
	})
}

// order is that in which documents apply: plugins, and then EnvoyFilters by priority, the root namespace's first, by age, and by
// name.namespace.
func (p Proxy) order(a, b *Filter) int {
	switch {
	case a.plugin != nil && b.plugin != nil:
		return p.pluginOrder(a, b)
	case a.plugin != nil:
		return -1
	case b.plugin != nil:
		return 1
	}
	root := func(f *Filter) int {
		if f.Namespace == p.RootNamespace {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(root(a), root(b)), cmp.Compare(a.Created, b.Created),
		strings.Compare(a.Name+"."+a.Namespace, b.Name+"."+b.Namespace))
}

// unselected says why a document is for other pods, or "".
func (p Proxy) unselected(f *Filter) string {
	if f.targeted {
		return "targetRefs are for gateways and waypoints, not for a sidecar"
	}
	if f.Namespace != p.Namespace && f.Namespace != p.RootNamespace {
		return fmt.Sprintf("namespace %s is neither the pod's, %s, nor the root namespace, %s", f.Namespace, p.Namespace, p.RootNamespace)
	}
	for _, key := range slices.Sorted(maps.Keys(f.selector)) {
		if has, ok := p.Labels[key]; !ok || has != f.selector[key] {
			return fmt.Sprintf("its selector wants the label %s=%s, the pod's is %q", key, f.selector[key], has)
		}
	}
	return ""
}

// mismatch says why a patch is for other proxies, or "".
func (p Proxy) mismatch(patch *patch) string {
	version, _ := p.Metadata["ISTIO_VERSION"].(string)
	if patch.version != nil && !patch.version.MatchString(version) {
		return fmt.Sprintf("match.proxy.proxyVersion is %s, this proxy's is %q (ISTIO_META_ISTIO_VERSION)", patch.version, version)
	}
	for _, key := range slices.Sorted(maps.Keys(patch.metadata)) {
		if has, _ := p.Metadata[key].(string); has != patch.metadata[key] {
			return fmt.Sprintf("match.proxy.metadata wants %s to be %q, this proxy's is %q", key, patch.metadata[key], has)
		}
	}
	switch patch.context {
	case networking.EnvoyFilter_GATEWAY, networking.EnvoyFilter_WAYPOINT:
		return "context " + patch.context.String() + " is not that of a sidecar"
	}
	return ""
}

// fill works out the values of the active patches and what follows from them.
func (s *Set) fill(noWasm string) {
	extensions := s.extensions()
	hash := fnv.New64a()
	for _, e := range s.entries {
		if e.state == active && e.applyTo != networking.EnvoyFilter_EXTENSION_CONFIG {
			e.discover(extensions)
		}
		if _, config, _ := parts(e.value); noWasm != "" && e.state == active && isWasm(config) {
			e.skip(noWasm)
		}
		fmt.Fprintln(hash, e.owner.Sum, e.state)
		if e.state != active {
			continue
		}
		switch {
		case e.plugin != nil && e.plugin.Network:
			s.networkPlugins = append(s.networkPlugins, e)
		case e.plugin != nil:
			s.httpPlugins = append(s.httpPlugins, e)
		case e.applyTo == networking.EnvoyFilter_NETWORK_FILTER:
			s.network = append(s.network, e)
		case e.applyTo == networking.EnvoyFilter_HTTP_FILTER:
			s.http = append(s.http, e)
		}
		s.ports = append(s.ports, e.inboundPorts()...)
		s.guarded(e)
	}
	slices.Sort(s.ports)
	s.ports = slices.Compact(s.ports)
	s.sum = hash.Sum64()
}

// guarded notes whose traffic an active entry guards, if it does.
func (s *Set) guarded(e *entry) {
	_, config, _ := parts(e.value)
	switch plugin := wasmPlugin(config); {
	case e.plugin != nil && !e.plugin.Network && (plugin == nil || !failsOpen(plugin)): // without a module it is in the place of a bad document
		all := len(e.plugin.Match) == 0
		s.inbound = s.inbound || all || slices.ContainsFunc(e.plugin.Match, func(m Match) bool { return m.Server })
		s.outbound = s.outbound || all || slices.ContainsFunc(e.plugin.Match, func(m Match) bool { return m.Client })
	case e.plugin == nil && e.applyTo == networking.EnvoyFilter_HTTP_FILTER && plugin != nil && !failsOpen(plugin):
		s.inbound = s.inbound || e.context != networking.EnvoyFilter_SIDECAR_OUTBOUND
		s.outbound = s.outbound || e.context != networking.EnvoyFilter_SIDECAR_INBOUND
	}
}

// extensions are the configurations that filters may name.
func (s *Set) extensions() map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	for _, e := range s.entries {
		if e.applyTo != networking.EnvoyFilter_EXTENSION_CONFIG || e.state != active {
			continue
		}
		name, config, _ := parts(e.value)
		switch {
		case !slices.Contains(adds, e.operation):
			e.skip(e.operation.String() + " has no effect on EXTENSION_CONFIG")
		case out[name] != nil:
			e.skip(fmt.Sprintf("another patch before it adds the extension configuration %q", name))
		default:
			out[name] = config
		}
	}
	return out
}

func (e *entry) skip(reason string) { e.state, e.reason = skipped, reason }

// discover puts the configuration that a filter is to discover into its place. All of them are known here, so a listener
// need not wait for one. Sources other than this agent are Envoy's to ask.
func (e *entry) discover(extensions map[string]*anypb.Any) {
	name, _, source := parts(e.value)
	if source == nil || !ours(source.GetConfigSource()) {
		return
	}
	config := extensions[name]
	if config == nil {
		config = source.GetDefaultConfig()
	}
	if config == nil {
		e.skip(fmt.Sprintf("it wants the extension configuration %q, which no EXTENSION_CONFIG adds, and has no defaultConfig", name))
		return
	}
	e.value = proto.Clone(e.value)
	setConfig(e.value, config)
}

// ours says whether a source is the stream that the listeners come on.
func ours(source *corev3.ConfigSource) bool {
	return source == nil || source.GetConfigSourceSpecifier() == nil || source.GetAds() != nil || source.GetSelf() != nil
}

// inboundPorts are those of captured inbound traffic that a patch singles out.
func (e *entry) inboundPorts() []uint16 {
	if e.plugin != nil {
		return e.plugin.pluginPorts()
	}
	port := cmp.Or(e.match.GetFilterChain().GetDestinationPort(), e.match.GetPortNumber())
	if e.context == networking.EnvoyFilter_SIDECAR_OUTBOUND || port == 0 || port > 65535 {
		return nil
	}
	return []uint16{uint16(port)}
}

// Ports are those of inbound traffic that a patch names, sorted: each needs filter chains of its own.
func (s *Set) Ports() []uint16 {
	if s == nil {
		return nil
	}
	return s.ports
}

// Guards says whether no HTTP request of a direction may pass without a Wasm filter, which fails closed.
func (s *Set) Guards(inbound bool) bool {
	switch {
	case s == nil:
		return false
	case inbound:
		return s.inbound
	}
	return s.outbound
}

// Sum is of everything that patches depend on: two sets with one Sum patch alike.
func (s *Set) Sum() uint64 {
	if s == nil {
		return 0
	}
	return s.sum
}
