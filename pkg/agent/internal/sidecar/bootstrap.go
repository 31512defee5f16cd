package sidecar

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"understudy.mesh/bootstrap"
	"understudy.mesh/internal/compliance"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
)

const (
	// maxOverride is what one argument of execve(2) may have (MAX_ARG_STRLEN).
	maxOverride = 128<<10 - 1
	// adminMode lets nobody but Envoy's own user, and root, at the admin API.
	adminMode = 0o600
	// resolveTimeout bounds the look-up of a name that the bootstrap wants as an address.
	resolveTimeout = 5 * time.Second
)

// bootstrap gives the file that Envoy starts with, and what Envoy merges over it.
func (s *Sidecar) bootstrap() (file, override string, err error) {
	custom := s.cfg.CustomConfigFile
	if custom == "" {
		if err := s.writeBootstrap(); err != nil {
			return "", "", err
		}
		override, err = readOverride(s.cfg.BootstrapOverride, s.cfg.HostIP)
		return s.dir.BootstrapFile(), override, err
	}
	if f, err := os.Open(custom); err != nil {
		return "", "", fmt.Errorf("%s: name a readable bootstrap of Envoy's: %w", s.cfg.Spelled("customConfigFile"), err)
	} else {
		f.Close()
	}
	// The file may name the sockets that Istio's agent has; its admin's port is the agent's.
	if s.cfg.ConfigDir == "" {
		if err := s.dir.LinkSDS(); err != nil {
			s.log.Warn("a bootstrap that has Envoy ask for certificates where Istio's agent serves them will find none there", "err", err)
		}
	}
	return custom, fmt.Sprintf(`{"admin":{"address":{"pipe":{"path":%q,"mode":%d}}}}`, s.dir.AdminSocket(), adminMode), s.dir.LinkXDS()
}

// writeBootstrap writes what Envoy starts with.
func (s *Sidecar) writeBootstrap() error {
	c := bootstrapConfig(s.cfg)
	c.AdminPath, c.XDSPath, c.DNSServer = s.dir.AdminSocket(), s.dir.XDSSocket(), s.names.resolver.addr
	if c.Istiod != nil {
		s.nameSecrets(&c)
	}
	c.MaxDownstreamConnections = connectionLimit(s.cfg, s.world.FileLimit, s.log)
	c.Statsd = s.statsd()
	b, err := bootstrap.Build(c)
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
	return nil
}

// nameSecrets says where Envoy gets its secrets. Another server that has the workload's certificate knows nothing of this
// pod's files: those are the agent's all the same, and istiod is told to have Envoy ask there; and of one that has others by name.
func (s *Sidecar) nameSecrets(c *bootstrap.Config) {
	c.Istiod.SDSPath = s.dir.SDSSocket()
	if s.others.Workload != "" {
		c.Istiod.SDSPath, c.Istiod.FilesPath = s.others.Workload, s.dir.SDSSocket()
	}
	c.Node = s.node(c.Node)
}

// node is what Envoy says that it is, whom the settings say to be n.
func (s *Sidecar) node(n bootstrap.Node) bootstrap.Node {
	n.Metadata = maps.Clone(n.Metadata)
	if s.others.Workload != "" {
		n.Metadata["file-credential"] = "true" // Istio's
	}
	if s.others.Credentials {
		n.Metadata["credential"] = "true" // Istio's
	}
	return n
}

// bootstrapConfig is what of the bootstrap follows from the settings alone.
func bootstrapConfig(c *config.Config) bootstrap.Config {
	b := bootstrap.Config{
		Node:      bootstrap.Node(c.Node),
		StatsPort: c.StatsPort, StatsLoopbackOnly: c.StatsLoopbackOnly,
		IPv4: c.IPv4, IPv6: c.IPv6, ProxyMark: c.ProxyMark, LogJSON: c.LogJSON, RuntimeValues: runtimeValues(c),
		StatsMatcher: bootstrap.StatsMatcher{
			Prefixes: c.StatsInclusionPrefixes, Suffixes: c.StatsInclusionSuffixes, Regexps: slices.Concat(c.StatsInclusionRegexps, drainStats(c), upgradeStats(c)),
		},
		ExtraStatTags: c.ExtraStatTags, HistogramBuckets: c.StatsHistogramBuckets,
		StatsFlushInterval: c.StatsFlushInterval, StatsEvictionInterval: c.StatsEvictionInterval,
		MetricsService:           bootstrap.Service(c.MetricsService),
		OutlierLogPath:           c.OutlierLogPath,
		ConnectionStats:          c.ExitOnZeroActiveConnections,
		MaxDownstreamConnections: uint64(c.ConnectionLimit),
	}
	if c.ConfigDir == "" {
		b.Istiod = &bootstrap.Istiod{
			StateOfTheWorld: !c.DeltaXDS, MetadataDiscovery: c.MetadataDiscovery, SelfDiscovery: c.SelfDiscovery, LoadStats: c.LoadStats,
			Tracer:           bootstrap.Tracer{Kind: c.Tracer.Kind, Service: bootstrap.Service(c.Tracer.Service)},
			AccessLogService: bootstrap.Service(c.AccessLogService),
			SecureStatsPort:  c.SecureStatsPort, SecureMergedStatsPort: c.SecureMergedStatsPort, AgentPort: sockets.StatusPort(c),
			StatsCompression: c.StatsCompression,
		}
	}
	return b
}

// runtimeValues are those that were set, over those that other settings bring.
func runtimeValues(c *config.Config) map[string]string {
	values := map[string]string{}
	if c.CompliancePolicy == compliance.FIPS2 {
		values["envoy.reloadable_features.google_grpc_disable_tls_13"] = "true"
	}
	if !c.StripFragment {
		values["envoy.reloadable_features.http_strip_fragment_from_path_unsafe_if_disabled"] = "false"
	}
	maps.Copy(values, c.RuntimeValues)
	return values
}

// drainStats are the statistics that a drain needs which somebody can watch, or that idle connections end.
func drainStats(c *config.Config) []string {
	idle := c.DrainIdleTimeout > 0
	if c.HandoffDir == "" && !(idle && c.ExitOnZeroActiveConnections) {
		return nil
	}
	return envoy.LoadStats(idle)
}

// upgradeStats are the statistics by which somebody may compare two generations.
func upgradeStats(c *config.Config) []string {
	if c.HandoffDir == "" {
		return nil
	}
	return []string{envoy.RequestStats}
}

// statsd is where statsd listens: Envoy wants an address, and a name is resolved as Istio's agent
// does, now and once. Statistics are not worth a proxy that does not start.
func (s *Sidecar) statsd() netip.AddrPort {
	if s.cfg.StatsdAddress == "" {
		return netip.AddrPort{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	address, err := resolveAddress(ctx, s.cfg.StatsdAddress, s.cfg.IPv4)
	if err != nil {
		s.log.Warn("no statistics go to statsd: its name cannot be resolved; the next start tries again", "statsdUdpAddress", s.cfg.StatsdAddress, "err", err)
	}
	return address
}

// resolveAddress finds an address for host:port, of IPv4 if the pod has it.
func resolveAddress(ctx context.Context, hostPort string, ipv4 bool) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(hostPort)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	best := addresses[0].Unmap()
	for _, a := range addresses {
		if a.Unmap().Is4() == ipv4 {
			best = a.Unmap()
			break
		}
	}
	return netip.AddrPortFrom(best, uint16(port)), nil
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
