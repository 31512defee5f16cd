package iptables

import (
	"net/netip"
	"slices"
)

// appZone is the conntrack zone between applications and the agent. One source port may
// send two queries, one caught and one of the agent's own. Without a zone for the first
// both would share a conntrack entry, and the redirect of the first would apply to the
// second (istio#33469).
var appZone = conntrackZone(2)

// dnsZones puts the UDP queries that are redirected, and what the agent answers to them,
// into appZone. All others stay where the kernel has them. Istio gives a zone to the
// agent's own queries, too, and so to every answer of a nameserver; but an answer to what
// the pod forwards for a container or a virtual machine looks the same when it arrives,
// and in that zone nobody knows whom it is for (istio#54689, #44996).
func (b *builder) dnsZones() {
	if slices.Contains(b.ExcludeOutboundPorts, dnsPort) { // none is redirected
		return
	}
	families, servers := b.nameservers()
	add := func(chain string, m Match, t Target, why string) {
		b.add(Rule{Family: families, Table: Raw, Chain: chain, Match: m, Target: t, Why: why})
	}
	for _, s := range b.senders() {
		answer := Match{Proto: UDP, SrcPort: dnsProxyPort}
		if s.mark == 0 { // a mark is on what leaves the pod; the port is the agent's whoever runs it
			answer = s.sent(answer)
		}
		add(output, answer, appZone, "answer of the proxy")
	}
	add(output, udpTo(dnsPort), jump(outboundDNS), "queries of applications")
	b.leaveQueries(func(m Match, why string) { add(outboundDNS, m, accept, why) })
	query := udpTo(dnsPort)
	query.Dsts = servers
	add(outboundDNS, query, appZone, "query of an application")
}

// leaveQueries gives leave what the nat table lets pass before it redirects queries.
func (b *builder) leaveQueries(leave func(m Match, why string)) {
	for _, name := range b.ExcludeInterfaces {
		leave(Match{Out: name}, "excluded interface")
	}
	leave(Match{Srcs: passthrough, Out: loopbackIface}, "Envoy to its own application")
	for _, s := range b.senders() {
		leave(s.sent(Match{}), "from the proxy")
	}
	b.ownerGroups(leave)
}

// dnsRedirect sends queries to the agent.
func (b *builder) dnsRedirect() {
	if !b.DNS.Capture {
		return
	}
	families, servers := b.nameservers()
	add := func(chain string, m Match, t Target, why string) {
		b.add(Rule{Family: families, Table: NAT, Chain: chain, Match: m, Target: t, Why: why})
	}
	add(outbound, Match{}, jump(outboundDNS), "DNS")
	for _, p := range []Proto{TCP, UDP} {
		m := Match{Dsts: servers, Proto: p, DstPorts: []uint16{dnsPort}}
		add(outboundDNS, m, redirect(dnsProxyPort), "to the agent's DNS")
	}
}

// nameservers returns the IP versions in which queries are captured, and whose: none
// stands for every server.
func (b *builder) nameservers() (families Family, servers []netip.Prefix) {
	if b.DNS.All {
		return Both, nil
	}
	for _, s := range b.DNS.Servers {
		families |= familyOf(s)
		servers = append(servers, netip.PrefixFrom(s, s.BitLen()))
	}
	return families, servers
}
