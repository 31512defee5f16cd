package config

import (
	"fmt"
	"strconv"
	"time"

	"understudy.mesh/internal/unixsock"
)

const (
	// Envoy's capture ports are Istio's, in the iptables rules of every pod.
	outboundPort, inboundPort = 15001, 15006
	// tproxyMark is what Istio marks connections to the application with in TPROXY mode;
	// the next number marks the pod's calls to itself.
	tproxyMark = 1337
	// envoyFlushInterval is how often Envoy flushes statistics unless it is told.
	envoyFlushInterval = 5 * time.Second
	// maxLastGoodAge bounds for how long a policy may be unknown to an Envoy that starts without istiod.
	maxLastGoodAge = 24 * time.Hour
	// maxSocketName is the longest name, with its directory of a generation, that a
	// socket under configPath has, the slash before it not counted.
	maxSocketName = 40
)

// check finds values that are each right, and wrong together.
func (l *loader) check(c *Config) {
	l.checkPorts(c)
	l.checkPath("configPath", c.ConfigPath)
	l.checkPath("handoffDir", c.HandoffDir)
	if c.DrainDuration < time.Second {
		l.reject("drainDuration", c.DrainDuration.String(), "want at least 1s: Envoy counts whole seconds")
	}
	if c.ConnectTimeout < time.Millisecond {
		l.reject("connectTimeout", c.ConnectTimeout.String(), "want at least 1ms: Envoy refuses a cluster that has no time to connect")
	}
	if c.DNSTTL < time.Second || c.DNSTTL%time.Second != 0 {
		l.reject("dnsTTL", c.DNSTTL.String(), "want whole seconds, at least 1s: records count in seconds, and clients ask again each time for a record with 0")
	}
	if c.ProxyMark == tproxyMark || c.ProxyMark == tproxyMark+1 {
		l.reject("proxyMark", fmt.Sprintf("%#x", c.ProxyMark), fmt.Sprintf("want another than %#x and %#x, which TPROXY mode gives to other traffic", tproxyMark, tproxyMark+1))
	}
	if c.Interception == NoCapture {
		source, key := l.origin("interceptionMode")
		l.warn(source, key, "nothing is captured, and Envoy gets only what is sent to its ports 15001 and 15006: no listener is bound to a service's port, as Istio would; want REDIRECT or TPROXY")
	}
	if c.LastGoodAge > maxLastGoodAge {
		l.reject("lastGoodAge", c.LastGoodAge.String(), "want at most 24h: what istiod has forbidden meanwhile is unknown to an Envoy that starts with it")
	}
	l.checkServices(c)
	l.checkCertificate(c)
	if c.CustomConfigFile != "" && c.BootstrapOverride != "" {
		l.reject("bootstrapOverride", c.BootstrapOverride, "want none beside customConfigFile: write it in there")
	}
	if c.LogTarget == "" {
		l.reject("logTarget", "", "want stdout, stderr or a file")
	}
	if _, err := ParseRole(string(c.Role)); err != nil {
		l.problems = append(l.problems, err)
	}
}

// checkPorts refuses two servers on one port. Only the status port and the ready port
// may be the same: ASM's manifests do that, and one server then does both.
func (l *loader) checkPorts(c *Config) {
	taken := map[uint16]string{
		outboundPort: "Envoy's capture of outbound traffic",
		inboundPort:  "Envoy's capture of inbound traffic",
	}
	claim := func(port uint16, name, use string) {
		if by, ok := taken[port]; ok {
			l.reject(name, strconv.Itoa(int(port)), "want another port: this one is "+by)
			return
		}
		taken[port] = use
	}
	claim(c.AdminPort, "proxyAdminPort", "Envoy's admin interface (proxyAdminPort)")
	claim(c.StatsPort, "prometheusPort", "Envoy's statistics (ENVOY_PROMETHEUS_PORT)")
	if c.ConfigDir == "" && c.SecureStatsPort != 0 {
		claim(c.SecureStatsPort, "secureMetricsPort", "Envoy's statistics over mutual TLS (ENVOY_SECURE_METRICS_PORT)")
	}
	if c.ConfigDir == "" && c.SecureMergedStatsPort != 0 {
		claim(c.SecureMergedStatsPort, "secureMergedMetricsPort", "the merged metrics over mutual TLS (ENVOY_SECURE_MERGED_METRICS_PORT)")
	}
	if c.DNSCapture && len(c.DNSAddrs) > 0 {
		claim(c.DNSAddrs[0].Port(), "dnsProxyAddr", "the DNS server (DNS_PROXY_ADDR)")
	}
	claim(c.ReadyPort, "readyPort", "the readiness server (ENVOY_STATUS_PORT)")
	if c.StatusPort != 0 && c.StatusPort != c.ReadyPort {
		claim(c.StatusPort, "statusPort", "the status server (statusPort)")
	}
}

// checkPath refuses a directory that is too long for the path of a socket in it.
func (l *loader) checkPath(name, path string) {
	if len(path)+1+maxSocketName > unixsock.MaxPath {
		l.reject(name, path, fmt.Sprintf("%d bytes, want at most %d: a Unix socket's path holds %d bytes, and the sockets in it take %d",
			len(path), unixsock.MaxPath-1-maxSocketName, unixsock.MaxPath, 1+maxSocketName))
	}
}
