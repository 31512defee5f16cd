// Package build owns the resources that Envoy gets: clusters and listeners, made of a registry of services.
package build

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/xds"
)

// The type URLs of the resources.
const (
	ClusterType   = typePrefix + "envoy.config.cluster.v3.Cluster"
	RouteType     = typePrefix + "envoy.config.route.v3.RouteConfiguration"
	ExtensionType = typePrefix + "envoy.config.core.v3.TypedExtensionConfig"
	ListenerType  = typePrefix + "envoy.config.listener.v3.Listener"
)

// Types are the type URLs of the resources, each after those that it refers to. Those of ExtensionType are made of
// Output.Extensions by whoever has the modules, and routes are there only where hosts share a listener, see package share.
func Types() []string { return []string{ClusterType, RouteType, ExtensionType, ListenerType} }

// Output is one consistent set: every cluster that a listener names is there, and every host's addresses have their
// listeners.
type Output struct {
	Resources xds.Snapshot // the bodies are shared with later outputs: nobody may change them
	Hosts     []table.Host
	// Filters are the EnvoyFilters that made it, Patched what each did, and Extensions what listeners name of them, each name
	// once; nil without any.
	Filters    *envoyfilter.Set
	Patched    []envoyfilter.Note
	Extensions []envoyfilter.Extension
}

// Builder makes Envoy's resources and the names for DNS from registries of one Source. It is not safe for concurrent use.
//
// The same input gives the same bytes. What a service's resources are made of is hashed, and resources whose input did
// not change since the last Build are taken from there, so that the cost is that of the change.
type Builder struct {
	o      mesh.Options
	made   map[uint64]made // what the last Build made, by the hash of what it was made from
	builds uint32
	known  map[xds.ID]*xds.Stored // see Reuse
}

// made is serialized resources, and what EnvoyFilters did to them.
type made struct {
	resources []*xds.Stored
	by        *patches // nil: nothing
	build     uint32   // the last that used it
}

type patches struct {
	notes      []envoyfilter.Note
	extensions []envoyfilter.Extension
}

// New returns a builder that has built nothing yet.
func New(o mesh.Options) *Builder { return &Builder{o: o, made: map[uint64]made{}} }

// Reuse has the next Build give those resources of snap themselves that it would make again, whose bodies then are there once.
func (b *Builder) Reuse(snap xds.Snapshot) {
	b.known = make(map[xds.ID]*xds.Stored)
	for url, list := range snap {
		for _, r := range list {
			b.known[xds.ID{Type: url, Name: r.Name}] = r
		}
	}
}

// Build makes the resources of a registry and the VIPs of its AutoHosts, patched by filters. A host that wants a VIP and
// has none in vips gets clusters only: traffic to it is traffic to an unknown destination. An EnvoyFilter that makes what
// Envoy would never take is withheld as a whole, as Output.Filters says.
func (b *Builder) Build(r *mesh.Registry, vips map[string][]netip.Addr, filters *envoyfilter.Set) (*Output, error) {
	b.builds++
	defer func() {
		maps.DeleteFunc(b.made, func(_ uint64, m made) bool { return m.build != b.builds })
		b.known = nil
	}()
	hosts := r.Hosts(vips)
	for {
		m, err := newMaker(b.o)
		if err != nil {
			return nil, err
		}
		m.filters = filters
		out := &Output{Resources: xds.Snapshot{}, Hosts: hosts, Filters: filters}
		err = b.all(m, r, vips, out)
		var refused *envoyfilter.RefusedError
		if !errors.As(err, &refused) {
			return out, err
		}
		filters = filters.Without(refused.Filter, refused.Reason)
	}
}

func (b *Builder) all(m *maker, r *mesh.Registry, vips map[string][]netip.Addr, out *Output) error {
	add := func(url string, sum uint64, make func() []resource) error {
		if url == ListenerType {
			sum = mix(sum, m.filters.Sum())
		}
		made, err := b.get(m, url, sum, make)
		out.Resources[url] = append(out.Resources[url], made.resources...)
		if made.by == nil {
			return err
		}
		out.Patched = append(out.Patched, made.by.notes...)
		for _, e := range made.by.extensions {
			if !slices.ContainsFunc(out.Extensions, func(has envoyfilter.Extension) bool { return has.Name == e.Name }) {
				out.Extensions = append(out.Extensions, e)
			}
		}
		return err
	}
	const basics, clusters, listeners, shared = 1, 2, 3, 4 // keep equal sums of different kinds apart
	out.Resources[ClusterType] = make([]*xds.Stored, 0, 2*len(r.Services())+8)
	out.Resources[ListenerType] = make([]*xds.Stored, 0, 2*len(r.Services())+2)
	if err := add(ClusterType, mix(basics, clusters), m.basicClusters); err != nil {
		return err
	}
	if err := add(ListenerType, mix(basics, listeners), m.captureListeners); err != nil {
		return err
	}
	for _, s := range r.Services() {
		if err := add(ClusterType, mix(s.Sum, clusters), func() []resource { return m.clusters(s) }); err != nil {
			return fmt.Errorf("build clusters of %s: %w", s.Host, err)
		}
		addrs := r.VIPsOf(s, vips)
		if !s.WantsVIP || len(addrs) == 0 {
			continue
		}
		if err := add(ListenerType, mixAddrs(mix(s.Sum, listeners), addrs), func() []resource { return m.vipListeners(s, addrs) }); err != nil {
			return fmt.Errorf("build listeners of %s: %w", s.Host, err)
		}
	}
	for _, s := range r.Bindings() {
		if err := add(ListenerType, mix(sumOf(s), shared), func() []resource { return m.sharedListener(s) }); err != nil {
			return fmt.Errorf("build listener of port %d: %w", s.Port, err)
		}
	}
	return nil
}

