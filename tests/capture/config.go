// Package capture owns what tests of the capture rules share: pods, configurations, and the
// rules that Istio and users make.
package capture

import (
	"net/netip"
	"slices"

	"understudy.mesh/iptables"
)

// LongChain returns a configuration with a long chain, and some that differ from it.
func LongChain() (long iptables.Config, steps []iptables.Config) {
	long = Full()
	for i := range 200 {
		long.ExcludeCIDRs = append(long.ExcludeCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24))
	}
	with := func(cidrs ...[]netip.Prefix) iptables.Config {
		c := long
		c.ExcludeCIDRs = slices.Concat(cidrs...)
		return c
	}
	all, other := long.ExcludeCIDRs, Prefixes("10.1.0.0/16", "2001:db8:beef::/48")
	steps = []iptables.Config{
		with(all[:100], all[101:]),              // one less
		with(all[:100], other, all[101:]),       // some more in its place
		with(all[1:]),                           // the first one
		with(all, other),                        // the last ones
		with(all),                               //
		with(all[:50], other, all[150:]),        // many
		with(all[:20], all[30:90], all[95:180]), // in several places
	}
	return long, steps
}

const (
	PodV4, PodV6 = "10.77.0.1", "fd77::1"
	ProxyUID     = iptables.DefaultProxyID
)

func Full() iptables.Config {
	c := iptables.Default()
	c.InboundPorts = iptables.Ports{All: true}
	c.ExcludeInboundPorts = []uint16{22}
	c.IncludeCIDRs = iptables.Prefixes{All: true}
	c.ExcludeCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.1/32"), netip.MustParsePrefix("2001:db8:dead::/48")}
	c.ExcludeOutboundPorts = []uint16{7011}
	c.DNS = iptables.DNS{Capture: true, Servers: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2001:db8::53")}}
	c.IPv6 = true
	return c
}

func Listed() iptables.Config {
	c := iptables.Default()
	c.InboundPorts = iptables.Ports{List: []uint16{4000}}
	c.IncludeCIDRs = iptables.Prefixes{List: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("2001:db8:1::/48")}}
	c.IncludeOutboundPorts = []uint16{8443}
	c.DNS = iptables.DNS{Capture: true, All: true}
	c.IPv6 = true
	return c.WithVIPs()
}

func Prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func Nameservers(list ...string) iptables.DNS {
	d := iptables.DNS{Capture: true}
	for _, s := range list {
		d.Servers = append(d.Servers, netip.MustParseAddr(s))
	}
	return d
}

