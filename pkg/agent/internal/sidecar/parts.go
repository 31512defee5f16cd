package sidecar

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.mesh/bootstrap"
	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/files"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
)

const (
	// outboundPort and inboundPort are where capture sends traffic (Istio's).
	outboundPort = 15001
	inboundPort  = 15006

	// dataDir outlives a restart of the container: an emptyDir in Istio's pods.
	dataDir = "/var/lib/istio/data"
	vipFile = "vips.json"
	// quarantine is how long a freed VIP is given to no other host: longer than
	// any client may keep an answer.
	quarantine = 10 * time.Minute
	// resolvConf names the pod's own DNS servers and search domains.
	resolvConf = "/etc/resolv.conf"
	// maxOverride is what one argument of execve(2) may have (MAX_ARG_STRLEN).
	maxOverride = 128<<10 - 1
	// maxCacheState bounds what of the DNS cache a successor gets: the hottest of it.
	maxCacheState = 4 << 20
)

func meshOptions(c *config.Config) mesh.Options {
	o := mesh.Options{
		Namespace:    c.PodNamespace,
		IPv4:         c.IPv4,
		IPv6:         c.IPv6,
		InboundPort:  inboundPort,
		OutboundPort: outboundPort,
		ReservedPorts: []uint16{
			outboundPort, inboundPort, c.AdminPort, c.StatusPort, c.ReadyPort, c.StatsPort, dnsPort(c),
		},
		RegistryOnly:     c.RegistryOnly,
		AutoAllocate:     c.DNSCapture && c.DNSAutoAllocate,
		VIPRanges:        []netip.Prefix{iptables.VIPRangeV4, iptables.VIPRangeV6},
		ConnectTimeout:   c.ConnectTimeout,
		DetectionTimeout: c.DetectionTimeout,
		AccessLog:        mesh.AccessLog{Path: c.AccessLogFile, Format: c.AccessLogFormat, JSON: c.AccessLogJSON},
		AllowIgnored:     c.AllowIgnored,
	}
	if c.Interception == config.TPROXY {
		o.TransparentMark = iptables.DefaultMark // of istio-iptables, whose -t must say nothing else
	}
	return o
}

// newDNS makes the DNS proxy and the VIP allocation, where they are wanted, and what
// answers Envoy's own look-ups in any case.
func (s *Sidecar) newDNS() (err error) {
	s.vips, err = vip.Open(vip.Config{
		Path: filepath.Join(cmp.Or(s.world.DataDir, dataDir), vipFile), V4: iptables.VIPRangeV4, V6: iptables.VIPRangeV6, IPv6: s.cfg.IPv6,
		Quarantine: quarantine, Now: time.Now, Log: s.world.Log("dnsproxy"),
	})
	if err != nil {
		return err
	}
	server, err := dnsproxy.New(dnsproxy.Config{
		Upstream: upstream.Config{
			Own: s.cfg.DNSAddrs, Mark: s.cfg.ProxyMark, ResolvConf: resolvConf,
			Timeout: s.cfg.DNSForwardTimeout, Parallel: s.cfg.DNSForwardParallel, NoHedge: !s.cfg.DNSHedge,
		},
		Cache:  cache.Config{Stale: staleTime(s.cfg), ClusterDomain: clusterDomain(s.cfg), Off: !s.cfg.DNSCache, NoPrefetch: !s.cfg.DNSPrefetch},
		Domain: ownDomain(s.cfg), HoldBeforeTable: s.cfg.DNSHold, TTL: uint32(s.cfg.DNSTTL.Seconds()),
		Log: s.world.Log("dnsproxy"), Now: time.Now,
	})
	if err != nil {
		return err
	}
	if s.cfg.DNSCapture {
		s.dns = server
	}
	s.resolver, err = listenResolver(s.cfg.IPv4, server)
	return err
}

// newEnvoy writes the bootstrap and prepares Envoy's start.
func (s *Sidecar) newEnvoy() error {
	c := s.cfg
	b, err := bootstrap.Build(bootstrap.Config{
		Node:      bootstrap.Node(c.Node),
		AdminPath: s.dir.AdminSocket(), XDSPath: s.dir.XDSSocket(),
		StatsPort: c.StatsPort, StatsLoopbackOnly: c.StatsLoopbackOnly,
		IPv4: c.IPv4, IPv6: c.IPv6, ProxyMark: c.ProxyMark, DNSServer: s.resolver.addr, LogJSON: c.LogJSON, RuntimeValues: c.RuntimeValues,
		StatsMatcher: bootstrap.StatsMatcher{
			Prefixes: c.StatsInclusionPrefixes, Suffixes: c.StatsInclusionSuffixes, Regexps: slices.Concat(c.StatsInclusionRegexps, drainStats(c)),
		},
		ExtraStatTags: c.ExtraStatTags, OutlierLogPath: c.OutlierLogPath,
		ConnectionStats:          c.ExitOnZeroActiveConnections,
		MaxDownstreamConnections: connectionLimit(c, s.world.FileLimit, s.log),
	})
	if err != nil {
		return fmt.Errorf("build Envoy's bootstrap: %w", err)
	}
	data, err := bootstrap.MarshalBinary(b)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.dir.BootstrapFile(), data, 0o600); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	override, err := readOverride(c.BootstrapOverride, c.HostIP)
	if err != nil {
		return err
	}
	supervised := envoy.Config{
		Binary: c.BinaryPath, Path: s.dir.HotRestartSockets(),
		Command: func(hotRestart []string) envoy.Command {
			return envoy.Command{
				Path: c.BinaryPath, Args: envoy.Args(s.envoyOptions(override, hotRestart)), Env: s.world.Environ,
				Stdout: s.world.Stdout, Stderr: s.world.Stderr, Capabilities: capabilities(c),
			}
		},
		Sockets: s.Sockets.ForEnvoy, Inherits: s.Sockets.Inherits, DropSockets: s.Sockets.DropEnvoySockets, Accepts: s.moveSockets,
		StartTime: s.world.Started, Log: s.world.Log("envoy"),
		Admin: s.admin, Ready: s.Ready, Serves: s.progress, RestartHung: c.RestartHung,
	}
	if c.UpgradeStats {
		supervised.Stats = s.stats.Next
	}
	s.Envoy = envoy.NewSupervisor(supervised)
	return nil
}

