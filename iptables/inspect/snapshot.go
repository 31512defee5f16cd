// Package inspect owns what the rules in force do, whoever made them: Verify compares them
// with a Config, Infer finds it, Trace follows a packet on paper, and Probe sends one.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/policyrouting"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// Snapshot is the state of capture at one moment, to be looked at from several sides.
type Snapshot struct {
	states   []saved.State
	views    []view
	net      network
	inferred iptables.Config // what made the rules, as far as they show it
}

// Read returns the rules of every back end and IP version of the calling thread's network
// namespace. Routes are asked for later, on the same thread. It needs NET_ADMIN.
func Read(ctx context.Context, log *slog.Logger) (*Snapshot, error) {
	if err := access.Check(); err != nil {
		return nil, fmt.Errorf("read the rules in force: %w", err)
	}
	states, err := iptables.Saved(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("read the rules in force: %w", err)
	}
	return newSnapshot(states, kernelNetwork()), nil
}

func newSnapshot(states []saved.State, net network) *Snapshot {
	s := &Snapshot{states: states, net: net}
	for _, st := range s.states {
		s.views = append(s.views, viewOf(st.Backend, st.Family, st.All))
	}
	s.inferred, _ = s.Infer()
	return s
}

// network is what a packet's way depends on besides rules.
type network struct {
	isLocal func(netip.Addr) bool
	// route returns the interface by which a packet leaves, and the source that it gets.
	route func(to netip.Addr, mark uint32) (iface string, src netip.Addr, err error)
	// arrives returns the interface on which a packet comes in; the client may be unknown.
	arrives func(client, to netip.Addr) string
	// primary is the first address of an interface in the IP version of like.
	primary func(iface string, like netip.Addr) netip.Addr
	// tables returns the route tables that a mark leads to.
	tables func(f rule.Family, mark uint32) ([]uint32, error)
	// allLocal reports whether a route table makes every address one of the pod's own.
	allLocal func(f rule.Family, table uint32) (bool, error)
	// nftChains returns the chains of nf_tables that packets meet, if they have rules.
	nftChains func() ([]nftables.Chain, error)
	// listens reports whether a port has a listener, on any address.
	listens func(p rule.Proto, port uint16) (bool, error)
	// passthrough reports whether lo has ::6.
	passthrough func() (bool, error)
}

// own is the address that REDIRECT chooses, iptables-extensions(8).
func (n network) own(hook, in string, like netip.Addr) netip.Addr {
	if hook == rule.PreRouting {
		return n.primary(in, like)
	}
	if like.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

func kernelNetwork() network {
	return network{
		isLocal: func(a netip.Addr) bool {
			r, err := routeTo(a, 0)
			return a.IsLoopback() || err == nil && r.Type == unix.RTN_LOCAL
		},
		route: func(to netip.Addr, mark uint32) (string, netip.Addr, error) {
			r, err := routeTo(to, mark)
			if err != nil {
				return "", netip.Addr{}, err
			}
			src, _ := netip.AddrFromSlice(r.Src)
			return linkName(r.LinkIndex), src.Unmap(), nil
		},
		arrives:     arrivesOn,
		primary:     primaryAddress,
		tables:      policyrouting.Tables,
		allLocal:    policyrouting.AllLocal,
		nftChains:   nftables.BaseChains,
		listens:     listens,
		passthrough: policyrouting.HasPassthrough,
	}
}

// routeTo is `ip route get`.
func routeTo(a netip.Addr, mark uint32) (netlink.Route, error) {
	if !a.IsValid() {
		return netlink.Route{}, errors.New("no address")
	}
	routes, err := netlink.RouteGetWithOptions(net.IP(a.AsSlice()), &netlink.RouteGetOptions{Mark: mark})
	if err != nil {
		return netlink.Route{}, fmt.Errorf("find the route to %v: %w", a, err)
	}
	if len(routes) == 0 {
		return netlink.Route{}, fmt.Errorf("find the route to %v: none", a)
	}
	return routes[0], nil
}

func linkName(index int) string {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}

// arrivesOn takes the route back to the client, or the interface with the address.
func arrivesOn(client, to netip.Addr) string {
	if r, err := routeTo(client, 0); err == nil {
		return linkName(r.LinkIndex)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == to {
			return linkName(a.LinkIndex)
		}
	}
	return ""
}

func primaryAddress(iface string, like netip.Addr) netip.Addr {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return like
	}
	addrs, err := netlink.AddrList(link, rule.FamilyOf(like).AF())
	if err != nil {
		return like
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLinkLocalUnicast() {
			return ip.Unmap()
		}
	}
	return like
}
