package iptables

import "fmt"

// Render returns the rules of one family as input for iptables-restore --noflush in
// a namespace without any rules of ours. It is empty when there are none.
func Render(rules []Rule, family Family) []byte {
	return renderRestore(rules, family)
}

// Commands returns, as commands of ip(8), what Apply does besides the netfilter rules.
func Commands(c Config) (out []string) {
	if c.IPv6 {
		out = append(out, fmt.Sprintf("ip -6 address add %v dev %s nodad", passthroughV6, loopbackIface))
	}
	for _, p := range policies(c) {
		ip := "ip"
		if p.family == IPv6 {
			ip = "ip -6"
		}
		out = append(out,
			fmt.Sprintf("%s rule add fwmark %#x lookup %d", ip, p.mark, p.table),
			fmt.Sprintf("%s route add local default dev %s table %d", ip, loopbackIface, p.table))
	}
	return out
}

// policies returns what the rules of c rely on.
func policies(c Config) (out []policy) {
	for _, f := range []Family{IPv4, IPv6} {
		if c.Routed()&f != 0 {
			out = append(out, policy{f, c.Mark, c.RouteTable})
		}
	}
	return out
}

// RenderNative returns the rules in nft's syntax, as nft -f takes it in a namespace
// without any rules of ours. It is empty when there are none.
func RenderNative(rules []Rule) []byte {
	return renderNFT(rules)
}