func (s *Sidecar) envoyOptions(override string, hotRestart []string) envoy.Options {
	c := s.cfg
	return envoy.Options{
		ConfigPath: s.dir.BootstrapFile(), DrainDuration: envoyDrain(c),
		LogLevel: c.ProxyLogLevel, ComponentLogLevel: c.ProxyComponentLogLevel,
		Concurrency: c.Concurrency, LocalIPv6: !c.IPv4,
		SkipDeprecatedLogs: c.SkipDeprecatedLogs, CoreDump: c.CoreDump, OverrideYAML: override,
		FileFlushInterval: c.FileFlushInterval, FileFlushMinSizeKB: c.FileFlushMinSizeKB,
		HotRestart: hotRestart,
	}
}

// drainStats are the statistics that a drain needs which somebody can watch, or that idle connections end.
func drainStats(c *config.Config) []string {
	idle := c.DrainIdleTimeout > 0
	if c.HandoffDir == "" && !(idle && c.ExitOnZeroActiveConnections) {
		return nil
	}
	return envoy.LoadStats(idle)
}

// readOverride returns what Envoy merges over its bootstrap, with the node's
// address in place of $(HOST_IP), as Istio's agent does; "" without a path.
func readOverride(path string, hostIP netip.Addr) (string, error) {
	if path == "" {
		return "", nil
	}
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxOverride {
		err = fmt.Errorf("%d bytes, at most %d fit Envoy's command line", info.Size(), maxOverride)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("environment: ISTIO_BOOTSTRAP_OVERRIDE=%s: name a readable YAML or JSON file: %w", path, err)
	}
	override := string(data)
	switch {
	case hostIP.Is6():
		override = strings.ReplaceAll(override, "$(HOST_IP)", "["+hostIP.String()+"]")
	case hostIP.Is4():
		override = strings.ReplaceAll(override, "$(HOST_IP)", hostIP.String())
	}
	return override, nil
}

// options are those of the files, whose resources have Envoy look up names as its bootstrap does.
func (s *Sidecar) options() mesh.Options {
	o := meshOptions(s.cfg)
	o.DNSResolver = bootstrap.DNSResolver(s.resolver.addr)
	return o
}

func (s *Sidecar) newFiles() (err error) {
	c := files.Config{
		Dir: s.cfg.ConfigDir, Options: s.options(), VIPs: s.vips,
		Envoy: publish.Envoy{
			Set: s.xds.Set, Applied: s.xds.Applied, Connected: s.xds.Connected, Renewed: s.xds.Renewed(),
			Warming: s.admin.Warming,
		},
		TTL: s.cfg.DNSTTL, Ready: s.Ready, InForce: s.progress, Log: s.world.Log,
	}
	if s.dns != nil {
		c.Names = func(set []table.Host, gone []string) {
			if old := s.dns.Table(); old != nil {
				s.dns.Swap(old.With(set, gone))
				return
			}
			s.dns.Swap(table.New(set))
		}
	}
	s.files, err = files.New(c)
	return err
}

func (s *Sidecar) newStatus() error {
	c := s.cfg
	registry := status.NewRegistry()
	for _, read := range append(s.samples(), s.hooks.Samples) {
		if err := status.Register(registry, read); err != nil {
			return err
		}
	}
	var err error
	s.Status, err = status.New(status.Config{
		Ports: []uint16{sockets.StatusPort(c)}, Admin: http.HandlerFunc(s.serveAdmin),
		Ready: s.Ready, StandIn: func(w http.ResponseWriter, r *http.Request) bool { return s.standIn(w, r, sockets.StatusPort(c)) },
		Quit: s.hooks.Quit, Drain: s.hooks.Drain,
		EnvoyStats: s.envoyStats, MergeEnvoyStats: c.MergeEnvoyStats,
		AppProbers: []byte(c.AppProbers), PrometheusAnnotations: []byte(c.PrometheusAnnotations),
		PodIPs: c.NodeIPs, LegacyLocalhostProbe: c.ProbeLocalhost,
		HTTP2Probing: c.HTTP2Probing, MetricsLoopbackOnly: c.MetricsLoopbackOnly, Profiling: c.Profiling,
		Debug:    s.debugPages(),
		Registry: registry,
		Log:      s.world.Log("status"),
	})
	return err
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

// dnsPort is the port that DNS is redirected to.
func dnsPort(c *config.Config) uint16 {
	if len(c.DNSAddrs) == 0 {
		return 0
	}
	return c.DNSAddrs[0].Port()
}
