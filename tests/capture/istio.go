package capture

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
)

// istioRules writes the rules that Istio's istio-iptables makes of a configuration, one
// rule per port, CIDR and protocol and in its order. It is made from the description
// of Istio's rules, and shares nothing with Rules: the two are compared by what they
// do to packets.
type istioRules struct {
	c     iptables.Config
	v6    bool
	rules map[rule.Table][]string
}

// IstioRules returns the input of iptables-restore for one family that has these rules
// and no others in the tables that capture uses.
func IstioRules(c iptables.Config, f rule.Family) string {
	i := &istioRules{c: c, v6: f == rule.IPv6, rules: map[rule.Table][]string{}}
	if !i.v6 || c.IPv6 {
		i.interfaces()
		i.inbound()
		i.output()
		i.dnsZones()
		i.mangle()
	}
	var out strings.Builder
	for _, table := range []rule.Table{rule.Raw, rule.Mangle, rule.NAT} {
		fmt.Fprintf(&out, "*%s\n", table)
		for _, chain := range i.chains(table) {
			fmt.Fprintf(&out, ":%s - [0:0]\n", chain)
		}
		for _, r := range i.rules[table] {
			out.WriteString(r + "\n")
		}
		out.WriteString("COMMIT\n")
	}
	return out.String()
}

func (i *istioRules) chains(table rule.Table) []string {
	var chains []string
	for _, r := range i.rules[table] {
		for _, word := range strings.Fields(r) {
			if strings.HasPrefix(word, "ISTIO_") && !slices.Contains(chains, word) {
				chains = append(chains, word)
			}
		}
	}
	return chains
}

func (i *istioRules) add(table rule.Table, format string, args ...any) {
	i.rules[table] = append(i.rules[table], "-A "+fmt.Sprintf(format, args...))
}

func (i *istioRules) insert(table rule.Table, format string, args ...any) {
	i.rules[table] = append(i.rules[table], "-I "+fmt.Sprintf(format, args...))
}

// of returns what is of the family, in the order given.
func (i *istioRules) of(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is6() == i.v6 {
			out = append(out, p)
		}
	}
	return out
}

func (i *istioRules) loopback() string {
	if i.v6 {
		return "::1/128"
	}
	return i.c.LoopbackV4.String()
}

func (i *istioRules) passthrough() string {
	if i.v6 {
		return "::6/128"
	}
	return "127.0.0.6/32"
}

func (i *istioRules) inboundWanted() bool {
	return i.c.InboundPorts.All || len(i.c.InboundPorts.List) > 0
}

// owners are the matches of the proxy's uids, then of its gids.
func (i *istioRules) owners() (flags []string) {
	for _, u := range i.c.UIDs {
		flags = append(flags, fmt.Sprintf("--uid-owner %d", u))
	}
	for _, g := range i.c.GIDs {
		flags = append(flags, fmt.Sprintf("--gid-owner %d", g))
	}
	return flags
}

func (i *istioRules) interfaces() {
	tables := []rule.Table{rule.NAT}
	if i.c.TPROXY {
		tables = append(tables, rule.Mangle)
	}
	for _, name := range i.c.ExcludeInterfaces {
		for _, table := range tables {
			i.add(table, "PREROUTING -i %s -j RETURN", name)
			i.add(table, "OUTPUT -o %s -j RETURN", name)
		}
	}
	for _, name := range i.c.VirtInterfaces {
		i.insert(rule.NAT, "PREROUTING 1 -i %s -j RETURN", name)
	}
}

func (i *istioRules) inbound() {
	i.add(rule.NAT, "ISTIO_INBOUND -p tcp --dport %d -j RETURN", i.c.TunnelPort)
	i.add(rule.NAT, "ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports %d", i.c.ProxyPort)
	i.add(rule.NAT, "ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports %d", i.c.InboundPort)
	if i.c.TPROXY || !i.inboundWanted() {
		return
	}
	i.add(rule.NAT, "PREROUTING -p tcp -j ISTIO_INBOUND")
	if i.c.InboundPorts.All {
		for _, p := range i.c.ExcludeInboundPorts {
			i.add(rule.NAT, "ISTIO_INBOUND -p tcp --dport %d -j RETURN", p)
		}
		i.add(rule.NAT, "ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT")
	}
	for _, p := range i.c.InboundPorts.List {
		i.add(rule.NAT, "ISTIO_INBOUND -p tcp --dport %d -j ISTIO_IN_REDIRECT", p)
	}
}

