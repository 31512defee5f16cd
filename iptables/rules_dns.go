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
	for _, f := range []Family{IPv4, IPv6} {
		if !b.DNS.forFamily(f) {
			continue
		}
		b.raw(f, preRouting, Match{}, jump(inbound), "answers of nameservers")
		for _, server := range b.nameservers(f) {
			b.raw(f, outboundDNS, Match{Dst: server, Proto: UDP, DstPorts: []uint16{dnsPort}}, appZone, "query of an application")
			b.raw(f, inbound, Match{Src: server, Proto: UDP, SrcPort: dnsPort}, upstreamZone, "answer of a nameserver")
		}
	}
}

// dnsRedirect sends queries to the agent.
func (b *builder) dnsRedirect() {
	for _, f := range []Family{IPv4, IPv6} {
		if !b.DNS.forFamily(f) {
			continue
		}
		b.natFor(f, outbound, Match{}, jump(outboundDNS), "DNS")
		for _, server := range b.nameservers(f) {
			for _, p := range []Proto{TCP, UDP} {
				m := Match{Dst: server, Proto: p, DstPorts: []uint16{dnsPort}}
				b.natFor(f, outboundDNS, m, redirect(dnsProxyPort), "to the agent's DNS")
			}
		}
	}
}

// nameservers returns what the DNS rules match: each server, or one prefix that
// matches every address.
func (b *builder) nameservers(f Family) []netip.Prefix {
	if b.DNS.All {
		return []netip.Prefix{{}}
	}
	var out []netip.Prefix
	for _, s := range b.DNS.serversOf(f) {
		out = append(out, netip.PrefixFrom(s, s.BitLen()))
	}
	return out
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
