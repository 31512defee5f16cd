package mesh

import (
	"net/netip"
	"slices"

	"understudy.mesh/pkg/mesh/internal/document"
)

// merge adds the ports of a later entry for the same host, as Istio does: new ports are added, endpoints of the same
// port are put together within one namespace, and where the two contradict each other the older entry wins.
func (a *assembly) merge(s *service, obj *object, ports []servicePort) {
	s.ports = slices.Clone(s.ports)
	addresses, ports := a.besideVIP(s, obj, ports)
	for _, p := range ports {
		first := a.declarer(s, p.number)
		at := slices.IndexFunc(s.ports, func(have servicePort) bool { return have.number == p.number })
		switch {
		case at < 0:
			s.ports = append(s.ports, p)
			s.none = s.none || p.resolution == resolveNone
			if a.joined[s] == nil {
				a.joined[s] = map[uint16]*object{}
			}
			a.joined[s][p.number] = obj
		case s.ports[at].protocol != p.protocol || s.ports[at].resolution != p.resolution:
			have := s.ports[at]
			a.except(obj, document.Errorf(portField(obj, p.number), "port %d of %s is %s with resolution %s in ServiceEntry %s/%s, which is older, and %s with %s here: the older one counts; make them agree",
				p.number, s.host, have.protocol, have.resolution, first.namespace, first.name, p.protocol, p.resolution))
		case s.namespace != obj.namespace:
			a.except(obj, document.Errorf(portField(obj, p.number), "port %d of %s is declared in another namespace, by ServiceEntry %s/%s, which is older and counts; remove one of the two",
				p.number, s.host, first.namespace, first.name))
		case p.resolution == resolveDNSRR && !slices.EqualFunc(s.ports[at].endpoints, p.endpoints, sameEndpoint):
			a.except(obj, document.Errorf(portField(obj, p.number), "port %d of %s has another endpoint in ServiceEntry %s/%s, which is older and counts, as resolution DNS_ROUND_ROBIN takes one only; say resolution DNS",
				p.number, s.host, first.namespace, first.name))
		default:
			s.ports[at].endpoints = union(s.ports[at].endpoints, p.endpoints)
		}
	}
	for _, p := range addresses {
		if !slices.Contains(s.addresses, p) {
			s.addresses = append(slices.Clip(s.addresses), p)
		}
	}
}

// besideVIP returns what of obj's addresses and ports s can have. What would take the VIP of an older document's from s
// and leave it without a name, it can not have.
func (a *assembly) besideVIP(s *service, obj *object, ports []servicePort) ([]netip.Prefix, []servicePort) {
	if !a.keepsVIP(s, obj) {
		return obj.entry.addresses, ports
	}
	first := a.owner[s]
	if len(obj.entry.addresses) > 0 {
		a.except(obj, document.Errorf("spec.addresses", "has no single address for %s, which has an automatic one for ServiceEntry %s/%s, which is older, so that they do not count; give the host a single address too",
			s.host, first.namespace, first.name))
	}
	return nil, slices.DeleteFunc(slices.Clone(ports), func(p servicePort) bool {
		if p.resolution != resolveNone || s.has(p.number) {
			return false
		}
		a.except(obj, document.Errorf(portField(obj, p.number), "port %d of %s has resolution NONE, which needs the address of a server, and the host has an automatic one for ServiceEntry %s/%s, which is older: the port is left out; give the host addresses, or say another resolution",
			p.number, s.host, first.namespace, first.name))
		return true
	})
}

// keepsVIP says whether s has a VIP that obj gives it no address in the place of.
func (a *assembly) keepsVIP(s *service, obj *object) bool {
	return s.needsVIP(a.o) && !slices.ContainsFunc(obj.entry.addresses, func(p netip.Prefix) bool { return p.IsSingleIP() })
}

func (s *service) has(number uint16) bool {
	return slices.ContainsFunc(s.ports, func(p servicePort) bool { return p.number == number })
}

// union returns the endpoints of a, and those of b that a has not.
func union(a, b []endpoint) []endpoint {
	out := slices.Clip(a)
	for _, ep := range b {
		if !slices.ContainsFunc(a, func(have endpoint) bool { return sameEndpoint(have, ep) }) {
			out = append(out, ep)
		}
	}
	return out
}

func sameEndpoint(a, b endpoint) bool {
	return a.address == b.address && slices.Equal(a.ports, b.ports)
}
