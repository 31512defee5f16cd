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
	resource *xds.Stored
	member   *member // nil: it stays as it is
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
	listeners := make([]*xds.Stored, 0, len(snap[build.ListenerType]))
	groups, others := map[uint16][]*member{}, map[string]*xds.Stored{}
	last := s.seen
	s.seen = make(map[string]seen, len(snap[build.ListenerType]))
	for _, r := range snap[build.ListenerType] {
		now, hit := last[r.Name]
		if !hit || now.resource != r {
			found, err := scan(r)
			if err != nil {
				return nil, err
			}
			found.placeAs(now.member)
			now = seen{r, found}
		}
		s.seen[r.Name] = now
		if m := now.member; m != nil && !slices.Contains(s.taken, m.port) {
			groups[m.port] = append(groups[m.port], m)
			continue
		}
		others[r.Name] = r
		listeners = append(listeners, r)
	}
	changed, err := s.setOutbound(others[build.OutboundListener])
	if err != nil || s.outbound == nil {
		return snap, err
	}
	out, ports := maps.Clone(snap), make(map[uint16]*port, len(groups))
	for _, number := range slices.Sorted(maps.Keys(groups)) {
		p, there := s.ports[number], others[s.outbound.listenerName(number)]
		if p == nil {
			p = newPort(number)
		}
		placed, err := p.place(groups[number])
		if err != nil {
			return nil, fmt.Errorf("make the routes of port %d: %w", number, err)
		}
		if placed || changed || p.there != there {
			if err := p.make(s.outbound, there); err != nil {
				return nil, fmt.Errorf("make the listener of port %d: %w", number, err)
			}
		}
		ports[number] = p
		listeners = slices.DeleteFunc(listeners, func(r *xds.Stored) bool { return r.Name == p.listener.Name })
		listeners = append(listeners, p.listener)
		out[build.RouteType] = append(out[build.RouteType], p.routes()...)
	}
	s.ports, out[build.ListenerType] = ports, listeners
	return out, nil
}

func (s *Sharer) setOutbound(r *xds.Stored) (changed bool, err error) {
	switch {
	case r == nil:
		changed, s.outbound = s.outbound != nil, nil
	case s.outbound == nil || s.outbound.resource != r:
		changed = true
		s.outbound, err = newOutbound(r)
	}
	return changed, err
}

// answer is what Envoy's answer to what share returned last means for what share was given: a shared listener or its routes
// that Envoy refuses are refused for each listener in their place, and kept for those that were there in the version before.
func (s *Sharer) answer(err error) error {
	var refused *xds.RejectedError
	if err != nil && !errors.As(err, &refused) {
		return err
	}
	if refused == nil {
		refused = &xds.RejectedError{}
	}
	all := *refused
	all.Resources, all.Kept = slices.Clone(refused.Resources), slices.Clone(refused.Kept)
	for _, p := range s.ports {
		p.answer(refused, &all)
	}
	if err == nil {
		return nil
	}
	return &all
}

// member is a listener of one address, or of one for each family, whose HTTP requests all go to one cluster.
type member struct {
	name     string
	addrs    []netip.Addr
	port     uint16
	template uint64 // of all but name, addresses and route
	resource *xds.Stored
	route    span // the one route, within the body
	part     int  // of its port's routes; unplaced before it has one
}

func (m *member) id() xds.ID { return xds.ID{Type: build.ListenerType, Name: m.name} }

// byAddress is the order of members, whose names would have 10 before 9.
func byAddress(a, b *member) int {
	return cmp.Or(a.addrs[0].Compare(b.addrs[0]), cmp.Compare(a.name, b.name))
}

// placeAs gives a new version of a listener the place of the one before, if there was one.
func (m *member) placeAs(before *member) {
	if m != nil && before != nil && m.port == before.port {
		m.part = before.part
	}
}

// span is a part of a body.
type span struct{ at, size uint32 }

// spanOf is where a part lies in the body that it was cut out of.
func spanOf(body, part []byte) span { return span{uint32(cap(body) - cap(part)), uint32(len(part))} }

func (s span) of(body []byte) []byte { return body[s.at : s.at+s.size] }
