package iptables

import (
	"net/netip"
	"slices"

	"understudy.mesh/iptables/rule"
)

// appZone is the conntrack zone between applications and the agent. In one zone, a query
// of an application and one of the agent's from the same port would share a conntrack
// entry, and the redirect of the first would apply to the second (istio#33469).
var appZone = rule.Zone(2)

// dnsZones puts the UDP queries that are redirected, and the agent's answers, into
// appZone. Istio gives a zone to every answer of a nameserver, too; but one to what the
// pod forwards for a container or a virtual machine looks the same, and in that zone
// nobody knows whom it is for (istio#54689, #44996).
func (b *builder) dnsZones() {
	if slices.Contains(b.ExcludeOutboundPorts, DNSPort) { // none is redirected
		return
	}
	families, servers := b.nameservers()
	add := func(chain string, m rule.Match, t rule.Target, why string) {
		b.add(rule.Rule{Family: families, Table: rule.Raw, Chain: chain, Match: m, Target: t, Why: why})
	}
	for _, s := range b.senders() {
		answer := rule.Match{Proto: rule.UDP, SrcPort: DNSProxyPort}
		if s.mark == 0 { // a mark is on what leaves the pod; the port is the agent's whoever runs it
			answer = s.sent(answer)
		}
		add(rule.Output, answer, appZone, "answer of the proxy")
	}
	add(rule.Output, udpTo(DNSPort), rule.Jump(rule.OutboundDNS), "queries of applications")
	b.leaveQueries(func(m rule.Match, why string) { add(rule.OutboundDNS, m, rule.Leave, why) })
	query := udpTo(DNSPort)
	query.Dsts = servers
	add(rule.OutboundDNS, query, appZone, "query of an application")
}

// leaveQueries gives leave what the nat table lets pass before it redirects queries.
func (b *builder) leaveQueries(leave func(m rule.Match, why string)) {
	for _, name := range b.ExcludeInterfaces {
		leave(rule.Match{Out: name}, "excluded interface")
	}
	leave(rule.Match{Srcs: rule.Passthrough, Out: rule.Loopback}, "Envoy to its own application")
	for _, s := range b.senders() {
		leave(s.sent(rule.Match{}), "from the proxy")
	}
	b.ownerGroups(leave)
}

// dnsRedirect sends queries to the agent.
func (b *builder) dnsRedirect() {
	if !b.DNS.Capture {
		return
	}
	families, servers := b.nameservers()
	add := func(chain string, m rule.Match, t rule.Target, why string) {
		b.add(rule.Rule{Family: families, Table: rule.NAT, Chain: chain, Match: m, Target: t, Why: why})
	}
	add(rule.Outbound, rule.Match{}, rule.Jump(rule.OutboundDNS), "DNS")
	for _, p := range []rule.Proto{rule.TCP, rule.UDP} {
		m := rule.Match{Dsts: servers, Proto: p, DstPorts: []uint16{DNSPort}}
		add(rule.OutboundDNS, m, rule.Redirect(DNSProxyPort), "to the agent's DNS")
	}
}

// nameservers returns the IP versions in which queries are captured, and whose: none
// stands for every server.
func (b *builder) nameservers() (families rule.Family, servers []netip.Prefix) {
	if b.DNS.All {
		return rule.Both, nil
	}
	for _, s := range b.DNS.Servers {
		families |= rule.FamilyOf(s)
		servers = append(servers, netip.PrefixFrom(s, s.BitLen()))
	}
	return families, servers
}
