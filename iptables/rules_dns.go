package iptables

import "net/netip"

// An application may send two queries from one source port, one caught and one of
// the proxy's own. Without zones of their own both would share a conntrack entry and
// the redirect of the first would apply to the second (istio#33469).
var (
	upstreamZone = conntrackZone(1) // between the proxy and the nameservers
	appZone      = conntrackZone(2) // between applications and the proxy
)

// dnsZones sorts UDP queries into conntrack zones. CT leaves a packet that already
// has a zone alone, so the proxy's own rules must come before those for all senders:
// otherwise its queries would be tracked in one zone and their answers in the other
// (istio#46935).
func (b *builder) dnsZones() {
	for _, o := range b.proxyOwners() {
		owners := []Owner{o}
		b.raw(Both, output, Match{Proto: UDP, DstPorts: []uint16{dnsPort}, Owners: owners}, upstreamZone, "query of the proxy")
		b.raw(Both, output, Match{Proto: UDP, SrcPort: dnsProxyPort, Owners: owners}, appZone, "answer of the proxy")
	}
	b.raw(Both, output, Match{}, jump(outboundDNS), "queries of applications")
	families, servers := b.nameservers()
	b.raw(families, preRouting, Match{}, jump(inbound), "answers of nameservers")
	b.raw(families, outboundDNS, Match{Dsts: servers, Proto: UDP, DstPorts: []uint16{dnsPort}}, appZone, "query of an application")
	b.raw(families, inbound, Match{Srcs: servers, Proto: UDP, SrcPort: dnsPort}, upstreamZone, "answer of a nameserver")
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

func (b *builder) proxyOwners() []Owner {
	var out []Owner
	for _, id := range b.UIDs {
		out = append(out, Owner{ID: id})
	}
	for _, id := range b.GIDs {
		out = append(out, Owner{ID: id, Group: true})
	}
	return out
}

func (b *builder) raw(f Family, chain string, m Match, t Target, why string) {
	b.add(Rule{Family: f, Table: Raw, Chain: chain, Match: m, Target: t, Why: why})
}
