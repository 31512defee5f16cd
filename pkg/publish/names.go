package publish

import (
	"net/netip"
	"slices"
	"strings"

	"understudy.mesh/dnsproxy/table"
)

// names decides which names DNS answers, and with which addresses: one that is new appears only
// once Envoy uses what it leads to, one that goes does so at once. It waits for nothing: what is
// wanted, and what Envoy uses, is told to it.
type names struct {
	hosts    []table.Host // that are wanted, sorted by name as the others
	answered []table.Host // what DNS answers; at first what the generation before does
	behind   []table.Host // those of answered that have the answer of an earlier configuration
	told     []table.Host // answered, as change told it last
}

// want makes hosts what is to be answered. Hosts that are not among them lose their names now.
func (n *names) want(hosts []table.Host) {
	n.hosts = hosts
	n.answered = retained(n.answered, hosts)
}

// release notes that Envoy uses what the wanted hosts need, but for those that need something of lacked:
// they keep the answer that they had, unless it needs something of lackedBefore.
func (n *names) release(lacked, lackedBefore map[string]bool) {
	if len(lacked)+len(lackedBefore) == 0 {
		n.answered, n.behind = n.hosts, nil
		return
	}
	hosts, behind := make([]table.Host, 0, len(n.hosts)), []table.Host(nil)
	old := n.answered
	for _, h := range n.hosts {
		for len(old) > 0 && old[0].Name < h.Name {
			old = old[1:]
		}
		switch {
		case len(h.Addrs) == 0 || !touches(lacked, h):
			hosts = append(hosts, h)
		case len(old) > 0 && old[0].Name == h.Name && !touches(lackedBefore, old[0]):
			hosts, behind = append(hosts, old[0]), append(behind, old[0])
		default: // no wildcard answers for it
			hosts = append(hosts, table.Host{Name: h.Name, Forwarded: true})
		}
	}
	n.answered, n.behind = table.Owned(hosts), behind
}

// change returns what has become different in what DNS answers since it was called last: hosts that
// are new or have other addresses, and names that are gone.
func (n *names) change() (set []table.Host, gone []string) {
	set, gone = difference(n.told, n.answered)
	n.told = n.answered
	return set, gone
}

// withheld counts the wanted hosts that have an address, and are not answered.
func (n *names) withheld() int { return answering(n.hosts) - answering(n.answered) }

// Names is names for a control plane that has its resources from elsewhere. It is made by NewNames.
type Names struct {
	*Others
	names names
}

// NewNames has no host.
func NewNames() *Names { return &Names{Others: newOthers()} }

// Changed holds a token when Release may have another outcome, because of Beside or Alone.
func (n *Names) Changed() <-chan struct{} { return n.changed }

// Want makes hosts, each name once, what is to be answered. Hosts that are not among them lose their names now.
func (n *Names) Want(hosts []table.Host) { n.names.want(byName(hosts)) }

// Release notes that Envoy uses what the wanted hosts lead to, but for those that wait, which keep the answer that they
// had. Beside another Envoy a host whose addresses lead nowhere but to Envoy must be known to that one, too.
func (n *Names) Release(waits func(table.Host) bool) {
	lacked, lackedBefore, there := make(map[string]bool), make(map[string]bool), n.there.Load()
	for _, h := range n.names.hosts {
		if waits(h) {
			lacked[h.Name] = true
		}
		if there != nil && h.VIP {
			there.lack(h, lacked, lackedBefore)
		}
	}
	n.names.release(lacked, lackedBefore)
}

// Change returns what has become different in what DNS answers since it was called last.
func (n *Names) Change() (set []table.Host, gone []string) { return n.names.change() }

// Answered are the hosts that DNS answers, as Change told it last. They must not be changed.
func (n *Names) Answered() []table.Host { return n.names.told }

// Withheld counts the wanted hosts that have an address, and are not answered.
func (n *Names) Withheld() int { return n.names.withheld() }

// addresses are the addresses of hosts, by name.
type addresses map[string][]netip.Addr

func addressesOf(hosts []table.Host) addresses {
	a := make(addresses, len(hosts))
	for _, h := range hosts {
		if len(h.Addrs) > 0 {
			a[h.Name] = h.Addrs
		}
	}
	return a
}

// lack notes a host that has another answer or none, and in none one that has none.
func (a addresses) lack(h table.Host, other, none map[string]bool) {
	if len(h.Addrs) == 0 {
		return
	}
	if addrs, is := a[h.Name]; !is {
		other[h.Name], none[h.Name] = true, true
	} else if !slices.Equal(addrs, h.Addrs) {
		other[h.Name] = true
	}
}

// answering counts the hosts that have an address.
func answering(hosts []table.Host) (n int) {
	for _, h := range hosts {
		if len(h.Addrs) > 0 {
			n++
		}
	}
	return n
}

// difference returns what makes wanted of old; both are sorted by name, each name once.
func difference(old, wanted []table.Host) (set []table.Host, gone []string) {
	if len(old) == 0 {
		return slices.Clone(wanted), nil
	}
	for _, h := range wanted {
		for len(old) > 0 && old[0].Name < h.Name {
			gone, old = append(gone, old[0].Name), old[1:]
		}
		if len(old) > 0 && old[0].Name == h.Name {
			same := old[0].VIP == h.VIP && slices.Equal(old[0].Addrs, h.Addrs)
			if old = old[1:]; same {
				continue
			}
		}
		set = append(set, h)
	}
	for _, h := range old {
		gone = append(gone, h.Name)
	}
	return set, gone
}

// retained returns the hosts of old that are still wanted, as they were.
func retained(old, wanted []table.Host) []table.Host {
	names := make(map[string]bool, len(wanted))
	for _, h := range wanted {
		names[h.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(old), func(h table.Host) bool { return !names[h.Name] })
}

// byName returns hosts sorted by name.
func byName(hosts []table.Host) []table.Host {
	compare := func(a, b table.Host) int { return strings.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(hosts, compare) { // all but what is inherited from who knows which release
		return hosts
	}
	return slices.SortedFunc(slices.Values(hosts), compare)
}

// owner is what a resource is for, as Istio names resources: the host of a cluster, the address of
// a listener.
func owner(resource string) string {
	if i := strings.LastIndex(resource, "||"); i >= 0 {
		return resource[i+len("||"):]
	}
	if i := strings.LastIndexByte(resource, '_'); i >= 0 {
		return resource[:i]
	}
	return resource
}

// ownersOf has all that owner may say of the resources of hosts.
func ownersOf(hosts []table.Host) map[string]bool {
	owners := make(map[string]bool, 2*len(hosts))
	for _, h := range hosts {
		owners[h.Name] = true
		for _, a := range h.Addrs {
			owners[a.String()] = true
		}
	}
	return owners
}

// touches tells whether the host's traffic needs a resource of one of the owners.
func touches(owners map[string]bool, h table.Host) bool {
	return owners[h.Name] || slices.ContainsFunc(h.Addrs, func(a netip.Addr) bool { return owners[a.String()] })
}
