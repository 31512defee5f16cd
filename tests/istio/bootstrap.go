package main

import (
	"bytes"
	"os"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pilot/cmd/pilot-agent/config"
	"istio.io/istio/pilot/cmd/pilot-agent/options"
	"istio.io/istio/pkg/bootstrap"
	"istio.io/istio/pkg/features"
	"istio.io/istio/pkg/model"
)

// writeBootstrap does what `pilot-agent proxy` does until Envoy's start (pilot/cmd/pilot-agent/app,
// pkg/istio-agent), but for the servers.
func writeBootstrap(path, template, output string) error {
	s, err := readSample(path)
	if err != nil {
		return err
	}
	proxy, err := config.ConstructProxyConfig("./etc/istio/config/mesh", "istio-proxy", options.ProxyConfigEnv, 0)
	if err != nil {
		return err
	}
	node, err := newNode(s, proxy)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	// An access token of a tracer is written there.
	if err := os.MkdirAll(proxy.ConfigPath, 0o755); err != nil {
		return err
	}
	settings := bootstrap.Config{Node: node, CompliancePolicy: features.CompliancePolicy, LogAsJSON: s.LogAsJSON}
	if err := bootstrap.New(settings).WriteTo(template, &text); err != nil {
		return err
	}
	data, err := indented(text.Bytes())
	if err != nil {
		return err
	}
	return os.WriteFile(output, data, 0o644)
}

func newNode(s *sample, proxy *meshconfig.ProxyConfig) (*model.Node, error) {
	args := options.NewProxyArgs()
	args.Type = model.NodeType(s.Role)
	if ip := options.InstanceIPVar.Get(); ip != "" {
		args.IPAddresses = []string{ip}
	}
	for _, ip := range s.Addresses {
		if !slices.Contains(args.IPAddresses, ip) {
			args.IPAddresses = append(args.IPAddresses, ip)
		}
	}
	args.DiscoverIPMode()
	args.ID = args.PodName + "." + args.PodNamespace
	args.DNSDomain = args.PodNamespace + ".svc.cluster.local"
	o := options.NewAgentOptions(&args, proxy, nil)
	var san []string
	if proxy.ControlPlaneAuthPolicy == meshconfig.AuthenticationPolicy_MUTUAL_TLS {
		san = []string{config.GetPilotSan(proxy.DiscoveryAddress)}
	}
	return bootstrap.GetNodeMetaData(bootstrap.MetadataOptions{
		ID:                           o.ServiceNode,
		Envs:                         os.Environ(),
		Platform:                     o.Platform,
		InstanceIPs:                  o.ProxyIPAddresses,
		ProxyConfig:                  proxy,
		PilotSubjectAltName:          san,
		EnvoyPrometheusPort:          o.EnvoyPrometheusPort,
		EnvoySecureMetricsPort:       o.EnvoySecureMetricsPort,
		EnvoySecureMergedMetricsPort: o.EnvoySecureMergedMetricsPort,
		EnvoyStatusPort:              o.EnvoyStatusPort,
		ExitOnZeroActiveConnections:  o.ExitOnZeroActiveConnections,
		XDSRootCert:                  o.XDSRootCerts,
		MetadataDiscovery:            o.MetadataDiscovery,
		EnvoySkipDeprecatedLogs:      o.EnvoySkipDeprecatedLogs,
		WorkloadIdentitySocketFile:   o.WorkloadIdentitySocketFile,
	})
}