func (i *istioRules) output() {
	i.add(rule.NAT, "OUTPUT -j ISTIO_OUTPUT")
	for _, p := range i.c.ExcludeOutboundPorts {
		i.add(rule.NAT, "ISTIO_OUTPUT -p tcp --dport %d -j RETURN", p)
		i.add(rule.NAT, "ISTIO_OUTPUT -p udp --dport %d -j RETURN", p)
	}
	i.add(rule.NAT, "ISTIO_OUTPUT -o lo -s %s -j RETURN", i.passthrough())
	for _, owner := range i.owners() {
		i.proxy(owner)
	}
	if len(i.c.IncludeGroups) > 0 {
		match := ""
		for _, g := range i.c.IncludeGroups {
			match += fmt.Sprintf(" -m owner ! --gid-owner %d", g)
		}
		i.add(rule.NAT, "ISTIO_OUTPUT%s -j RETURN", match)
	} else {
		for _, g := range i.c.ExcludeGroups {
			i.add(rule.NAT, "ISTIO_OUTPUT -m owner --gid-owner %d -j RETURN", g)
		}
	}
	i.dns()
	i.add(rule.NAT, "ISTIO_OUTPUT -d %s -j RETURN", i.loopback())
	for _, cidr := range i.of(i.c.ExcludeCIDRs) {
		i.add(rule.NAT, "ISTIO_OUTPUT -d %s -j RETURN", cidr)
	}
	for _, p := range i.c.IncludeOutboundPorts {
		i.add(rule.NAT, "ISTIO_OUTPUT -p tcp --dport %d -j ISTIO_REDIRECT", p)
	}
	i.destinations()
}

func (i *istioRules) proxy(owner string) {
	notDirect := fmt.Sprintf("! --dport %d", i.c.TunnelPort)
	if i.c.DNS.Capture && strings.HasPrefix(owner, "--uid") {
		notDirect = fmt.Sprintf("-m multiport ! --dports 53,%d", i.c.TunnelPort)
	}
	i.add(rule.NAT, "ISTIO_OUTPUT -o lo ! -d %s -p tcp %s -m owner %s -j ISTIO_IN_REDIRECT", i.loopback(), notDirect, owner)
	loopbackWanted := slices.ContainsFunc(i.c.IncludeCIDRs.List, func(p netip.Prefix) bool { return p.Addr().IsLoopback() })
	switch {
	case loopbackWanted:
	case i.c.DNS.Capture:
		i.add(rule.NAT, "ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! %s -j RETURN", owner)
	default:
		i.add(rule.NAT, "ISTIO_OUTPUT -o lo -m owner ! %s -j RETURN", owner)
	}
	i.add(rule.NAT, "ISTIO_OUTPUT -m owner %s -j RETURN", owner)
}

func (i *istioRules) destinations() {
	if i.c.IncludeCIDRs.All {
		i.add(rule.NAT, "ISTIO_OUTPUT -j ISTIO_REDIRECT")
		for _, name := range i.c.VirtInterfaces {
			i.insert(rule.NAT, "PREROUTING 1 -i %s -j ISTIO_REDIRECT", name)
		}
		return
	}
	for _, cidr := range i.of(i.c.IncludeCIDRs.List) {
		for _, name := range i.c.VirtInterfaces {
			i.insert(rule.NAT, "PREROUTING 1 -i %s -d %s -j ISTIO_REDIRECT", name, cidr)
		}
		i.add(rule.NAT, "ISTIO_OUTPUT -d %s -j ISTIO_REDIRECT", cidr)
	}
}

// servers are the matches of what DNS capture concerns, in one direction: everything,
// or each server of the family.
func (i *istioRules) servers(flag string) (matches []string) {
	if i.c.DNS.All {
		return []string{""}
	}
	for _, s := range i.c.DNS.Servers {
		if s.Is6() == i.v6 {
			matches = append(matches, fmt.Sprintf("%s %s", flag, netip.PrefixFrom(s, s.BitLen())))
		}
	}
	return matches
}

