package iptables

import (
	"fmt"

	"understudy.mesh/iptables/internal/nftables"
	"understudy.mesh/iptables/internal/policyrouting"
	"understudy.mesh/iptables/internal/xtables"
	"understudy.mesh/iptables/rule"
)

// Render returns the rules of one family as input for iptables-restore --noflush.
func Render(rules []rule.Rule, family rule.Family) []byte {
	return xtables.Render(rules, family)
}

// Commands returns, as commands of ip(8), what Apply does besides the netfilter rules.
func Commands(c Config) (out []string) {
	if c.IPv6 {
		out = append(out, fmt.Sprintf("ip -6 address add %v dev %s nodad", rule.PassthroughV6, rule.Loopback))
	}
	for _, p := range policies(c) {
		ip := "ip"
		if p.Family == rule.IPv6 {
			ip = "ip -6"
		}
		out = append(out,
			fmt.Sprintf("%s rule add fwmark %#x lookup %d", ip, p.Mark, p.Table),
			fmt.Sprintf("%s route add local default dev %s table %d", ip, rule.Loopback, p.Table))
	}
	return out
}

// policies returns what the rules of c rely on.
func policies(c Config) (out []policyrouting.Policy) {
	for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
		if c.Routed()&f != 0 {
			out = append(out, policyrouting.Policy{Family: f, Mark: c.Mark, Table: c.RouteTable})
		}
	}
	return out
}

// RenderNative returns the rules as input for nft -f.
func RenderNative(rules []rule.Rule) []byte {
	return nftables.Render(rules)
}
