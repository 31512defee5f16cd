package iptables

import (
	"net/netip"
	"slices"

	"understudy.mesh/iptables/rule"
)

// Ranges of the VIPs that the DNS proxy gives to hosts without an address, out of class E
// as Istio's, and of the range for benchmarking (RFC 5180). Not captured, they lead nowhere.
var (
	VIPRangeV4 = netip.MustParsePrefix("240.240.0.0/16")
	VIPRangeV6 = netip.MustParsePrefix("2001:2::/48")
)

// builder collects rules. Its methods are in the order in which packets, and the
// rules of a chain, meet them.
type builder struct {
	Config
	rules []rule.Rule
}

// Rules returns the rules that c asks for; those of a chain in the order of evaluation.
// The set and its order are Istio's, which people know how to read.
func Rules(c Config) []rule.Rule {
	b := &builder{Config: c}
	if c.DNS.Capture {
		b.dnsZones()
	}
	b.interfaces()
	if c.DropInvalid {
		b.invalid()
	}
	if c.TPROXY {
		b.notInbound()
	}
	b.inbound()
	b.outbound()
	if c.TPROXY {
		b.transparent()
	}
	return b.rules
}

func (b *builder) add(r rule.Rule) {
	if !b.IPv6 {
		r.Family &= rule.IPv4
	}
	r.Match.Srcs, r.Match.Dsts = withoutCovered(r.Match.Srcs), withoutCovered(r.Match.Dsts)
	if r.Family != 0 {
		b.rules = append(b.rules, r)
	}
}

func (b *builder) nat(chain string, m rule.Match, t rule.Target, why string) {
	b.add(rule.Rule{Family: rule.Both, Table: rule.NAT, Chain: chain, Match: m, Target: t, Why: why})
}

func (b *builder) mangle(chain string, m rule.Match, t rule.Target, why string) {
	b.add(rule.Rule{Family: rule.Both, Table: rule.Mangle, Chain: chain, Match: m, Target: t, Why: why})
}

// natTop puts a rule before all others of a built-in chain.
func (b *builder) natTop(m rule.Match, t rule.Target, why string) {
	b.add(rule.Rule{Family: rule.Both, Table: rule.NAT, Chain: rule.PreRouting, Top: true, Match: m, Target: t, Why: why})
}

// loopback is what counts as loopback, in each IP version.
func (b *builder) loopback() []netip.Prefix { return []netip.Prefix{b.LoopbackV4, rule.LoopbackV6} }

func (b *builder) invalid() {
	b.mangle(rule.PreRouting, rule.Match{State: rule.Invalid}, rule.Jump(rule.DropChain), "packets that conntrack cannot place")
	b.mangle(rule.DropChain, rule.Match{}, rule.Drop, "answering them would reset a connection (istio#36566)")
}

func (b *builder) interfaces() {
	for _, name := range b.ExcludeInterfaces {
		b.nat(rule.PreRouting, rule.Match{In: name}, rule.Leave, "excluded interface")
		b.nat(rule.Output, rule.Match{Out: name}, rule.Leave, "excluded interface")
		if b.TPROXY {
			b.mangle(rule.PreRouting, rule.Match{In: name}, rule.Leave, "excluded interface")
			b.mangle(rule.Output, rule.Match{Out: name}, rule.Leave, "excluded interface")
		}
	}
	for _, name := range b.VirtInterfaces {
		b.natTop(rule.Match{In: name}, rule.Leave, "virtual machine's traffic is not inbound")
	}
}

func (b *builder) inbound() {
	b.nat(rule.Inbound, tcpTo(b.TunnelPort), rule.Leave, "mesh tunnel")
	b.nat(rule.OutRedirect, rule.Match{Proto: rule.TCP}, rule.Redirect(b.ProxyPort), "to Envoy, outbound")
	b.nat(rule.InRedirect, rule.Match{Proto: rule.TCP}, rule.Redirect(b.InboundPort), "to Envoy, inbound")
	switch {
	case !b.InboundPorts.All && len(b.InboundPorts.List) == 0:
	case b.TPROXY:
		b.inboundTransparent()
	default:
		b.inboundPorts(b.nat, func(m rule.Match, why string) { b.nat(rule.Inbound, m, rule.Jump(rule.InRedirect), why) })
	}
}

