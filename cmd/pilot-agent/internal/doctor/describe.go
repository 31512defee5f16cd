package doctor

import (
	"fmt"
	"strings"

	"understudy.mesh/iptables"
)

// describeCapture describes what a configuration captures.
func describeCapture(c iptables.Config) []string {
	families := "IPv4"
	if c.IPv6 {
		families = "IPv4 and IPv6"
	}
	lines := []string{fmt.Sprintf("outbound (%s): %s", families, describeOutbound(c))}
	if skip := outboundExceptions(c); skip != "" {
		lines = append(lines, "  but not "+skip)
	}
	how := "REDIRECT"
	if c.TPROXY {
		how = fmt.Sprintf("TPROXY, mark %#x, route table %d", c.Mark, c.RouteTable)
	}
	in := "nothing"
	switch {
	case c.InboundPorts.All:
		in = "TCP to every port"
		if len(c.ExcludeInboundPorts) > 0 {
			in += " but " + enumerate(c.ExcludeInboundPorts)
		}
	case len(c.InboundPorts.List) > 0:
		in = "TCP to ports " + enumerate(c.InboundPorts.List)
	}
	if in != "nothing" {
		in += fmt.Sprintf(" -> Envoy, port %d, by %s; never port %d", c.InboundPort, how, c.TunnelPort)
	}
	lines = append(lines, "inbound: "+in)
	dns := "not captured"
	switch {
	case c.DNS.Capture && c.DNS.All:
		dns = "queries to every server -> the agent, port 15053"
	case c.DNS.Capture:
		dns = "queries to " + enumerate(c.DNS.Servers) + " -> the agent, port 15053"
	}
	return append(lines, "DNS: "+dns)
}

func describeOutbound(c iptables.Config) string {
	var to []string
	if c.IncludeCIDRs.All {
		to = append(to, "every destination")
	} else if len(c.IncludeCIDRs.List) > 0 {
		to = append(to, enumerate(c.IncludeCIDRs.List))
	}
	if len(c.IncludeOutboundPorts) > 0 {
		to = append(to, "ports "+enumerate(c.IncludeOutboundPorts))
	}
	if len(to) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("TCP to %s -> Envoy, port %d", strings.Join(to, " and "), c.ProxyPort)
}

func outboundExceptions(c iptables.Config) string {
	var out []string
	add := func(n int, text string) {
		if n > 0 {
			out = append(out, text)
		}
	}
	var proxy []string
	if len(c.UIDs) > 0 {
		proxy = append(proxy, "uid "+enumerate(c.UIDs))
	}
	if len(c.GIDs) > 0 {
		proxy = append(proxy, "gid "+enumerate(c.GIDs))
	}
	if c.ProxyMark != 0 {
		proxy = append(proxy, fmt.Sprintf("mark %#x", c.ProxyMark))
	}
	add(len(proxy), "from the proxy ("+strings.Join(proxy, "; ")+")")
	add(len(c.ExcludeOutboundPorts), "to ports "+enumerate(c.ExcludeOutboundPorts))
	add(len(c.ExcludeCIDRs), "to "+enumerate(c.ExcludeCIDRs))
	add(len(c.ExcludeInterfaces), "on interfaces "+enumerate(c.ExcludeInterfaces))
	add(len(c.IncludeGroups), "from groups other than "+enumerate(c.IncludeGroups))
	add(len(c.ExcludeGroups), "from groups "+enumerate(c.ExcludeGroups))
	return strings.Join(out, "; ")
}

// enumerate lists items with commas, at most the first ten.
func enumerate[T any](items []T) string {
	const shown = 10
	var out []string
	for i, item := range items {
		if i == shown {
			out = append(out, fmt.Sprintf("and %d more", len(items)-i))
			break
		}
		out = append(out, fmt.Sprint(item))
	}
	return strings.Join(out, ", ")
}
