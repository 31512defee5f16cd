package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// derive fills what follows from other settings.
func (l *loader) derive(c *Config) {
	l.deriveAddresses(c)
	if !l.isSet("domain") || c.Domain == "" {
		c.Domain = c.PodNamespace + ".svc.cluster.local"
		l.derived("domain", c.Domain)
	}
	if !l.isSet("upgradeDrainDuration") {
		c.UpgradeDrainDuration = c.ParentShutdownDuration
		l.derived("upgradeDrainDuration", c.UpgradeDrainDuration)
	}
	if !l.isSet("handoffDir") && l.src.IsDir(DefaultHandoffDir) {
		c.HandoffDir = DefaultHandoffDir
		l.derived("handoffDir", c.HandoffDir)
	}
	if !l.isSet("concurrency") && c.CPULimit > 0 {
		c.Concurrency = c.CPULimit
		l.derived("concurrency", c.Concurrency)
	}
	if !l.isSet("connectionLimit") && c.NodeConnectionLimit > 0 {
		c.ConnectionLimit = c.NodeConnectionLimit
		l.derived("connectionLimit", c.ConnectionLimit)
	}
	c.StatsInclusionPrefixes = perAddress(c.StatsInclusionPrefixes, c.NodeIPs, netip.Addr.String)
	c.StatsInclusionSuffixes = perAddress(c.StatsInclusionSuffixes, c.NodeIPs, netip.Addr.String)
	c.StatsInclusionRegexps = perAddress(c.StatsInclusionRegexps, c.NodeIPs, func(ip netip.Addr) string { return regexp.QuoteMeta(ip.String()) })
	level, components := splitLevels(c.ProxyLogLevel)
	c.ProxyLogLevel = level
	if components != "" {
		c.ProxyComponentLogLevel = components
	}
	// Istio captures the DNS of sidecars; a gateway asks for the server itself.
	c.DNSCapture = (c.DNSCapture && c.Role == Sidecar) || c.DNSServer
	l.deriveNode(c)
}

// perAddress puts each of the pod's addresses in place of {pod_ip}, as Istio's agent does.
func perAddress(list []string, ips []netip.Addr, spell func(netip.Addr) string) (all []string) {
	const placeholder = "{pod_ip}"
	for _, item := range list {
		if !strings.Contains(item, placeholder) {
			all = append(all, item)
			continue
		}
		for _, ip := range ips {
			all = append(all, strings.ReplaceAll(item, placeholder, spell(ip)))
		}
	}
	return all
}

// deriveAddresses orders the pod's addresses as Istio does and finds its families.
func (l *loader) deriveAddresses(c *Config) {
	if c.InstanceIP.IsValid() {
		c.NodeIPs = append(c.NodeIPs, c.InstanceIP)
	}
	for _, ip := range l.src.NodeIPs {
		if ip = ip.Unmap(); ip.IsValid() && !slices.Contains(c.NodeIPs, ip) {
			c.NodeIPs = append(c.NodeIPs, ip)
		}
	}
	if len(c.NodeIPs) == 0 {
		c.NodeIPs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	c.IPv4 = slices.ContainsFunc(c.NodeIPs, netip.Addr.Is4)
	c.IPv6 = slices.ContainsFunc(c.NodeIPs, netip.Addr.Is6) && (c.DualStack || c.NodeIPs[0].Is6())
	if len(c.DNSAddrs) > 1 && !c.IPv6 { // localhost and the wildcard stand for both families
		c.DNSAddrs = slices.DeleteFunc(c.DNSAddrs, func(a netip.AddrPort) bool { return a.Addr().Is6() })
	}
}

// deriveNode builds the identity that Envoy sends to the control plane, by the rules of
// Istio's agent (pilot/cmd/pilot-agent, pkg/bootstrap).
func (l *loader) deriveNode(c *Config) {
	m := l.nodeMetadata(c)
	labels, _ := m["LABELS"].(map[string]any)
	c.Node = Node{
		ID: strings.Join([]string{
			string(c.Role), c.NodeIPs[0].String(), c.PodName + "." + c.PodNamespace, c.Domain,
		}, "~"),
		Cluster:  clusterName(c, labels, m),
		Metadata: m,
	}
	c.Node.Region, c.Node.Zone, c.Node.SubZone = locality(labels)
}

// clusterName is the service cluster where one was set, else the name by which the
// pod's labels call its workload.
func clusterName(c *Config, labels, metadata map[string]any) string {
	if c.ServiceCluster != "" && c.ServiceCluster != defaultServiceCluster {
		return c.ServiceCluster
	}
	for _, label := range []string{"app", "app.kubernetes.io/name", "service.istio.io/canonical-name"} {
		if name, _ := labels[label].(string); name != "" {
			return name + "." + c.PodNamespace
		}
	}
	if name, _ := metadata["WORKLOAD_NAME"].(string); name != "" {
		return name + "." + c.PodNamespace
	}
	return defaultServiceCluster + "." + c.PodNamespace
}

// locality reads region/zone/subzone from the pod's labels; the older label may write
// dots, as a label's value cannot hold a slash.
func locality(labels map[string]any) (region, zone, subZone string) {
	text, _ := labels["topology.istio.io/locality"].(string)
	if text == "" {
		text, _ = labels["istio-locality"].(string)
	}
	if !strings.Contains(text, "/") {
		text = strings.ReplaceAll(text, ".", "/")
	}
	parts := append(strings.SplitN(text, "/", 3), "", "")
	return parts[0], parts[1], parts[2]
}
