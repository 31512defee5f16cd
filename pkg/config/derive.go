package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// memoryShare is the agent's part, one of so many, of what its control group may have. The other is Envoy's, which holds the same
// configuration and in a larger form: an agent that lives within no half would not have left Envoy enough, and to make a smaller
// one's collector run all the time would help nobody.
const memoryShare = 2

// derive fills what follows from other settings.
func (l *loader) derive(c *Config) {
	l.adoptToken(c)
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
	// All of what the control group may have is what Istio's template sets, for an agent that counts Envoy's memory as its own.
	if whole := c.MemoryLimit == l.src.MemoryLimit; (whole || !l.isSet("memoryLimit")) && l.src.MemoryLimit > 0 {
		c.MemoryLimit = l.src.MemoryLimit / memoryShare
		l.derived("memoryLimit", c.MemoryLimit)
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
	c.ExtraStatTags = l.extraStatTags()
	l.beCompatible(c)
	l.deriveServices(c)
	l.askPlatform(c)
	c.XDSHeaders = l.headers(xdsHeaderPrefix)
	l.deriveCertificate(c)
	l.deriveNode(c)
	overrideFiles(c)
}

// beCompatible turns off what Istio's agent does not do and nobody asked for by a setting of its own: whoever looks for the cause of
// a difference has one switch for all. What comes besides that a user of Istio would not expect of the agent belongs here.
func (l *loader) beCompatible(c *Config) {
	if !c.IstioCompat {
		return
	}
	for name, on := range map[string]*bool{
		"dnsCache": &c.DNSCache, "dnsPrefetch": &c.DNSPrefetch, "dnsHedge": &c.DNSHedge, "keepCertificate": &c.KeepCertificate,
		"lastGood": &c.LastGood,
	} {
		if !l.isSet(name) {
			*on = false
			l.derived(name, false)
		}
	}
	if !l.isSet("dnsStale") {
		c.DNSStale = 0
		l.derived("dnsStale", c.DNSStale)
	}
}

// extraStatTags unites those of ProxyConfig and of the annotation, as Istio's agent does.
func (l *loader) extraStatTags() (all []string) {
	given, _ := l.proxy["extraStatTags"].([]any)
	for _, tag := range given {
		all = append(all, tag.(string)) // the API's type, which was checked
	}
	own, _ := parseList(l.annotations["sidecar.istio.io/extraStatTags"]) // its setting has read it
	for _, tag := range own {
		if !slices.Contains(all, tag) {
			all = append(all, tag)
		}
	}
	return slices.DeleteFunc(all, func(tag string) bool { return tag == "" })
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

// excludedAddrs are those of the interfaces that are left out. One that is not there is named: it may
// come later, and its address would not be left out then.
func (l *loader) excludedAddrs(c *Config) (all []netip.Addr) {
	for _, name := range c.ExcludeInterfaces {
		if l.src.AddrsOf == nil {
			return nil
		}
		addrs, err := l.src.AddrsOf(name)
		if err != nil {
			source, key := l.origin("excludeInterfaces")
			l.warn(source, key, shown(name)+": "+err.Error())
		}
		all = append(all, addrs...)
	}
	return all
}

// deriveAddresses orders the pod's addresses as Istio does and finds its families.
func (l *loader) deriveAddresses(c *Config) {
	if c.InstanceIP.IsValid() {
		c.NodeIPs = append(c.NodeIPs, c.InstanceIP)
	}
	excluded := l.excludedAddrs(c)
	for _, ip := range l.src.NodeIPs {
		if ip = ip.Unmap(); ip.IsValid() && !slices.Contains(c.NodeIPs, ip) && !slices.Contains(excluded, ip) {
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