// sumOf hashes all that a shared listener is made from.
func sumOf(b mesh.Binding) uint64 {
	sum := mixAddrs(uint64(b.Port), []netip.Addr{b.Addr})
	for _, s := range b.Scopes {
		sum = mix(mixAddrs(sum, []netip.Addr{s.Prefix.Addr()}), uint64(s.Prefix.Bits()+1))
		for _, m := range s.Members {
			sum = mix(sum, m.Service.Sum)
		}
	}
	return sum
}

// resource is an Envoy message before it is serialized.
type resource interface {
	proto.Message
	GetName() string
}

func (b *Builder) get(m *maker, url string, sum uint64, build func() []resource) (made, error) {
	if same, ok := b.made[sum]; ok {
		same.build = b.builds
		b.made[sum] = same
		return same, nil
	}
	resources := build()
	if m.err != nil {
		return made{}, m.err
	}
	out := made{resources: make([]*xds.Stored, len(resources)), build: b.builds}
	for i, r := range resources {
		patched, err := m.patch(r)
		if err != nil {
			return made{}, err
		}
		serialize := marshal
		if len(patched.Notes) > 0 {
			serialize = marshalAny
		}
		body, err := serialize(r)
		if err != nil {
			return made{}, fmt.Errorf("serialize %s: %w", r.GetName(), err)
		}
		out.resources[i] = xds.NewStored(r.GetName(), body)
		if known := b.known[xds.ID{Type: url, Name: r.GetName()}]; known.Equal(out.resources[i]) {
			out.resources[i] = known
		}
		if len(patched.Notes)+len(patched.Extensions) > 0 {
			if out.by == nil {
				out.by = &patches{}
			}
			out.by.notes, out.by.extensions = append(out.by.notes, patched.Notes...), append(out.by.extensions, patched.Extensions...)
		}
	}
	b.made[sum] = out
	return out, nil
}

// patch applies the EnvoyFilters to a listener. Chains that refuse connections are no patch's: they keep captured traffic
// from the agent's own ports, and connections to VIPs from other services.
func (b *maker) patch(r resource) (envoyfilter.Patched, error) {
	l, is := r.(*listenerv3.Listener)
	if !is {
		return envoyfilter.Patched{}, nil
	}
	virtual := l.GetName() == InboundListener || l.GetName() == OutboundListener
	return b.filters.Patch(l, virtual, func(c *listenerv3.FilterChain) bool { return strings.HasSuffix(c.GetName(), refusing) })
}

// mix folds v into a running hash. Its inputs are hashes of maphash already, so a multiplication spreads them enough;
// the order of what is mixed matters.
func mix(h, v uint64) uint64 {
	h = (h ^ v) * 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	return h ^ h>>29
}

func mixAddrs(h uint64, addrs []netip.Addr) uint64 {
	for _, a := range addrs {
		bytes := a.As16()
		h = mix(h, uint64(a.BitLen()))
		for i := 0; i < len(bytes); i += 4 {
			h = mix(h, uint64(bytes[i])<<24|uint64(bytes[i+1])<<16|uint64(bytes[i+2])<<8|uint64(bytes[i+3]))
		}
	}
	return h
}

// marshal serializes m to the same bytes every time. Envoy's types, built with the tag vtprotobuf, do it without
// reflection, which saves the agent the memory of every message's descriptor. (No message of ours has a map of more than
// one entry, whose order vtprotobuf would leave to chance.)
func marshal(m proto.Message) ([]byte, error) {
	if v, ok := m.(interface{ MarshalVTStrict() ([]byte, error) }); ok {
		return v.MarshalVTStrict()
	}
	return marshalAny(m)
}

// marshalAny serializes what may have maps of several entries to the same bytes every time.
func marshalAny(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
