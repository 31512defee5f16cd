package mesh

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"understudy.mesh/pkg/mesh/internal/document"
)

// claim is a port of an address or a CIDR that documents give. Nothing in a TCP connection to it tells services apart, so
// that one alone can have it; a document that wants another's is refused whole: its name would lead to the other's server.
type claim struct {
	prefix netip.Prefix
	port   uint16
}

// claimant is who has a claim.
type claimant struct {
	host string
	port ServicePort
	by   *object
}

// contested returns why obj cannot be in force beside the documents that are older, or nil; what obj claims is its own
// then. ports has those of each host of obj.
func (a *assembly) contested(obj *object, ports [][]ServicePort) *document.Error {
	var wanted map[claim]claimant
	for i, host := range obj.entry.hosts {
		for c, p := range a.claimed(obj, host, ports[i]) {
			have, taken := a.claims[c]
			if !taken {
				have, taken = wanted[c]
			}
			if taken && have.host != host && !sameTarget(have.port, p) {
				return lostTo(have, obj, host, c)
			}
			if !taken {
				if wanted == nil {
					wanted = map[claim]claimant{}
				}
				wanted[c] = claimant{host, p, obj}
			}
		}
	}
	maps.Copy(a.claims, wanted)
	return nil
}

// claimed yields what host needs once obj is in force: every TCP port of it on every address of it, whoever declared
// the one and the other.
func (a *assembly) claimed(obj *object, host string, ports []ServicePort) iter.Seq2[claim, ServicePort] {
	addresses := obj.entry.addresses
	if s := a.byHost[host]; s != nil {
		if a.keepsVIP(s, obj) {
			addresses = nil
		}
		addresses = append(slices.Clip(addresses), s.addresses...)
		ports = append(slices.Clip(s.Ports), ports...)
	}
	return func(yield func(claim, ServicePort) bool) {
		for _, prefix := range addresses {
			for _, p := range ports {
				if prefix.IsValid() && p.Protocol == ProtoTCP && !yield(claim{prefix, p.Number}, p) {
					return
				}
			}
		}
	}
}

// lostTo says that host, of obj, cannot have c.
func lostTo(have claimant, obj *object, host string, c claim) *document.Error {
	at := "the CIDR " + c.prefix.String()
	if c.prefix.IsSingleIP() {
		at = c.prefix.Addr().String()
	}
	if have.by == obj {
		return document.Errorf(portField(obj, c.port), "TCP port %d of %s and of %s is on %s, and nothing in a connection tells the two apart; declare them with addresses of their own",
			c.port, have.host, host, at)
	}
	field := "spec.addresses"
	if slices.ContainsFunc(obj.entry.ports, func(p Port) bool { return p.Number == c.port }) {
		field = portField(obj, c.port)
	}
	return document.Errorf(field, "TCP port %d of %s on %s goes to %s already, by ServiceEntry %s/%s, which is older; nothing of this document is in force: give its hosts other spec.addresses, or none and turn on automatic ones (ISTIO_META_DNS_AUTO_ALLOCATE)",
		c.port, host, at, have.host, have.by.namespace, have.by.name)
}

// sameTarget says whether connections to the two end at the same place, so that it makes no difference whose they are.
func sameTarget(p, q ServicePort) bool {
	return p.Resolution == q.Resolution && (p.Resolution == ResolveNone ||
		slices.EqualFunc(p.Endpoints, q.Endpoints, func(x, y Endpoint) bool {
			return x.Address == y.Address && x.On(p.Port) == y.On(q.Port)
		}))
}

// declarer returns the document that gave s a port.
func (a *assembly) declarer(s *Service, number uint16) *object {
	return cmp.Or(a.joined[s][number], a.owner[s])
}

// portField is the path of a port in the document that declares it.
func portField(obj *object, number uint16) string {
	return indexed("spec.ports", slices.IndexFunc(obj.entry.ports, func(p Port) bool { return p.Number == number }))
}
