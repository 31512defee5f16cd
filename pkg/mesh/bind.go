package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"understudy.mesh/pkg/mesh/internal/document"
)

// place is the key of a binding.
type place struct {
	addr netip.Addr
	port uint16
}

func (p place) compare(q place) int {
	return cmp.Or(p.addr.Compare(q.addr), cmp.Compare(p.port, q.port))
}

func comparePrefixes(p, q netip.Prefix) int {
	return cmp.Or(p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()))
}

// bind lays out the listeners of the services that have no VIP, and reports the ports that cannot have theirs.
func (a *assembly) bind() []Binding {
	at := map[place]map[netip.Prefix][]Member{}
	put := func(pl place, prefix netip.Prefix, m Member) {
		if at[pl] == nil {
			at[pl] = map[netip.Prefix][]Member{}
		}
		at[pl][prefix] = append(at[pl][prefix], m)
	}
	for _, s := range a.services {
		if s.WantsVIP {
			continue
		}
		for _, p := range s.Ports {
			if p.Protocol == ProtoUDP {
				continue
			}
			for _, prefix := range s.destinations(a.o) {
				own := prefix.IsValid() && prefix.IsSingleIP()
				switch {
				case a.o.reserved(p.Number) && (!own || prefix.Addr().IsLoopback()):
					obj := a.declarer(s, p.Number)
					a.except(obj, document.Errorf(portField(obj, p.Number)+".number", "%d belongs to the agent or Envoy, and %s has no address of its own to tell it apart: the port is not captured; give the host an address in spec.addresses", p.Number, s.Host))
				case own:
					put(place{prefix.Addr(), p.Number}, netip.Prefix{}, Member{s, p})
				default:
					put(place{port: p.Number}, prefix, Member{s, p})
				}
			}
		}
	}
	var exact, wild []Binding
	// In order, so that the same documents give the same report.
	for _, pl := range slices.SortedFunc(maps.Keys(at), place.compare) {
		b := Binding{Addr: pl.addr, Port: pl.port}
		for _, prefix := range slices.SortedFunc(maps.Keys(at[pl]), comparePrefixes) {
			b.Scopes = append(b.Scopes, Scope{prefix, a.oneTCP(at[pl][prefix])})
		}
		if pl.addr.IsValid() {
			exact = append(exact, b)
		} else {
			wild = append(wild, b)
		}
	}
	return append(exact, wild...)
}

// destinations returns what identifies the service by destination address: its addresses and CIDRs of the families
// that the pod has, or the zero prefix, any address, when it declares none.
func (s *Service) destinations(o *Options) []netip.Prefix {
	if len(s.addresses) == 0 {
		return []netip.Prefix{{}}
	}
	return slices.DeleteFunc(slices.Clone(s.addresses), func(p netip.Prefix) bool { return p.IsValid() && !o.HasFamily(p.Addr()) })
}

// oneTCP leaves the oldest plain TCP service of those that share a port, since nothing in a TCP connection tells them
// apart, and reports the others where that makes a difference. Those that share a port of an address that documents
// give went before, see contested.
func (a *assembly) oneTCP(members []Member) []Member {
	var first *Member
	return slices.DeleteFunc(members, func(m Member) bool {
		if m.Port.Protocol != ProtoTCP {
			return false
		}
		if first == nil {
			first = &m
			return false
		}
		if !sameTarget(m.Port, first.Port) {
			winner, loser := a.declarer(first.Service, m.Port.Number), a.declarer(m.Service, m.Port.Number)
			a.except(loser, document.Errorf(portField(loser, m.Port.Number), "TCP port %d of %s has no address to tell it apart, so that connections to it reach %s, by ServiceEntry %s/%s, which is older; give the hosts different spec.addresses, or turn on automatic addresses (ISTIO_META_DNS_AUTO_ALLOCATE)",
				m.Port.Number, m.Service.Host, first.Service.Host, winner.namespace, winner.name))
		}
		return true
	})
}

func indexed(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
