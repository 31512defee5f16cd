package share

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/xds"
)

const (
	// partSize is how many hosts have their routes in one route configuration. Envoy reads all of a configuration when one
	// of its routes changes, which takes it about 15 ms for so many; and a connection looks through the parts of its port
	// in turn.
	partSize = 512
	// remembered is how many places of hosts that went are kept, for the hosts to have them again: a connection that they
	// left behind is answered by the part that it began with.
	remembered = 1024
	unplaced   = -1
)

// port is the shared listener of a port, and its routes in parts: one up to partSize hosts, which has Istio's name, and as
// many more as it takes. A host stays in its part, so that a change is one of its part alone.
type port struct {
	number   uint16
	there    *xds.Stored // the listener that takes the port on every address, if there is one
	parts    []*part
	gone     map[string]int // the parts of members that went
	listener *xds.Stored
}

// part is some of the members of a port; none, if all that it had went.
type part struct {
	members  []*member // by address
	accepted []*member // those of the version that Envoy took last
	routes   *xds.Stored
}

func newPort(number uint16) *port { return &port{number: number, gone: map[string]int{}} }

// routesOf is the name of the routes of a part: Istio's name for those of the port, but for those parts that Istio has not.
func (p *port) routesOf(i int) string {
	if i == 0 {
		return strconv.Itoa(int(p.number))
	}
	return fmt.Sprintf("%d-%d", p.number, i)
}

// routes are the route configurations of all parts that have members.
func (p *port) routes() (out []*xds.Stored) {
	for _, part := range p.parts {
		if len(part.members) > 0 {
			out = append(out, part.routes)
		}
	}
	return out
}

// place makes members those of the port, each in the part that it is or was in, or else in the first that has room, and
// makes the routes of the parts that change. changed is false where none does.
func (p *port) place(members []*member) (changed bool, err error) {
	var lists [][]*member
	var fresh []*member
	add := func(m *member) {
		for len(lists) <= m.part {
			lists = append(lists, nil)
		}
		lists[m.part] = append(lists[m.part], m)
	}
	for _, m := range members {
		if m.part == unplaced {
			fresh = append(fresh, m)
			continue
		}
		add(m)
	}
	slices.SortFunc(fresh, byAddress) // the same for the same hosts
	first := 0
	for _, m := range fresh {
		for first < len(lists) && len(lists[first]) >= partSize {
			first++
		}
		m.part = first
		if was, known := p.gone[m.name]; known {
			m.part = was
			delete(p.gone, m.name)
		}
		add(m)
	}
	for len(p.parts) < len(lists) {
		p.parts = append(p.parts, &part{})
	}
	for i, part := range p.parts {
		var now []*member
		if i < len(lists) {
			now = lists[i]
			slices.SortFunc(now, byAddress)
		}
		if !slices.Equal(part.members, now) {
			p.remember(i, part.members, now)
			if part.routes, err = routes(p.routesOf(i), now); err != nil {
				return false, err
			}
			part.members, changed = now, true
		}
	}
	return changed, nil
}

// remember keeps the places of those members of a part that are not there now.
func (p *port) remember(i int, before, now []*member) {
	there := namesOfMembers(now)
	for _, m := range before {
		if there[m.name] {
			continue
		}
		if len(p.gone) >= remembered {
			clear(p.gone)
		}
		p.gone[m.name] = i
	}
}

func namesOfMembers(members []*member) map[string]bool {
	names := make(map[string]bool, len(members))
	for _, m := range members {
		names[m.name] = true
	}
	return names
}

// pool is the members of a part that have one template, and so one filter chain.
type pool struct {
	part     int
	template uint64
	members  []*member // by address
}

// pools are in the order of parts and templates.
func (p *port) pools() (out []*pool) {
	for i, part := range p.parts {
		begin := len(out)
		for _, m := range part.members {
			k := begin
			for k < len(out) && out[k].template != m.template {
				k++
			}
			if k == len(out) {
				out = append(out, &pool{part: i, template: m.template})
			}
			out[k].members = append(out[k].members, m)
		}
		slices.SortFunc(out[begin:], func(a, b *pool) int { return cmp.Compare(a.template, b.template) })
	}
	return out
}

// ranges are the addresses of its members, as an Ip has them.
func (l *pool) ranges() (out []byte) {
	for _, m := range l.members {
		for _, a := range m.addrs {
			out = appendRange(out, a.String(), a.BitLen())
		}
	}
	return out
}

// chain is the name of a pool's chain. It depends on the pool alone: a chain that gets another name is another chain.
func (l *pool) chain(listener string) string {
	name := fmt.Sprintf("%s-%016x", listener, l.template)
	if l.part > 0 {
		name += fmt.Sprintf("-%d", l.part)
	}
	return name
}

// make makes the shared listener. The chain of a pool that was there before is the same as before, byte by byte: Envoy
// drains no connection of a chain that stays.
func (p *port) make(o *outbound, there *xds.Stored) error {
	name := o.listenerName(p.number)
	var of []byte
	var err error
	if there != nil {
		if of, err = there.Body(); err != nil {
			return err
		}
	}
	body, others, ok := o.base(p.number, of)
	if !ok {
		return fmt.Errorf("read the %s that is there: %w", name, errListener)
	}
	rest, ok := choices(name, others)
	if !ok {
		return fmt.Errorf("a filter chain of %s is picked by more than address, server name and protocol", name)
	}
	for _, c := range rest {
		body = appendBytes(body, listenerChains, c.chain)
	}
	pools := p.pools()
	for _, l := range pools {
		chain, err := managerChain(l.chain(name), p.routesOf(l.part), l.members[0])
		if err != nil {
			return err
		}
		body = appendBytes(body, listenerChains, chain)
	}
	var list []byte
	for _, l := range pools {
		list = appendBytes(list, listMatchers, entry(address(l.ranges()), l.chain(name)))
	}
	slices.SortStableFunc(rest, choice.compare)
	for _, c := range rest {
		list = appendBytes(list, listMatchers, c.matcher())
	}
	body = appendBytes(body, listenerMatcher, appendBytes(nil, matcherList, list))
	p.there, p.listener = there, xds.NewStored(name, body)
	return nil
}

// answer is what Envoy's answer means for the members of the port: what is shared and refused is refused for each of
// them, in all, and kept for those that were there in the version before.
func (p *port) answer(refused, all *xds.RejectedError) {
	missing, listener := refused.Missing(), xds.ID{Type: build.ListenerType, Name: p.listener.Name}
	refuses, lacks := slices.Contains(refused.Resources, listener), slices.Contains(missing, listener)
	shared := map[xds.ID]bool{listener: p.there == nil}
	for _, part := range p.parts {
		id := xds.ID{Type: build.RouteType, Name: part.routes.Name}
		shared[id] = true
		if !refuses && !slices.Contains(refused.Resources, id) {
			part.accepted = part.members
			continue
		}
		had := namesOfMembers(part.accepted)
		gone := lacks || slices.Contains(missing, id)
		for _, m := range part.members {
			all.Resources = append(all.Resources, m.id())
			if !gone && had[m.name] {
				all.Kept = append(all.Kept, m.id())
			}
		}
	}
	isShared := func(id xds.ID) bool { return shared[id] }
	all.Resources, all.Kept = slices.DeleteFunc(all.Resources, isShared), slices.DeleteFunc(all.Kept, isShared)
}
