package mesh

import (
	"net/netip"
	"slices"

	"understudy.mesh/pkg/mesh/internal/document"
)

// merge adds the ports of a later entry for the same host, as Istio does: new ports are added, endpoints of the same
// port are put together within one namespace, and where the two contradict each other the older entry wins.
func (a *assembly) merge(s *Service, obj *object, ports []ServicePort) {
	s.Ports = slices.Clone(s.Ports)
	addresses, ports := a.besideVIP(s, obj, ports)
	for _, p := range ports {
		first := a.declarer(s, p.Number)
		at := slices.IndexFunc(s.Ports, func(have ServicePort) bool { return have.Number == p.Number })
		switch {
		case at < 0:
			s.Ports = append(s.Ports, p)
			s.none = s.none || p.Resolution == ResolveNone
			if a.joined[s] == nil {
				a.joined[s] = map[uint16]*object{}
			}
			a.joined[s][p.Number] = obj
		case s.Ports[at].Protocol != p.Protocol || s.Ports[at].Resolution != p.Resolution:
			have := s.Ports[at]
			a.except(obj, document.Errorf(portField(obj, p.Number), "port %d of %s is %s with resolution %s in ServiceEntry %s/%s, which is older, and %s with %s here: the older one counts; make them agree",
				p.Number, s.Host, have.Protocol, have.Resolution, first.namespace, first.name, p.Protocol, p.Resolution))
		case s.namespace != obj.namespace:
			a.except(obj, document.Errorf(portField(obj, p.Number), "port %d of %s is declared in another namespace, by ServiceEntry %s/%s, which is older and counts; remove one of the two",
				p.Number, s.Host, first.namespace, first.name))
		case p.Resolution == ResolveDNSRR && !slices.EqualFunc(s.Ports[at].Endpoints, p.Endpoints, sameEndpoint):
			a.except(obj, document.Errorf(portField(obj, p.Number), "port %d of %s has another endpoint in ServiceEntry %s/%s, which is older and counts, as resolution DNS_ROUND_ROBIN takes one only; say resolution DNS",
				p.Number, s.Host, first.namespace, first.name))
		default:
			s.Ports[at].Endpoints = union(s.Ports[at].Endpoints, p.Endpoints)
		}
	}
	for _, p := range addresses {
		if !slices.Contains(s.addresses, p) {
			s.addresses = append(slices.Clip(s.addresses), p)
		}
	}
}

// besideVIP returns what of obj's addresses and ports s can have. What would take the VIP of an older document's from s
// and leave it without a name, it cannot have.
func (a *assembly) besideVIP(s *Service, obj *object, ports []ServicePort) ([]netip.Prefix, []ServicePort) {
	if !a.keepsVIP(s, obj) {
		return obj.entry.addresses, ports
	}
	first := a.owner[s]
	if len(obj.entry.addresses) > 0 {
		a.except(obj, document.Errorf("spec.addresses", "has no single address for %s, which has an automatic one for ServiceEntry %s/%s, which is older, so that they do not count; give the host a single address too",
			s.Host, first.namespace, first.name))
	}
	return nil, slices.DeleteFunc(slices.Clone(ports), func(p ServicePort) bool {
		if p.Resolution != ResolveNone || s.has(p.Number) {
			return false
		}
		a.except(obj, document.Errorf(portField(obj, p.Number), "port %d of %s has resolution NONE, which needs the address of a server, and the host has an automatic one for ServiceEntry %s/%s, which is older: the port is left out; give the host addresses, or say another resolution",
			p.Number, s.Host, first.namespace, first.name))
		return true
	})
}

// keepsVIP says whether s has a VIP that obj gives it no address in the place of.
func (a *assembly) keepsVIP(s *Service, obj *object) bool {
	return s.needsVIP(a.o) && !slices.ContainsFunc(obj.entry.addresses, func(p netip.Prefix) bool { return p.IsSingleIP() })
}

func (s *Service) has(number uint16) bool {
	return slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Number == number })
}

// union returns the endpoints of a, and those of b that a has not.
func union(a, b []Endpoint) []Endpoint {
	out := slices.Clip(a)
	for _, ep := range b {
		if !slices.ContainsFunc(a, func(have Endpoint) bool { return sameEndpoint(have, ep) }) {
			out = append(out, ep)
		}
	}
	return out
}

func sameEndpoint(a, b Endpoint) bool {
	return a.Address == b.Address && slices.Equal(a.ports, b.ports)
}
