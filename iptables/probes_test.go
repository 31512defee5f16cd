package iptables_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// place is where a packet starts.
type place string

// The places: the pod itself, the world behind eth0 and behind not-istio-nic, and a
// virtual machine behind eth1, whose way to the world is through the pod.
const (
	inPod   place = "pod"
	inWorld place = "world"
	inVM    place = "virtual machine"
)

const (
	machineIface = "eth1"
	otherIface   = "not-istio-nic"
)

type placedProbe struct {
	from place
	probe
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// probesOf returns probes that tell how c's rules treat packets: all that enter the pod
// or pass it, all that Envoy sends in the client's name, and so many of what is sent in
// the pod, chosen by r.
func probesOf(c iptables.Config, r *rand.Rand, most int) []placedProbe {
	out := slices.Concat(enteringProbes(c), envoyProbes(c))
	if !takesMarks(c) { // TPROXY takes what is forwarded, too, and the answers have no way back
		out = append(out, machineProbes()...)
	}
	sent := outboundProbes(c)
	r.Shuffle(len(sent), func(i, j int) { sent[i], sent[j] = sent[j], sent[i] })
	for _, p := range sent[:min(most, len(sent))] {
		out = append(out, placedProbe{inPod, p})
	}
	return out
}

func outboundProbes(c iptables.Config) (out []probe) {
	owners := []owner{{0, 0}, {1000, 1000}, {capture.ProxyUID, capture.ProxyUID}, {1000, capture.ProxyUID}, {capture.ProxyUID, 1000}}
	for _, uid := range c.UIDs {
		owners = append(owners, owner{uid, 1000})
	}
	for _, gid := range slices.Concat(c.GIDs, c.IncludeGroups, c.ExcludeGroups) {
		owners = append(owners, owner{1000, gid})
	}
	slices.SortFunc(owners, func(a, b owner) int { return int(a.uid<<16+a.gid) - int(b.uid<<16+b.gid) })
	for _, o := range slices.Compact(owners) {
		for _, to := range destinationsOf(c) {
			for _, port := range portsOf(c) {
				out = append(out, probe{owner: o, network: "tcp", to: netip.AddrPortFrom(to, port)})
			}
			for _, port := range slices.Concat([]uint16{iptables.DNSPort, 4000}, head(c.ExcludeOutboundPorts)) {
				out = append(out, probe{owner: o, network: "udp", to: netip.AddrPortFrom(to, port)})
			}
		}
	}
	return out
}

func destinationsOf(c iptables.Config) []netip.Addr {
	to := addrs("1.2.3.4", "8.8.8.8", "240.240.1.1", "10.77.0.2", "10.78.0.2", "10.79.0.2", "127.0.0.1", "127.0.0.6", "127.1.2.3", capture.PodV4, "10.79.0.1",
		"2600::1", "2001:2::1", "fd77::2", "fd79::2", "::1", capture.PodV6)
	if c.IPv6 {
		to = append(to, rule.PassthroughV6.Addr())
	}
	for _, p := range slices.Concat(c.IncludeCIDRs.List, c.ExcludeCIDRs) {
		if p.IsSingleIP() {
			to = append(to, p.Addr())
		} else if p.Bits() > 0 {
			to = append(to, p.Addr().Next())
		}
	}
	for _, s := range c.DNS.Servers {
		if s.IsLoopback() || s.Is4() || netip.MustParsePrefix("2000::/3").Contains(s) { // others lead nowhere, slowly
			to = append(to, s)
		}
	}
	slices.SortFunc(to, netip.Addr.Compare)
	return slices.Compact(to)
}

func portsOf(c iptables.Config) []uint16 {
	ports := slices.Concat([]uint16{80, iptables.DNSPort, 4000, c.TunnelPort, c.ProxyPort},
		head(c.IncludeOutboundPorts), head(c.ExcludeOutboundPorts), head(c.InboundPorts.List))
	slices.Sort(ports)
	return slices.Compact(ports)
}

// head returns the first two, which stand for the rest.
func head(ports []uint16) []uint16 { return ports[:min(2, len(ports))] }

func enteringProbes(c iptables.Config) (out []placedProbe) {
	add := func(network, to string, port uint16) {
		p := probe{owner: owner{1000, 1000}, network: network, to: netip.AddrPortFrom(netip.MustParseAddr(to), port)}
		out = append(out, placedProbe{inWorld, p})
	}
	ports := slices.Concat([]uint16{22, 80, 4000, c.TunnelPort, c.ProxyPort, iptables.DNSPort, iptables.DNSProxyPort},
		head(c.InboundPorts.List), head(c.ExcludeInboundPorts), head(c.IncludeOutboundPorts))
	slices.Sort(ports)
	ports = slices.Compact(ports)
	for _, to := range []string{capture.PodV4, capture.PodV6, "10.79.0.1", "fd79::1"} {
		for _, port := range ports {
			add("tcp", to, port)
		}
		add("udp", to, iptables.DNSPort)
		add("udp", to, 4000)
	}
	return out
}

func machineProbes() (out []placedProbe) {
	for _, to := range addrs("1.2.3.4", "1.1.1.1", "9.9.1.1", "10.1.2.3", "10.77.0.2", "10.78.0.1", capture.PodV4,
		"2600::1", "2001:db8::1", "fd77::2", "fd78::1", capture.PodV6) {
		for _, port := range []uint16{80, 4000, iptables.DNSPort} {
			out = append(out, placedProbe{inVM, probe{network: "tcp", to: netip.AddrPortFrom(to, port)}})
		}
		out = append(out, placedProbe{inVM, probe{network: "udp", to: netip.AddrPortFrom(to, iptables.DNSPort)}})
	}
	return out
}

// envoyProbes are what Envoy sends on to the application: from an address of its own
// or, where it is transparent, from the client's. A transparent Envoy is root of the
// proxy's group, as Istio injects it: with the proxy's uid Istio's rules turn it back.
func envoyProbes(c iptables.Config) (out []placedProbe) {
	add := func(o owner, from, to string, mark uint32) {
		for _, port := range []uint16{80, 4000} {
			out = append(out, placedProbe{inPod, probe{owner: o, network: "tcp", mark: mark,
				source: netip.MustParseAddr(from), to: netip.AddrPortFrom(netip.MustParseAddr(to), port)}})
		}
	}
	for _, o := range []owner{{1000, 1000}, {capture.ProxyUID, capture.ProxyUID}, {c.UIDs[0], c.GIDs[0]}} {
		add(o, "127.0.0.6", capture.PodV4, 0)
		add(o, "127.0.0.6", "127.0.0.1", 0)
		if c.IPv6 {
			add(o, "::6", capture.PodV6, 0)
			add(o, "::6", "::1", 0)
		}
	}
	// Nor is root turned back where it counts as the application.
	if takesMarks(c) && !slices.ContainsFunc(c.IncludeCIDRs.List, func(p netip.Prefix) bool { return p.Addr().IsLoopback() }) && !slices.Contains(c.UIDs, 0) {
		add(owner{0, c.GIDs[0]}, "10.77.0.2", capture.PodV4, c.Mark)
		if c.IPv6 {
			add(owner{0, c.GIDs[0]}, "fd77::2", capture.PodV6, c.Mark)
		}
	}
	return out
}

// takesMarks reports whether packets with the mark need a route of their own.
func takesMarks(c iptables.Config) bool {
	return c.TPROXY && (c.InboundPorts.All || len(c.InboundPorts.List) > 0)
}
