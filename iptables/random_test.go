package iptables_test

import (
	"math/rand/v2"
	"net/netip"

	"understudy.mesh/iptables"
	"understudy.mesh/tests/capture"
)

// randomConfig returns any valid configuration, of values that the lab can tell apart.
func randomConfig(r *rand.Rand) iptables.Config {
	c := iptables.Default()
	c.IPv6 = r.IntN(4) > 0
	c.TPROXY = r.IntN(3) == 0
	c.DropInvalid = r.IntN(4) == 0
	if r.IntN(4) == 0 {
		c.ProxyPort, c.InboundPort, c.TunnelPort = 16001, 16006, 5000
	}
	if c.TPROXY && r.IntN(3) == 0 {
		c.Mark, c.RouteTable = 77, 200
	}
	ids := []uint32{capture.ProxyUID, 0, 3, 4, 1000}
	if r.IntN(3) == 0 {
		c.UIDs, c.GIDs = some(r, 2, ids...), some(r, 2, ids...)
		c.UIDs, c.GIDs = append(c.UIDs, 7), append(c.GIDs, 8) // at least one of each
	}
	switch r.IntN(3) {
	case 0:
		c.InboundPorts.All = true
		c.ExcludeInboundPorts = some[uint16](r, 3, 22, 4000, 7000, 53)
	case 1:
		c.InboundPorts.List = some[uint16](r, 4, 22, 80, 4000, 15008, 53)
	}
	randomDestinations(r, &c)
	randomInterfaces(r, &c)
	switch r.IntN(5) {
	case 0:
		c.IncludeGroups = some[uint32](r, 3, 202, 2001, 1000, capture.ProxyUID)
	case 1:
		c.ExcludeGroups = some[uint32](r, 3, 888, 21, 1000)
	}
	c.LoopbackV4 = pick(r, "127.0.0.1/32", "127.0.0.1/32", "127.0.0.0/8", "127.0.0.0/16")
	switch r.IntN(3) {
	case 0:
		c.DNS = iptables.DNS{Capture: true, All: true}
	case 1:
		c.DNS = iptables.DNS{Capture: true, Servers: some(r, 3, addrs("9.9.9.9", "127.0.0.53", "2001:db8::53", "::1", "10.77.0.2")...)}
	}
	return c
}

func randomDestinations(r *rand.Rand, c *iptables.Config) {
	cidrs := capture.Prefixes("1.1.0.0/16", "9.9.0.0/16", "10.0.0.0/8", "10.77.0.0/24", "192.168.0.0/16", "192.168.3.0/24", "240.240.0.0/16",
		"0.0.0.0/0", "127.1.2.3/32", "8.8.8.8/32", "2001:db8::/32", "2001:db8:1::/48", "fd77::/64", "::/0", "::1/128", "2001:2::/48")
	switch r.IntN(3) {
	case 0:
		c.IncludeCIDRs.All = true
	case 1:
		c.IncludeCIDRs.List = some(r, 6, cidrs...)
	}
	if r.IntN(2) == 0 {
		c.ExcludeCIDRs = some(r, 5, cidrs...)
	}
	ports := []uint16{80, 4000, 8443, 53, 15008, 443}
	if r.IntN(3) == 0 {
		c.IncludeOutboundPorts = some(r, 3, ports...)
	}
	if r.IntN(3) == 0 {
		c.ExcludeOutboundPorts = some(r, 3, ports...)
	}
}

func randomInterfaces(r *rand.Rand, c *iptables.Config) {
	names := []string{"eth0", machineIface, otherIface, "lo", "absent"}
	if r.IntN(4) == 0 {
		c.ExcludeInterfaces = some(r, 2, names...)
	}
	if r.IntN(3) == 0 {
		c.VirtInterfaces = some(r, 2, names[1:]...)
	}
}

// some returns up to most different ones of a list, in any order.
func some[T any](r *rand.Rand, most int, list ...T) (out []T) {
	for _, i := range r.Perm(len(list))[:r.IntN(most+1)] {
		out = append(out, list[i])
	}
	return out
}

func pick(r *rand.Rand, cidrs ...string) netip.Prefix {
	return netip.MustParsePrefix(cidrs[r.IntN(len(cidrs))])
}
