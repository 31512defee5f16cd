// Package share owns the shape in which Envoy gets the listeners of HTTP hosts that have addresses for themselves: one for
// each port, 0.0.0.0_80 as Istio calls it, in the place of one for each address and port. Envoy compares each listener
// that comes with all others, and each connection manager has its own memory: ten thousand of them take Envoy ten times as
// long to start with as one that tells ten thousand addresses apart.
//
// It stands between what is to be in force, which stays in terms of a host's own listener, and Envoy: so a host's name,
// what is kept for the time of an answer, and what a successor is told do not depend on the shape.
package share

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"

	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/xds"
)

// Sharer gives an Envoy shared listeners in the place of those of one address each. It is made by New, and not safe for
// concurrent use.
type Sharer struct {
	server   *xds.Server
	taken    []uint16
	log      *slog.Logger
	outbound *outbound
	seen     map[string]seen // by the name of the listener
	ports    map[uint16]*port
}

// seen is what a listener was found to be.
type seen struct {
	body   []byte
	member *member // nil: it stays as it is
}

// port is the shared listener of a port, and its routes.
type port struct {
	there           []byte // the listener that takes the port on every address, if there is one
	members         []*member
	accepted        []*member // those of the version that Envoy took last
	listener, route xds.Resource
}

// New returns a sharer for the Envoys of a server. It leaves listeners on taken ports as they are: others bind them.
func New(server *xds.Server, taken []uint16, log *slog.Logger) *Sharer {
	return &Sharer{server: server, taken: taken, log: log, seen: map[string]seen{}, ports: map[uint16]*port{}}
}

// Set is that of the server, with what snap becomes with shared listeners.
func (s *Sharer) Set(snap xds.Snapshot) uint64 {
	shared, err := s.share(snap)
	if err != nil {
		s.log.Error("each address has a listener of its own, as it cannot share one", "err", err)
		s.ports, shared = map[uint16]*port{}, snap
	}
	return s.server.Set(shared)
}

// Applied is that of the server, in terms of what Set was given last.
func (s *Sharer) Applied(ctx context.Context, version uint64) error {
	return s.answer(s.server.Applied(ctx, version))
}

// share returns snap with shared listeners in the place of those that can be shared. Where nothing changed since the last
// call, nothing is made.
func (s *Sharer) share(snap xds.Snapshot) (xds.Snapshot, error) {
	listeners := make([]xds.Resource, 0, len(snap[build.ListenerType]))
	groups, others := map[uint16][]*member{}, map[string][]byte{}
	last, fresh := s.seen, map[uint16]bool{}
	s.seen = make(map[string]seen, len(snap[build.ListenerType]))
	for _, r := range snap[build.ListenerType] {
		now, hit := last[r.Name]
		if !hit || !sameBytes(now.body, r.Body) {
			now, hit = seen{r.Body, scan(r)}, false
		}
		s.seen[r.Name] = now
		if m := now.member; m != nil && !slices.Contains(s.taken, m.port) {
			groups[m.port] = append(groups[m.port], m)
			fresh[m.port] = fresh[m.port] || !hit
			continue
		}
		others[r.Name] = r.Body
		listeners = append(listeners, r)
	}
	changed, err := s.setOutbound(others[build.OutboundListener])
	if err != nil || s.outbound == nil {
		return snap, err
	}
	out, ports := maps.Clone(snap), make(map[uint16]*port, len(groups))
	for _, number := range slices.Sorted(maps.Keys(groups)) {
		p, there := s.ports[number], others[s.outbound.listenerName(number)]
		if p == nil || changed || fresh[number] || len(p.members) != len(groups[number]) || !sameBytes(p.there, there) {
			made, err := s.outbound.port(number, groups[number], there)
			if err != nil {
				return nil, fmt.Errorf("make the listener of port %d: %w", number, err)
			}
			if p != nil {
				made.accepted = p.accepted
			}
			p = made
		}
		ports[number] = p
		listeners = slices.DeleteFunc(listeners, func(r xds.Resource) bool { return r.Name == p.listener.Name })
		listeners = append(listeners, p.listener)
		out[build.RouteType] = append(out[build.RouteType], p.route)
	}
	s.ports, out[build.ListenerType] = ports, listeners
	return out, nil
}

func (s *Sharer) setOutbound(body []byte) (changed bool, err error) {
	switch {
	case body == nil:
		changed, s.outbound = s.outbound != nil, nil
	case s.outbound == nil || !sameBytes(s.outbound.body, body):
		changed = true
		s.outbound, err = newOutbound(body)
	}
	return changed, err
}

// sameBytes says whether a and b are the same array, which nobody changes.
func sameBytes(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// answer is what Envoy's answer to what share returned last means for what share was given: a shared listener or its routes
// that Envoy refuses are refused for each listener in their place, and kept for those that were there in the version before.
func (s *Sharer) answer(err error) error {
	var refused *xds.RejectedError
	if err != nil && !errors.As(err, &refused) {
		return err
	}
	if refused == nil {
		for _, p := range s.ports {
			p.accepted = p.members
		}
		return nil
	}
	all := *refused
	all.Resources, all.Kept = slices.Clone(refused.Resources), slices.Clone(refused.Kept)
	for _, p := range s.ports {
		shared := func(id xds.ID) bool {
			return id == xds.ID{Type: build.ListenerType, Name: p.listener.Name} || id == xds.ID{Type: build.RouteType, Name: p.route.Name}
		}
		lacks := slices.ContainsFunc(refused.Missing(), shared)
		if !slices.ContainsFunc(refused.Resources, shared) {
			p.accepted = p.members
			continue
		}
		all.Resources, all.Kept = slices.DeleteFunc(all.Resources, shared), slices.DeleteFunc(all.Kept, shared)
		if p.there != nil {
			all.Resources = append(all.Resources, xds.ID{Type: build.ListenerType, Name: p.listener.Name})
			if !lacks {
				all.Kept = append(all.Kept, xds.ID{Type: build.ListenerType, Name: p.listener.Name})
			}
		}
		for _, m := range p.members {
			all.Resources = append(all.Resources, m.id())
		}
		if lacks {
			continue
		}
		had := make(map[string]bool, len(p.accepted))
		for _, m := range p.accepted {
			had[m.name] = true
		}
		for _, m := range p.members {
			if had[m.name] {
				all.Kept = append(all.Kept, m.id())
			}
		}
	}
	return &all
}

// member is a listener of one address, or of one for each family, whose HTTP requests all go to one cluster.
type member struct {
	name     string
	addrs    []netip.Addr
	port     uint16
	template uint64 // of all but name, addresses and route
	body     []byte
	route    []byte // the one route, within body
}

func (m *member) id() xds.ID { return xds.ID{Type: build.ListenerType, Name: m.name} }

// byAddress is the order of members, whose names would have 10 before 9.
func byAddress(a, b *member) int {
	return cmp.Or(a.addrs[0].Compare(b.addrs[0]), cmp.Compare(a.name, b.name))
}
