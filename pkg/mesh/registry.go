package mesh

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/internal/document"
)

// Registry is the services that a good state of the directory declares: validated, merged by host, compact. It is
// immutable and safe for concurrent use.
type Registry struct {
	services []*Service            // by host
	bindings []Binding             // see Bindings
	filters  []*envoyfilter.Filter // see EnvoyFilters
	sum      uint64                // two registries of one Source with the same sum are the same
	taken    map[netip.Addr]bool   // single addresses of Declared
	madeOf   Digest                // see MadeOf
	o        Options
}

// Service is one host and what serves it.
type Service struct {
	Host      string
	namespace string // of the oldest entry that declares it
	Sum       uint64 // of everything that the service was made from
	addresses []netip.Prefix
	Ports     []ServicePort // by the age of the entry, then in its order
	none      bool          // an entry has resolution NONE
	WantsVIP  bool
}

// IsPartial says whether the host is a wildcard within its first label, which neither SNI nor DNS tells.
func (s *Service) IsPartial() bool { return isPartial(s.Host) }

// ServicePort is one port of a service.
type ServicePort struct {
	Port
	Resolution Resolution
	Endpoints  []Endpoint
}

// Binding is one shared listener: an address and a port, or, without an address, a port on every address.
type Binding struct {
	Addr   netip.Addr
	Port   uint16
	Scopes []Scope // by prefix; just one, without a prefix, when there is an address
}

// Scope is the services that share the destination addresses of prefix; no prefix means all addresses.
type Scope struct {
	Prefix  netip.Prefix
	Members []Member // oldest first
}

// Member is a port of a service, beside those with which it shares a listener.
type Member struct {
	Service *Service
	Port    ServicePort
}

// assembly is a Registry in the making.
type assembly struct {
	o         *Options
	seed      maphash.Seed
	report    func(*object, verdict)
	workloads map[string][]*object // by namespace
	byHost    map[string]*Service
	owner     map[*Service]*object            // the document that declared it first
	joined    map[*Service]map[uint16]*object // those that gave it a port later
	claims    map[claim]claimant
	services  []*Service // oldest first
}

// verdict is what other documents keep from being in force: all of a document, or what the error names of it.
type verdict struct {
	*document.Error
	whole bool
}

// except reports that a part of obj is not in force, because of what other documents say.
func (a *assembly) except(obj *object, err *document.Error) { a.report(obj, verdict{Error: err}) }

// newRegistry merges good documents into services. Conflicts go to report, with the document that lost.
func newRegistry(objects []*object, o Options, seed maphash.Seed, report func(*object, verdict)) *Registry {
	slices.SortFunc(objects, older)
	a := &assembly{
		o: &o, seed: seed, report: report, workloads: map[string][]*object{},
		byHost: make(map[string]*Service, len(objects)), owner: make(map[*Service]*object, len(objects)),
		joined: map[*Service]map[uint16]*object{}, claims: map[claim]claimant{},
	}
	for _, obj := range objects {
		if obj.workload != nil {
			a.workloads[obj.namespace] = append(a.workloads[obj.namespace], obj)
		}
	}
	for _, obj := range objects {
		if obj.entry != nil && visible(obj, o.Namespace) {
			a.add(obj)
		}
	}
	r := &Registry{o: o, taken: map[netip.Addr]bool{}}
	for _, s := range a.services {
		s.WantsVIP = s.needsVIP(&o)
	}
	r.bindings = a.bind()
	r.services = a.services
	slices.SortFunc(r.services, func(x, y *Service) int { return cmp.Compare(x.Host, y.Host) })
	for _, s := range r.services {
		r.sum = a.mix(r.sum, s.Sum)
	}
	for _, obj := range objects {
		if obj.filter != nil {
			r.filters = append(r.filters, obj.filter)
			r.sum = a.mix(r.sum, obj.sum)
		}
	}
	for _, p := range r.Declared() {
		if p.IsSingleIP() {
			r.taken[p.Addr()] = true
		}
	}
	return r
}

// mix folds v into a running hash; the order of what is mixed matters.
func (a *assembly) mix(h, v uint64) uint64 { return maphash.Comparable(a.seed, [2]uint64{h, v}) }

// Services returns the services by host.
func (r *Registry) Services() []*Service { return r.services }

// Bindings returns the listeners of services without a VIP: first those of addresses that the documents give, by address
// and port, then those of ports on any address.
func (r *Registry) Bindings() []Binding { return r.bindings }

// EnvoyFilters returns the good EnvoyFilters of all namespaces, oldest first.
func (r *Registry) EnvoyFilters() []*envoyfilter.Filter { return r.filters }

// needsVIP says whether the documents so far leave the service without an address that one of ours could be.
func (s *Service) needsVIP(o *Options) bool {
	return o.AutoAllocate && len(s.addresses) == 0 && !s.none && !isWildcard(s.Host) && s.captured()
}

// captured says whether Envoy serves any port of the service. A VIP without one would be a black hole.
func (s *Service) captured() bool {
	return slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Protocol != ProtoUDP })
}

// visible applies exportTo: "*" or nothing is everybody, "." the entry's own namespace, "~" nobody.
func visible(obj *object, namespace string) bool {
	return len(obj.entry.exportTo) == 0 || slices.ContainsFunc(obj.entry.exportTo, func(to string) bool {
		return to == "*" || to == namespace || (to == "." && obj.namespace == namespace)
	})
}

