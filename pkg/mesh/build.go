package mesh

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"

	"google.golang.org/protobuf/proto"
)

// Message is one serialized Envoy resource: an envoy.config.cluster.v3.Cluster or envoy.config.listener.v3.Listener.
type Message struct {
	Name string
	Body []byte // shared with later outputs; nobody may change it
}

// Output is one consistent set: every cluster that a listener names is there, and every host's addresses have their
// listeners.
type Output struct {
	Clusters, Listeners []Message
	Hosts               []Host
}

// Build makes Envoy's resources and the names for DNS from a registry and the VIPs of its AutoHosts. A host that wants
// a VIP and has none in vips gets clusters only: traffic to it is traffic to an unknown destination.
//
// The same input gives the same bytes. What a service's resources are made of is hashed, and resources whose input did
// not change since the registry's Source last built are taken from there, so that the cost is that of the change.
func Build(r *Registry, vips map[string][]netip.Addr, o Options) (*Output, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	r.memo.mu.Lock()
	defer r.memo.mu.Unlock()
	b, err := newBuilder(o)
	if err != nil {
		return nil, err
	}
	r.memo.begin(o, b.dynamicCache.Name)
	defer r.memo.end()
	out := &Output{Hosts: r.Hosts(vips)}
	if err := b.all(r, vips, out); err != nil {
		return nil, err
	}
	return out, nil
}

func (b *builder) all(r *Registry, vips map[string][]netip.Addr, out *Output) error {
	add := func(into *[]Message, sum uint64, make func() ([]resource, error)) error {
		msgs, err := r.memo.get(sum, make)
		*into = append(*into, msgs...)
		return err
	}
	const basics, clusters, listeners, shared = 1, 2, 3, 4 // keep equal sums of different kinds apart
	out.Clusters = make([]Message, 0, 2*len(r.services)+8)
	out.Listeners = make([]Message, 0, 2*len(r.services)+2)
	if err := add(&out.Clusters, mix(basics, clusters), b.basicClusters); err != nil {
		return err
	}
	if err := add(&out.Listeners, mix(basics, listeners), b.captureListeners); err != nil {
		return err
	}
	taken := r.taken()
	for _, s := range r.services {
		if err := add(&out.Clusters, mix(s.sum, clusters), func() ([]resource, error) { return b.clusters(s) }); err != nil {
			return fmt.Errorf("build clusters of %s: %w", s.host, err)
		}
		addrs := r.vipsOf(s, vips, taken)
		if !s.wantsVIP || len(addrs) == 0 {
			continue
		}
		if err := add(&out.Listeners, mixAddrs(mix(s.sum, listeners), addrs), func() ([]resource, error) { return b.vipListeners(s, addrs) }); err != nil {
			return fmt.Errorf("build listeners of %s: %w", s.host, err)
		}
	}
	for _, shares := range [][]binding{r.exact, r.wild} {
		for _, s := range shares {
			if err := add(&out.Listeners, mix(s.sum(), shared), func() ([]resource, error) { return b.sharedListener(s) }); err != nil {
				return fmt.Errorf("build listener of port %d: %w", s.port, err)
			}
		}
	}
	return nil
}

// sum hashes all that a shared listener is made from.
func (b *binding) sum() uint64 {
	sum := mixAddrs(uint64(b.port), []netip.Addr{b.addr})
	for _, s := range b.scopes {
		sum = mix(mixAddrs(sum, []netip.Addr{s.prefix.Addr()}), uint64(s.prefix.Bits()+1))
		for _, m := range s.members {
			sum = mix(sum, m.service.sum)
		}
	}
	return sum
}

// resource is an Envoy message before it is serialized.
type resource interface {
	proto.Message
	GetName() string
}

// memo keeps the serialized resources of the last Build by the hash of what they were made from.
type memo struct {
	seed maphash.Seed

	mu        sync.Mutex
	options   string // what the resources were built with
	last, now map[uint64][]Message
}

func newMemo() *memo { return &memo{seed: maphash.MakeSeed()} }

func (m *memo) hash(s string) uint64 { return maphash.String(m.seed, s) }

// begin begins a build with o; cache is the name of the cache of names, which says what is in o.DNSResolver.
func (m *memo) begin(o Options, cache string) {
	o.Now, o.DNSResolver = nil, nil // a function and a pointer have no value to compare
	if options := fmt.Sprintf("%+v %s", o, cache); options != m.options {
		m.options, m.now = options, nil
	}
	m.last, m.now = m.now, make(map[uint64][]Message, len(m.now))
}

// end forgets what this build did not use.
func (m *memo) end() { m.last = nil }

func (m *memo) get(sum uint64, build func() ([]resource, error)) ([]Message, error) {
	if msgs, ok := m.last[sum]; ok {
		m.now[sum] = msgs
		return msgs, nil
	}
	resources, err := build()
	if err != nil {
		return nil, err
	}
	msgs := make([]Message, len(resources))
	for i, r := range resources {
		body, err := marshal(r)
		if err != nil {
			return nil, fmt.Errorf("serialize %s: %w", r.GetName(), err)
		}
		msgs[i] = Message{Name: r.GetName(), Body: body}
	}
	m.now[sum] = msgs
	return msgs, nil
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

// strictMarshaler is what Envoy's types have when they are built with the tag vtprotobuf: serialization without
// reflection, which saves the agent the memory of every message's descriptor.
type strictMarshaler interface{ MarshalVTStrict() ([]byte, error) }

// marshal serializes m to the same bytes every time. (No message of ours has a map of more than one entry, whose order
// vtprotobuf would leave to chance.)
func marshal(m proto.Message) ([]byte, error) {
	if v, ok := m.(strictMarshaler); ok {
		return v.MarshalVTStrict()
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
