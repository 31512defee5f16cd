package agent

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.mesh/bootstrap"
	"understudy.mesh/dnsproxy"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
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
	// holdBeforeTable is how long a query that arrives before the first table
	// waits for it; a resolver's own patience is 5 s (resolv.conf(5)).
	holdBeforeTable = 2 * time.Second

	// Readiness tasks besides taskEnvoy.
	taskConfig = "config"
	taskDNS    = "dns"
)

func (a *Agent) meshOptions() mesh.Options {
	c := a.cfg
	return mesh.Options{
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
}

// newDNS makes the DNS proxy and the VIP allocation, where they are wanted.
func (a *Agent) newDNS() (err error) {
	a.vips, err = dnsproxy.OpenVIPs(dnsproxy.VIPConfig{
		Path: filepath.Join(dataDir, vipFile), V4: iptables.VIPRangeV4, V6: iptables.VIPRangeV6, IPv6: a.cfg.IPv6,
		Quarantine: quarantine, Now: time.Now, Log: a.world.Log("dnsproxy"),
	})
	if err != nil || !a.cfg.DNSCapture {
		return err
	}
	a.ready.Pending(taskDNS, "the DNS table is not ready yet")
	a.dns, err = dnsproxy.New(dnsproxy.Config{
		UDP: a.sockets.dnsUDP, TCP: a.sockets.dnsTCP,
		ResolvConf:     resolvConf,
		ForwardTimeout: a.cfg.DNSForwardTimeout, ForwardParallel: a.cfg.DNSForwardParallel,
		HoldBeforeTable: holdBeforeTable,
		Log:             a.world.Log("dnsproxy"), Now: time.Now,
	})
	return err
}

// newEnvoy writes the bootstrap and prepares Envoy's start.
func (a *Agent) newEnvoy() error {
	c := a.cfg
	b, err := bootstrap.Build(bootstrap.Config{
		Node:      bootstrap.Node(c.Node),
		AdminPath: a.generation.adminSocket(), XDSPath: a.generation.xdsSocket(),
		StatsPort: c.StatsPort, StatsLoopbackOnly: c.StatsLoopbackOnly,
		IPv4: c.IPv4, IPv6: c.IPv6, LogJSON: c.LogJSON, RuntimeValues: c.RuntimeValues,
		StatsMatcher: bootstrap.StatsMatcher{
			Prefixes: c.StatsInclusionPrefixes, Suffixes: c.StatsInclusionSuffixes, Regexps: c.StatsInclusionRegexps,
		},
		ConnectionStats: c.ExitOnZeroActiveConnections,
	})
	if err != nil {
		return fmt.Errorf("build Envoy's bootstrap: %w", err)
	}
	data, err := bootstrap.MarshalBinary(b)
	if err != nil {
		return err
	}
	if err := os.WriteFile(a.generation.bootstrapFile(), data, 0o600); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	override, err := readOverride(c.BootstrapOverride, c.HostIP)
	if err != nil {
		return err
	}
	a.supervisor = &supervisor{
		command: envoy.Command{
			Path: c.BinaryPath, Args: envoy.Args(a.envoyOptions(override)), Env: a.world.Environ,
			Stdout: a.world.Stdout, Stderr: a.world.Stderr,
		},
		admin: a.admin, ready: a.ready, log: a.world.Log("envoy"),
	}
	return nil
}

func (a *Agent) envoyOptions(override string) envoy.Options {
	c := a.cfg
	return envoy.Options{
		ConfigPath: a.generation.bootstrapFile(), DrainDuration: c.DrainDuration,
		LogLevel: c.ProxyLogLevel, ComponentLogLevel: c.ProxyComponentLogLevel,
		Concurrency: c.Concurrency, LocalIPv6: !c.IPv4,
		SkipDeprecatedLogs: c.SkipDeprecatedLogs, CoreDump: c.CoreDump, OverrideYAML: override,
		FileFlushInterval: c.FileFlushInterval, FileFlushMinSizeKB: c.FileFlushMinSizeKB,
	}
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

// inForce is called after each configuration that Envoy has answered for. Without
// the capture listeners the pod has no traffic at all; anything else that Envoy
// refuses concerns only whoever needs it.
func (a *Agent) inForce(refused *xds.RejectedError) {
	if refused != nil && (slices.Contains(refused.Resources, mesh.OutboundListener) || slices.Contains(refused.Resources, mesh.InboundListener)) {
		a.ready.Fail(taskConfig, refused)
		return
	}
	a.ready.Done(taskConfig)
	if a.dns != nil {
		a.ready.Done(taskDNS)
	}
	a.settled.Do(func() {
		a.status.Started(time.Since(a.world.Started))
		a.world.Settled()
	})
}

func (a *Agent) newPublisher() {
	a.ready.Pending(taskConfig, "the configuration files are not in force yet")
	a.publisher = &publisher{
		build: func(r *mesh.Registry, vips map[string][]netip.Addr) (*mesh.Output, error) {
			return mesh.Build(r, vips, a.meshOptions())
		},
		assign:  a.vips.Assign,
		set:     a.xds.Set,
		applied: a.xds.Applied,
		warming: a.admin.Warming,
		ttl:     dnsproxy.DefaultTTL * time.Second,
		now:     time.Now,
		log:     a.log,
		settled: a.inForce,
	}
	if a.dns != nil {
		a.publisher.names = func(hosts []dnsproxy.Host) {
			conf, _ := dnsproxy.ReadResolvConf(resolvConf) // the DNS server says what is wrong with it
			a.dns.Swap(dnsproxy.NewTable(hosts, conf.Search, dnsproxy.DefaultTTL))
		}
	}
}

func (a *Agent) newStatus() error {
	c := a.cfg
	registry := status.NewRegistry()
	for _, read := range a.samples() {
		if err := status.Register(registry, read); err != nil {
			return err
		}
	}
	var err error
	a.status, err = status.New(status.Config{
		Status: a.sockets.status, Probe: a.sockets.probe,
		AdminListeners: a.sockets.admin, Admin: a.admin,
		Ready: a.ready, Quit: a.Quit, Drain: a.Drain,
		EnvoyStats: a.envoyStats, MergeEnvoyStats: c.MergeEnvoyStats,
		AppProbers: []byte(c.AppProbers), PrometheusAnnotations: []byte(c.PrometheusAnnotations),
		PodIPs: c.NodeIPs, LegacyLocalhostProbe: c.ProbeLocalhost,
		HTTP2Probing: c.HTTP2Probing, MetricsLoopbackOnly: c.MetricsLoopbackOnly, Profiling: c.Profiling,
		Debug:    a.debugPages(),
		Registry: registry,
		Log:      a.world.Log("status"),
	})
	return err
}

// envoyStats streams Envoy's own metrics in Prometheus' text format.
func (a *Agent) envoyStats(ctx context.Context, query string) (io.ReadCloser, string, error) {
	return a.admin.Open(ctx, "/stats/prometheus?"+query)
}

// dnsPort is the port that DNS is redirected to.
func dnsPort(c *config.Config) uint16 {
	if len(c.DNSAddrs) == 0 {
		return 0
	}
	return c.DNSAddrs[0].Port()
}