// inboundPorts sorts out the ports that are captured, which take gets.
func (b *builder) inboundPorts(add func(string, rule.Match, rule.Target, string), take func(m rule.Match, why string)) {
	add(rule.PreRouting, rule.Match{Proto: rule.TCP}, rule.Jump(rule.Inbound), "inbound")
	if !b.InboundPorts.All {
		take(tcpTo(b.InboundPorts.List...), "inbound port")
		return
	}
	if len(b.ExcludeInboundPorts) > 0 {
		add(rule.Inbound, tcpTo(b.ExcludeInboundPorts...), rule.Leave, "excluded inbound port")
	}
	take(rule.Match{Proto: rule.TCP}, "every other inbound port")
}

func (b *builder) outbound() {
	b.nat(rule.Output, rule.Match{}, rule.Jump(rule.Outbound), "outbound")
	if ports := b.ExcludeOutboundPorts; len(ports) > 0 {
		b.nat(rule.Outbound, tcpTo(ports...), rule.Leave, "excluded outbound port")
		b.nat(rule.Outbound, udpTo(ports...), rule.Leave, "excluded outbound port")
	}
	b.nat(rule.Outbound, rule.Match{Srcs: rule.Passthrough, Out: rule.Loopback}, rule.Leave, "Envoy to its own application")
	if b.TPROXY {
		b.fromTheClientsAddress()
	}
	for _, s := range b.senders() {
		b.proxy(s)
	}
	b.ownerGroups(func(m rule.Match, why string) { b.nat(rule.Outbound, m, rule.Leave, why) })
	b.dnsRedirect()
	b.nat(rule.Outbound, rule.Match{Dsts: b.loopback()}, rule.Leave, "loopback")
	b.destinations()
}

// ownerGroups gives leave what groups that are not captured send.
func (b *builder) ownerGroups(leave func(m rule.Match, why string)) {
	if len(b.IncludeGroups) == 0 {
		for _, id := range b.ExcludeGroups {
			leave(rule.Match{Owners: []rule.Owner{{ID: id, Group: true}}}, "excluded owner group")
		}
		return
	}
	var others []rule.Owner
	for _, id := range b.IncludeGroups {
		others = append(others, rule.Owner{ID: id, Group: true, Not: true})
	}
	leave(rule.Match{Owners: others}, "owner group not included")
}

// destinations decides what is left: application traffic to somewhere else.
func (b *builder) destinations() {
	if len(b.ExcludeCIDRs) > 0 {
		b.nat(rule.Outbound, rule.Match{Dsts: b.ExcludeCIDRs}, rule.Leave, "excluded destination")
	}
	if ports := b.IncludeOutboundPorts; len(ports) > 0 {
		b.nat(rule.Outbound, tcpTo(ports...), rule.Jump(rule.OutRedirect), "outbound port")
	}
	if !b.IncludeCIDRs.All && len(b.IncludeCIDRs.List) == 0 {
		return
	}
	everywhere, why := b.IncludeCIDRs.List, "destination"
	if b.IncludeCIDRs.All {
		everywhere, why = nil, "every other destination"
	}
	b.nat(rule.Outbound, rule.Match{Dsts: everywhere}, rule.Jump(rule.OutRedirect), why)
	for _, name := range b.VirtInterfaces {
		b.natTop(rule.Match{In: name, Dsts: everywhere}, rule.Jump(rule.OutRedirect), "from a virtual machine")
	}
}

func tcpTo(ports ...uint16) rule.Match { return rule.Match{Proto: rule.TCP, DstPorts: ports} }

func udpTo(ports ...uint16) rule.Match { return rule.Match{Proto: rule.UDP, DstPorts: ports} }

// withoutCovered keeps the prefixes that no other one of the list contains.
func withoutCovered(list []netip.Prefix) []netip.Prefix {
	if len(list) < 2 {
		return list
	}
	// Sorted, what a prefix contains follows it at once.
	widest := map[netip.Prefix]bool{}
	var last netip.Prefix
	for _, p := range slices.SortedFunc(slices.Values(list), netip.Prefix.Compare) {
		if !last.IsValid() || !last.Overlaps(p) {
			widest[p] = true
			last = p
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool {
		keep := widest[p]
		delete(widest, p) // the same again is not wanted either
		return !keep
	})
}

// WithVIPs adds the ranges of VIPs where only listed destinations are captured: a VIP
// would otherwise leave the pod and be lost (istio#52301).
func (c Config) WithVIPs() Config {
	if c.IncludeCIDRs.All || len(c.IncludeCIDRs.List) == 0 {
		return c
	}
	list := slices.Clone(c.IncludeCIDRs.List)
	for _, vips := range []netip.Prefix{VIPRangeV4, VIPRangeV6} {
		if !slices.Contains(list, vips) {
			list = append(list, vips)
		}
	}
	c.IncludeCIDRs.List = list
	return c
}
