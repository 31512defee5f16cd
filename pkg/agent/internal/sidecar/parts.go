package sidecar

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	"understudy.mesh/iptables"
	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
)

const (
	// outboundPort and inboundPort are where capture sends traffic (Istio's).
	outboundPort = 15001
	inboundPort  = 15006

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
		MaxHosts:         int(c.MaxHosts),
	}
	if c.Interception == config.TPROXY {
		o.TransparentMark = iptables.DefaultMark // of istio-iptables, whose -t must say nothing else
	}
	return o
}

// filtered is the pod as EnvoyFilters select it. Its labels are those of the start.
func filtered(c *config.Config) envoyfilter.Proxy {
	p := envoyfilter.Proxy{Namespace: c.PodNamespace, RootNamespace: c.RootNamespace, Metadata: c.Node.Metadata, Labels: map[string]string{}}
	if !c.Wasm {
		p.NoWasm = "Wasm filters are switched off: " + c.Spelled("wasm")
	}
	labels, _ := c.Node.Metadata["LABELS"].(map[string]any)
	for key, value := range labels {
		if text, is := value.(string); is {
			p.Labels[key] = text
		}
	}
	return p
}

// newEnvoy writes the bootstrap and prepares Envoy's start.
func (s *Sidecar) newEnvoy() error {
	c := s.cfg
	file, override, err := s.bootstrap()
	if err != nil {
		return err
	}
	supervised := envoy.Config{
		Binary: c.BinaryPath, Path: s.dir.HotRestartSockets(),
		Command: func(hotRestart []string) envoy.Command {
			return envoy.Command{
				Path: c.BinaryPath, Args: envoy.Args(s.envoyOptions(file, override, hotRestart)), Env: slices.Concat(s.world.Environ, c.CompliancePolicy.EnvoyEnviron()),
				Stdout: s.world.Stdout, Stderr: s.world.Stderr, Capabilities: capabilities(c),
			}
		},
		Sockets: s.Sockets.ForEnvoy, Inherits: s.Sockets.Inherits, DropSockets: s.Sockets.DropEnvoySockets, Accepts: s.learner.ask,
		StartTime: s.world.Started, Log: s.world.Log("envoy"),
		Admin: s.admin, Ready: s.Ready, Serves: s.begun, RestartHung: c.RestartHung,
	}
	if c.CustomConfigFile != "" {
		supervised.NoHotRestart = fmt.Errorf("its bootstrap is %s, of which the agent does not know what it listens on", c.Spelled("customConfigFile"))
	}
	if c.UpgradeStats {
		supervised.Stats = s.stats
	}
	s.Envoy = envoy.NewSupervisor(supervised)
	return nil
}

func (s *Sidecar) envoyOptions(file, override string, hotRestart []string) envoy.Options {
	c := s.cfg
	return envoy.Options{
		ConfigPath: file, DrainDuration: envoyDrain(c),
		LogLevel: c.ProxyLogLevel, ComponentLogLevel: c.ProxyComponentLogLevel,
		Concurrency: c.Concurrency, LocalIPv6: !c.IPv4,
		SkipDeprecatedLogs: c.SkipDeprecatedLogs, CoreDump: c.CoreDump, OverrideYAML: override,
		FileFlushInterval: c.FileFlushInterval, FileFlushMinSizeKB: c.FileFlushMinSizeKB,
		HotRestart: hotRestart,
	}
}

func (s *Sidecar) newStatus(h Hooks) error {
	c := s.cfg
	registry := status.NewRegistry()
	for _, read := range append(s.samples(), h.Samples) {
		if err := status.Register(registry, read); err != nil {
			return err
		}
	}
	answers := &standIn{admin: s.admin, probation: s.probation, loopback: loopback(c.IPv4), adminPort: c.AdminPort}
	pages := s.plane.DebugPages()
	pages[overview.Path] = h.OverviewJSON
	maps.Copy(pages, s.names.debugPages())
	if s.identity != nil {
		maps.Copy(pages, s.identity.DebugPages())
	}
	var err error
	s.Status, err = status.New(status.Config{
		Ports: []uint16{sockets.StatusPort(c)}, Admin: answers,
		Ready: s.Ready, StandIn: func(w http.ResponseWriter, r *http.Request) bool { return answers.relay(w, r, sockets.StatusPort(c)) },
		Quit: h.Quit, Drain: h.Drain, Upgrade: h.Upgrade,
		EnvoyStats: answers.metrics, MergeEnvoyStats: c.MergeEnvoyStats,
		AppProbers: []byte(c.AppProbers), PrometheusAnnotations: []byte(c.PrometheusAnnotations),
		PodIPs: c.NodeIPs, LegacyLocalhostProbe: c.ProbeLocalhost, Compliance: c.CompliancePolicy,
		HTTP2Probing: c.HTTP2Probing, ProxyProtocol: c.ReadyProxyProtocol && c.CustomConfigFile == "", MetricsLoopbackOnly: c.MetricsLoopbackOnly, Profiling: c.Profiling,
		Debug:    pages,
		Index:    h.Overview,
		Registry: registry,
		Log:      s.world.Log("status"),
	})
	return err
}

// dnsPort is the port that DNS is redirected to.
func dnsPort(c *config.Config) uint16 {
	if len(c.DNSAddrs) == 0 {
		return 0
	}
	return c.DNSAddrs[0].Port()
}