// add adds the hosts of one entry, all or none.
func (a *assembly) add(obj *object) {
	e := obj.entry
	endpoints, sum := e.endpoints, obj.sum
	if e.selector != nil {
		endpoints, sum = a.selected(obj)
	}
	shared := make([]ServicePort, len(e.ports))
	for i, p := range e.ports {
		shared[i] = ServicePort{Port: p, Resolution: e.resolution, Endpoints: endpoints}
	}
	ports := make([][]ServicePort, len(e.hosts))
	for i, host := range e.hosts {
		ports[i] = shared
		if e.itself {
			ports[i] = resolvingItself(shared, host)
		}
	}
	if err := a.contested(obj, ports); err != nil {
		a.report(obj, verdict{err, true})
		return
	}
	for i, host := range e.hosts {
		if s := a.byHost[host]; s != nil {
			a.merge(s, obj, ports[i])
			s.Sum = a.mix(s.Sum, sum)
			continue
		}
		s := &Service{
			Host: host, namespace: obj.namespace, Sum: a.mix(maphash.String(a.seed, host), sum),
			addresses: e.addresses, Ports: ports[i], none: e.resolution == ResolveNone,
		}
		a.byHost[host], a.owner[s] = s, obj
		a.services = append(a.services, s)
	}
}

// resolvingItself gives DNS ports without endpoints the host as their endpoint.
func resolvingItself(ports []ServicePort, host string) []ServicePort {
	out := slices.Clone(ports)
	for i := range out {
		out[i].Endpoints = []Endpoint{{Address: host}}
	}
	return out
}

// selected returns the endpoints of the WorkloadEntries that an entry selects, and the hash of all that went in.
func (a *assembly) selected(obj *object) ([]Endpoint, uint64) {
	out, sum := []Endpoint{}, obj.sum
	for _, w := range a.workloads[obj.namespace] {
		if !matches(obj.entry.selector, w.workload.labels) {
			continue
		}
		ep := w.workload.endpoint
		if reason := unfit(ep, obj.entry); reason != "" {
			a.except(obj, document.Errorf("spec.workloadSelector", "selects WorkloadEntry %s/%s, which is left out: its address %s", w.namespace, w.name, reason))
			continue
		}
		if obj.entry.resolution == ResolveDNSRR && len(out) > 0 {
			a.except(obj, document.Errorf("spec.workloadSelector", "selects WorkloadEntry %s/%s too, which is left out: resolution DNS_ROUND_ROBIN takes one only, the oldest; say resolution DNS", w.namespace, w.name))
			continue
		}
		out, sum = append(out, ep), a.mix(sum, w.sum)
	}
	return out, sum
}

// unfit says why an entry cannot use a workload's endpoint, or "".
func unfit(ep Endpoint, e *entry) string {
	_, err := netip.ParseAddr(ep.Address)
	switch {
	case ep.Address == "":
		return "is missing, and nothing here leads to another network"
	case ep.isUnix() && e.resolution != ResolveStatic:
		return ep.Address + " needs resolution STATIC"
	case ep.isUnix() && len(e.ports) != 1:
		return ep.Address + " needs an entry with exactly one port"
	case !ep.isUnix() && err != nil && e.resolution == ResolveStatic:
		return ep.Address + " is a name, which needs resolution DNS"
	}
	return ""
}

// AutoHosts returns the hosts that want a VIP, sorted: those without an address, but for wildcards, for resolution NONE,
// for entries whose addresses are all CIDRs, and for hosts without a TCP port. It is empty unless Options.AutoAllocate.
func (r *Registry) AutoHosts() []string {
	var out []string
	for _, s := range r.services {
		if s.WantsVIP {
			out = append(out, s.Host)
		}
	}
	return out
}

// Hosts returns the names that DNS must answer, sorted, with the addresses that the documents give or, where they give
// none, those of vips. Hosts with neither are there only if [table.Owned] has them.
func (r *Registry) Hosts(vips map[string][]netip.Addr) []table.Host {
	out := make([]table.Host, 0, len(r.services))
	for _, s := range r.services {
		h := table.Host{Name: s.Host}
		if s.WantsVIP {
			h.Addrs, h.VIP = r.VIPsOf(s, vips), true
		} else {
			h.Addrs = s.singles()
		}
		h.VIP, h.Forwarded = h.VIP && len(h.Addrs) > 0, len(h.Addrs) == 0
		if !s.IsPartial() {
			out = append(out, h)
		}
	}
	return table.Owned(out)
}

// singles returns the service's declared addresses, CIDRs apart, whatever families the pod has: what they are good for
// the application finds out by them, as it would without us.
func (s *Service) singles() []netip.Addr {
	var out []netip.Addr
	for _, p := range s.addresses {
		if p.IsSingleIP() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// VIPsOf returns the VIPs of a service that can be used: an address that a document declares beats one that we gave.
func (r *Registry) VIPsOf(s *Service, vips map[string][]netip.Addr) []netip.Addr {
	usable := func(a netip.Addr) bool { return r.o.HasFamily(a) && !r.taken[a] }
	all := vips[s.Host]
	if !slices.ContainsFunc(all, func(a netip.Addr) bool { return !usable(a) }) {
		return all // nearly always, and 10,000 copies fewer
	}
	return slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return !usable(a) })
}

// Declared returns the addresses and CIDRs within the VIP ranges that documents give, sorted. No host of AutoHosts can
// have one of these as its VIP. A CIDR as large as a range, or larger, leaves the range to the VIPs and is not returned.
func (r *Registry) Declared() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range r.services {
		for _, p := range s.addresses {
			if slices.ContainsFunc(r.o.VIPRanges, func(vips netip.Prefix) bool { return p.IsValid() && vips.Contains(p.Addr()) && p.Bits() > vips.Bits() }) {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}