func (i *istioRules) dns() {
	if !i.c.DNS.Capture || len(i.servers("-d")) == 0 {
		return
	}
	i.add(rule.NAT, "ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS")
	for _, proto := range []string{"tcp", "udp"} {
		for _, server := range i.servers("-d") {
			i.add(rule.NAT, "ISTIO_OUTPUT_DNS -p %s --dport 53 %s -j REDIRECT --to-ports 15053", proto, server)
		}
	}
}

func (i *istioRules) dnsZones() {
	if !i.c.DNS.Capture {
		return
	}
	i.add(rule.Raw, "OUTPUT -j ISTIO_OUTPUT_DNS")
	for _, owner := range i.owners() {
		i.add(rule.Raw, "OUTPUT -p udp --dport 53 -m owner %s -j CT --zone 1", owner)
		i.add(rule.Raw, "OUTPUT -p udp --sport 15053 -m owner %s -j CT --zone 2", owner)
	}
	if len(i.servers("-d")) > 0 {
		i.add(rule.Raw, "PREROUTING -j ISTIO_INBOUND")
	}
	for _, server := range i.servers("-d") {
		i.add(rule.Raw, "ISTIO_OUTPUT_DNS -p udp --dport 53 %s -j CT --zone 2", server)
	}
	for _, server := range i.servers("-s") {
		i.add(rule.Raw, "ISTIO_INBOUND -p udp --sport 53 %s -j CT --zone 1", server)
	}
}

func (i *istioRules) mangle() {
	if i.c.DropInvalid {
		i.add(rule.Mangle, "PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP")
		i.add(rule.Mangle, "ISTIO_DROP -j DROP")
	}
	if !i.c.TPROXY {
		return
	}
	if i.inboundWanted() {
		i.transparent()
	}
	const hairpinMark = 1338 // whatever the other mark is
	mark := i.c.Mark
	i.add(rule.Mangle, "PREROUTING -p tcp -m mark --mark %d -j CONNMARK --save-mark", mark)
	i.add(rule.Mangle, "OUTPUT -p tcp -o lo -m mark --mark %d -j RETURN", mark)
	for _, owner := range i.owners() {
		i.add(rule.Mangle, "OUTPUT ! -d %s -p tcp -o lo -m owner %s -j MARK --set-mark %d", i.loopback(), owner, hairpinMark)
	}
	i.add(rule.Mangle, "OUTPUT -p tcp -m connmark --mark %d -j CONNMARK --restore-mark", mark)
	i.insert(rule.Mangle, "ISTIO_INBOUND 1 -p tcp -m mark --mark %d -j RETURN", mark)
	i.insert(rule.Mangle, "ISTIO_INBOUND 2 -p tcp -s %s -i lo -j RETURN", i.passthrough())
	i.insert(rule.Mangle, "ISTIO_INBOUND 3 -p tcp -i lo -m mark ! --mark %d -j RETURN", hairpinMark)
}

func (i *istioRules) transparent() {
	i.add(rule.Mangle, "ISTIO_DIVERT -j MARK --set-mark %d", i.c.Mark)
	i.add(rule.Mangle, "ISTIO_DIVERT -j ACCEPT")
	i.add(rule.Mangle, "ISTIO_TPROXY ! -d %s -p tcp -j TPROXY --tproxy-mark %d/0xffffffff --on-port %d",
		i.loopback(), i.c.Mark, i.c.InboundPort)
	i.add(rule.Mangle, "PREROUTING -p tcp -j ISTIO_INBOUND")
	ports := []string{""}
	if i.c.InboundPorts.All {
		for _, p := range i.c.ExcludeInboundPorts {
			i.add(rule.Mangle, "ISTIO_INBOUND -p tcp --dport %d -j RETURN", p)
		}
	} else {
		ports = nil
		for _, p := range i.c.InboundPorts.List {
			ports = append(ports, fmt.Sprintf(" --dport %d", p))
		}
	}
	for _, port := range ports {
		i.add(rule.Mangle, "ISTIO_INBOUND -p tcp%s -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT", port)
		i.add(rule.Mangle, "ISTIO_INBOUND -p tcp%s -j ISTIO_TPROXY", port)
	}
}
