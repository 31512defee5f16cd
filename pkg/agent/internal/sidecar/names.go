package sidecar

import (
	"cmp"
	"path/filepath"
	"strings"
	"time"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/config"
)

const (
	// dataDir outlives a restart of the container: an emptyDir in Istio's pods.
	dataDir = "/var/lib/istio/data"
	vipFile = "vips.json"
	// compiledFile has what the configuration files made.
	compiledFile = "compiled.pb"
	// quarantine is how long a freed VIP is given to no other host: longer than
	// any client may keep an answer.
	quarantine = 10 * time.Minute
	// resolvConf names the pod's own DNS servers and search domains.
	resolvConf = "/etc/resolv.conf"
)

// names answers the look-ups of names, of the pod (with DNS capture) and of Envoy, and knows who has which VIP.
type names struct {
	dns      *dnsproxy.Server
	captured bool // the pod's queries come here too
	resolver *resolver
	vips     *vip.Pool
}

// openNames reads the VIP allocation, makes the DNS proxy, and binds the port for Envoy's look-ups.
func openNames(c *config.Config, w World) (*names, error) {
	vips, err := vip.Open(vip.Config{
		Path: filepath.Join(cmp.Or(w.DataDir, dataDir), vipFile), V4: iptables.VIPRangeV4, V6: iptables.VIPRangeV6, IPv6: c.IPv6,
		Quarantine: quarantine, Now: time.Now, Log: w.Log("dnsproxy"),
	})
	if err != nil {
		return nil, err
	}
	server, err := dnsproxy.New(dnsproxy.Config{
		Upstream: upstream.Config{
			Own: c.DNSAddrs, Mark: c.ProxyMark, ResolvConf: resolvConf,
			Timeout: c.DNSForwardTimeout, Parallel: c.DNSForwardParallel, NoHedge: !c.DNSHedge,
		},
		Cache:  cache.Config{Stale: staleTime(c), ClusterDomain: clusterDomain(c), Off: !c.DNSCache, NoPrefetch: !c.DNSPrefetch},
		Domain: ownDomain(c), HoldBeforeTable: c.DNSHold, TTL: uint32(c.DNSTTL.Seconds()),
		Log: w.Log("dnsproxy"), Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	r, err := listenResolver(c.IPv4, server)
	if err != nil {
		return nil, err
	}
	return &names{dns: server, captured: c.DNSCapture, resolver: r, vips: vips}, nil
}

// update changes the name table: it gets the hosts of set, and loses those of gone.
func (n *names) update(set []table.Host, gone []string) {
	if old := n.dns.Table(); old != nil {
		n.dns.Swap(old.With(set, gone))
		return
	}
	n.dns.Swap(table.New(set))
}

// ownDomain is the search domain that Kubernetes gives first to the pods of this one's
// namespace; "" when --domain is another one, below which names are other people's.
func ownDomain(c *config.Config) string {
	if !strings.HasPrefix(strings.ToLower(c.Domain), strings.ToLower(c.PodNamespace)+".svc.") {
		return ""
	}
	return c.Domain
}

// clusterDomain is what stands behind <namespace>.svc in the pod's own domain, "" elsewhere.
func clusterDomain(c *config.Config) string {
	_, domain, _ := strings.Cut(strings.ToLower(ownDomain(c)), ".svc.")
	return domain
}

// staleTime is the setting as dnsproxy takes it, where 0 is its default.
func staleTime(c *config.Config) time.Duration {
	if c.DNSStale == 0 {
		return -1
	}
	return c.DNSStale
}