// Golden are the inputs that Istio tests its own rules with, under its names, and
// after them what its tests leave out.
var Golden = []struct {
	Name string
	Edit func(c *iptables.Config)
}{
	{"empty", func(c *iptables.Config) {}},
	{"ipv6-empty-inbound-ports", func(c *iptables.Config) { c.IPv6 = true }},
	{"ip-range", func(c *iptables.Config) {
		c.ExcludeCIDRs, c.IncludeCIDRs.List = Prefixes("1.1.0.0/16"), Prefixes("9.9.0.0/16")
		c.UIDs, c.GIDs, c.DNS = []uint32{3, 4}, []uint32{1, 2}, Nameservers("127.0.0.53")
	}},
	{"ipv6-inbound-ports", func(c *iptables.Config) { c.InboundPorts.List, c.IPv6 = []uint16{4000, 5000}, true }},
	{"ipv6-virt-interfaces", func(c *iptables.Config) {
		c.InboundPorts.List, c.VirtInterfaces, c.IPv6 = []uint16{4000, 5000}, []string{"eth0", "eth1"}, true
	}},
	{"ipv6-ipnets", func(c *iptables.Config) {
		c.InboundPorts.List, c.ExcludeInboundPorts = []uint16{4000, 5000}, []uint16{6000, 7000}
		c.VirtInterfaces, c.IPv6 = []string{"eth0", "eth1"}, true
		c.ExcludeCIDRs, c.IncludeCIDRs.List = Prefixes("2001:db8::/32"), Prefixes("2001:db8::/32")
	}},
	{"ipv6-uid-gid", func(c *iptables.Config) {
		c.InboundPorts.List, c.ExcludeInboundPorts = []uint16{4000, 5000}, []uint16{6000, 7000}
		c.VirtInterfaces, c.IPv6 = []string{"eth0", "eth1"}, true
		c.ExcludeCIDRs, c.IncludeCIDRs.List = Prefixes("2001:db8::/32"), Prefixes("2001:db8::/32")
		c.UIDs, c.GIDs = []uint32{3, 4}, []uint32{1, 2}
	}},
	{"ipv6-outbound-ports", func(c *iptables.Config) { c.IncludeOutboundPorts, c.IPv6 = []uint16{32000, 31000}, true }},
	{"kube-virt-interfaces", func(c *iptables.Config) { c.VirtInterfaces, c.IncludeCIDRs.All = []string{"eth1", "eth2"}, true }},
	{"ipnets", func(c *iptables.Config) { c.IncludeCIDRs.List = Prefixes("10.0.0.0/8") }},
	{"ipnets-with-kube-virt-interfaces", func(c *iptables.Config) {
		c.VirtInterfaces, c.IncludeCIDRs.List = []string{"eth1", "eth2"}, Prefixes("10.0.0.0/8")
	}},
	{"inbound-ports-include", func(c *iptables.Config) { c.InboundPorts.List = []uint16{32000, 31000} }},
	{"inbound-ports-wildcard", func(c *iptables.Config) { c.InboundPorts.All = true }},
	{"dns-uid-gid", func(c *iptables.Config) {
		c.DNS, c.IPv6 = Nameservers("127.0.0.53", "::127.0.0.53"), true
		c.UIDs, c.GIDs = []uint32{3, 4}, []uint32{1, 2}
	}},
	{"ipv6-dns-uid-gid", func(c *iptables.Config) { c.UIDs, c.GIDs, c.IPv6 = []uint32{3, 4}, []uint32{1, 2}, true }},
	{"outbound-owner-groups", func(c *iptables.Config) { c.IncludeGroups = []uint32{2001, 202} }},
	{"outbound-owner-groups-exclude", func(c *iptables.Config) { c.ExcludeGroups = []uint32{888, 21} }},
	{"ipv6-dns-outbound-owner-groups", func(c *iptables.Config) { c.IncludeGroups, c.IPv6 = []uint32{2001, 202}, true }},
	{"ipv6-dns-outbound-owner-groups-exclude", func(c *iptables.Config) { c.ExcludeGroups, c.IPv6 = []uint32{888, 21}, true }},
	{"outbound-ports-include", func(c *iptables.Config) { c.IncludeOutboundPorts = []uint16{32000, 31000} }},
	{"loopback-outbound-iprange", func(c *iptables.Config) {
		c.IncludeCIDRs.List, c.DNS = Prefixes("127.1.2.3/32"), Nameservers("127.0.0.53")
		c.UIDs, c.GIDs = []uint32{3, 4}, []uint32{1, 2}
	}},
	{"basic-exclude-nic", func(c *iptables.Config) { c.ExcludeInterfaces = []string{"not-istio-nic"} }},
	{"drop-invalid", func(c *iptables.Config) { c.DropInvalid = true }},
	{"tproxy", func(c *iptables.Config) {
		c.TPROXY, c.InboundPorts.All, c.IPv6 = true, true, true
		c.ExcludeCIDRs, c.IncludeCIDRs.List = Prefixes("1.1.0.0/16"), Prefixes("9.9.0.0/16")
		c.DNS, c.ExcludeInterfaces = Nameservers("127.0.0.53"), []string{"not-istio-nic"}
	}},
	{"inbound-ports-tproxy", func(c *iptables.Config) { c.TPROXY, c.InboundPorts.List = true, []uint16{32000, 31000} }},
	{"inbound-ports-wildcard-tproxy", func(c *iptables.Config) { c.TPROXY, c.InboundPorts.All = true, true }},
	{"host-ipv4-loopback-cidr", func(c *iptables.Config) { c.LoopbackV4 = netip.MustParsePrefix("127.0.0.0/8") }},

	{"capture-all-dns", func(c *iptables.Config) { c.DNS, c.IPv6 = iptables.DNS{Capture: true, All: true}, true }},
	{"dns-servers-of-one-family", func(c *iptables.Config) { c.DNS, c.IPv6 = Nameservers("10.96.0.10"), true }},
	{"inbound-wildcard-exclude", func(c *iptables.Config) {
		c.InboundPorts.All, c.ExcludeInboundPorts = true, []uint16{15090, 15021}
	}},
	{"outbound-ports-exclude", func(c *iptables.Config) {
		c.IncludeCIDRs.All, c.ExcludeOutboundPorts = true, []uint16{7015, 7016}
	}},
	{"inbound-wildcard-exclude-tproxy", func(c *iptables.Config) {
		c.TPROXY, c.InboundPorts.All, c.ExcludeInboundPorts, c.DropInvalid = true, true, []uint16{15090, 15021}, true
	}},
	{"inbound-ports-empty-tproxy", func(c *iptables.Config) { c.TPROXY = true }},
	{"many-ports", func(c *iptables.Config) {
		for p := uint16(1); p <= 40; p++ {
			c.ExcludeOutboundPorts = append(c.ExcludeOutboundPorts, 7000+p)
			c.InboundPorts.List = append(c.InboundPorts.List, 8000+p)
		}
	}},
	{"overlapping-cidrs", func(c *iptables.Config) {
		c.IPv6 = true
		c.ExcludeCIDRs = Prefixes("10.1.0.0/16", "10.0.0.0/8", "192.168.1.0/24", "10.0.0.0/8", "2001:db8::/32", "2001:db8:1::/48", "192.168.0.0/24")
		c.IncludeCIDRs.List = Prefixes("0.0.0.0/0", "9.9.9.9/32")
	}},
	{"proxy-mark", func(c *iptables.Config) {
		c.ProxyMark, c.InboundPorts.All, c.IncludeCIDRs.All, c.DNS = 0x5357, true, true, Nameservers("10.96.0.10")
	}},
	{"proxy-mark-alone", func(c *iptables.Config) {
		c.UIDs, c.GIDs, c.ProxyMark, c.IPv6 = nil, nil, 0x5357, true
		c.InboundPorts.All, c.IncludeCIDRs.All, c.DNS = true, true, iptables.DNS{Capture: true, All: true}
	}},
	{"proxy-mark-alone-tproxy", func(c *iptables.Config) {
		c.UIDs, c.GIDs, c.ProxyMark, c.TPROXY = nil, nil, 0x5357, true
		c.InboundPorts.All, c.IncludeCIDRs.All = true, true
	}},
	{"vips-among-listed-cidrs", func(c *iptables.Config) {
		c.IncludeCIDRs.List, c.DNS, c.IPv6 = Prefixes("10.0.0.0/8"), Nameservers("10.96.0.10"), true
		*c = c.WithVIPs()
	}},
}
