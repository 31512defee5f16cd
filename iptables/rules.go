package iptables

import (
	"net/netip"
	"slices"
)

// Ranges of automatic VIPs: what the DNS proxy gives to hosts without an address, out of
// class E space as Istio's, and of the range for benchmarking (RFC 5180). They are here
// because a VIP that is not captured leads nowhere.
var (
	VIPRangeV4 = netip.MustParsePrefix("240.240.0.0/16")
	VIPRangeV6 = netip.MustParsePrefix("2001:2::/48")
)

// builder collects rules. Its methods are in the order in which packets, and the
// rules of a chain, meet them.
type builder struct {
	Config
	rules []Rule
}

// Rules returns the rules that c asks for, table by table in the order of
// tableOrder and, within a chain, in the order of evaluation. The set and its order
// are those of Istio, which people know how to read.
func Rules(c Config) []Rule {
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

func (b *builder) add(r Rule) {
	if !b.IPv6 {
		r.Family &= IPv4
	}
	r.Match.Srcs, r.Match.Dsts = withoutCovered(r.Match.Srcs), withoutCovered(r.Match.Dsts)
	if r.Family != 0 {
		b.rules = append(b.rules, r)
	}
}

func (b *builder) nat(chain string, m Match, t Target, why string) {
	b.add(Rule{Family: Both, Table: NAT, Chain: chain, Match: m, Target: t, Why: why})
}

func (b *builder) mangle(chain string, m Match, t Target, why string) {
	b.add(Rule{Family: Both, Table: Mangle, Chain: chain, Match: m, Target: t, Why: why})
}

// natTop puts a rule before all others of a built-in chain.
func (b *builder) natTop(m Match, t Target, why string) {
	b.add(Rule{Family: Both, Table: NAT, Chain: preRouting, Top: true, Match: m, Target: t, Why: why})
}

// loopback is what counts as loopback, in each IP version.
func (b *builder) loopback() []netip.Prefix { return []netip.Prefix{b.LoopbackV4, loopbackV6} }

func (b *builder) invalid() {
	b.mangle(preRouting, Match{State: Invalid}, jump(dropChain), "packets that conntrack cannot place")
	b.mangle(dropChain, Match{}, drop, "answering them would reset a connection (istio#36566)")
}

func (b *builder) interfaces() {
	for _, name := range b.ExcludeInterfaces {
		b.nat(preRouting, Match{In: name}, accept, "excluded interface")
		b.nat(output, Match{Out: name}, accept, "excluded interface")
		if b.TPROXY {
			b.mangle(preRouting, Match{In: name}, accept, "excluded interface")
			b.mangle(output, Match{Out: name}, accept, "excluded interface")
		}
	}
	for _, name := range b.VirtInterfaces {
		b.natTop(Match{In: name}, accept, "virtual machine's traffic is not inbound")
	}
}

func (b *builder) inbound() {
	b.nat(inbound, tcpTo(b.TunnelPort), accept, "mesh tunnel")
	b.nat(outRedirect, Match{Proto: TCP}, redirect(b.ProxyPort), "to Envoy, outbound")
	b.nat(inRedirect, Match{Proto: TCP}, redirect(b.InboundPort), "to Envoy, inbound")
	switch {
	case !b.InboundPorts.All && len(b.InboundPorts.List) == 0:
	case b.TPROXY:
		b.inboundTransparent()
	default:
		b.inboundPorts(b.nat, func(m Match, why string) { b.nat(inbound, m, jump(inRedirect), why) })
	}
}

// inboundPorts sorts out the ports that are captured, which take gets.
func (b *builder) inboundPorts(add func(string, Match, Target, string), take func(m Match, why string)) {
	add(preRouting, Match{Proto: TCP}, jump(inbound), "inbound")
	if !b.InboundPorts.All {
		take(tcpTo(b.InboundPorts.List...), "inbound port")
		return
	}
	if len(b.ExcludeInboundPorts) > 0 {
		add(inbound, tcpTo(b.ExcludeInboundPorts...), accept, "excluded inbound port")
	}
	take(Match{Proto: TCP}, "every other inbound port")
}

func (b *builder) outbound() {
	b.nat(output, Match{}, jump(outbound), "outbound")
	if ports := b.ExcludeOutboundPorts; len(ports) > 0 {
		b.nat(outbound, tcpTo(ports...), accept, "excluded outbound port")
		b.nat(outbound, udpTo(ports...), accept, "excluded outbound port")
	}
	b.nat(outbound, Match{Srcs: passthrough, Out: loopbackIface}, accept, "Envoy to its own application")
	if b.TPROXY {
		b.fromTheClientsAddress()
	}
	for _, s := range b.senders() {
		b.proxy(s)
	}
	b.ownerGroups(func(m Match, why string) { b.nat(outbound, m, accept, why) })
	b.dnsRedirect()
	b.nat(outbound, Match{Dsts: b.loopback()}, accept, "loopback")
	b.destinations()
}

// ownerGroups gives leave what groups that are not captured send.
func (b *builder) ownerGroups(leave func(m Match, why string)) {
	if len(b.IncludeGroups) == 0 {
		for _, id := range b.ExcludeGroups {
			leave(Match{Owners: []Owner{{ID: id, Group: true}}}, "excluded owner group")
		}
		return
	}
	var others []Owner
	for _, id := range b.IncludeGroups {
		others = append(others, Owner{ID: id, Group: true, Not: true})
	}
	leave(Match{Owners: others}, "owner group not included")
}

// destinations decides what is left: application traffic to somewhere else.
func (b *builder) destinations() {
	if len(b.ExcludeCIDRs) > 0 {
		b.nat(outbound, Match{Dsts: b.ExcludeCIDRs}, accept, "excluded destination")
	}
	if ports := b.IncludeOutboundPorts; len(ports) > 0 {
		b.nat(outbound, tcpTo(ports...), jump(outRedirect), "outbound port")
	}
	if !b.IncludeCIDRs.All && len(b.IncludeCIDRs.List) == 0 {
		return
	}
	everywhere, why := b.IncludeCIDRs.List, "destination"
	if b.IncludeCIDRs.All {
		everywhere, why = nil, "every other destination"
	}
	b.nat(outbound, Match{Dsts: everywhere}, jump(outRedirect), why)
	for _, name := range b.VirtInterfaces {
		b.natTop(Match{In: name, Dsts: everywhere}, jump(outRedirect), "from a virtual machine")
	}
}

func tcpTo(ports ...uint16) Match { return Match{Proto: TCP, DstPorts: ports} }
func udpTo(ports ...uint16) Match { return Match{Proto: UDP, DstPorts: ports} }

// withoutCovered returns the prefixes that no other one of the list contains, in
// their order.
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

// WithVIPs returns c with the ranges of automatic VIPs among the captured
// destinations. Where only listed destinations are captured, a VIP would otherwise
// leave the pod and be lost (istio#52301). Capturing everything, or nothing, is the
// user's own word and stays.
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
