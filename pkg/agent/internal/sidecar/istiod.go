package sidecar

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"understudy.mesh/bootstrap"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/agent/internal/identity"
	"understudy.mesh/pkg/agent/internal/reach"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/istiod"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// lastGoodFile is below dataDir.
const lastGoodFile = "istiod.resources"

func (s *Sidecar) newIstiod() error {
	listener, err := s.dir.ListenXDS()
	if err != nil {
		return err
	}
	secrets, err := s.dir.ListenSDS()
	if err != nil {
		return err
	}
	s.identity, err = identity.New(identity.Config{
		Settings: s.cfg, Listener: secrets, External: s.others.Workload != "",
		Ready: s.Ready, Served: s.inForce, Changed: s.progress, Log: s.world.Log("security"),
	})
	if err != nil {
		return err
	}
	if !s.cfg.DeltaXDS {
		s.log.Warn("ISTIO_DELTA_XDS=false: istiod makes, and Envoy reads, all clusters or listeners at each change of one")
	}
	clients, err := s.dir.ListenClients()
	if err != nil {
		return err
	}
	s.clients = istiod.NewDirect(clients, reach.Istiod(s.cfg), s.world.Log("istiod"))
	relay := xds.NewRelay(listener, s.world.Log("xds"))
	relay.SendFirst(build.OutboundListener, build.InboundListener)
	c := istiod.Config{
		Dial: reach.Istiod(s.cfg), Relay: relay, Clients: s.clients, Warming: s.warming, Vital: vitalListeners(s.cfg),
		Pod:  istiod.Pod{Namespace: s.cfg.PodNamespace, Domain: strings.TrimPrefix(s.cfg.Domain, s.cfg.PodNamespace+".")},
		VIPs: []netip.Prefix{iptables.VIPRangeV4, iptables.VIPRangeV6}, Ready: s.Ready, InForce: s.progress, Log: s.world.Log, PassAll: s.cfg.IstioCompat, GiveBack: s.world.GiveBack,
		MetadataDiscovery: s.cfg.MetadataDiscovery && s.cfg.DeltaXDS,
	}
	if err := s.askHealth(&c); err != nil {
		return err
	}
	if s.cfg.CustomConfigFile == "" && s.cfg.BootstrapOverride == "" { // else Envoy alone knows
		if c.Node, err = s.node(bootstrap.Node(s.cfg.Node)).Proto(); err != nil {
			return err
		}
	}
	c.Modules = ecds.NewRelayed(ecds.Config{
		Open: func() (ecds.Modules, error) { return s.modules.open() }, Ready: s.Ready, Log: s.world.Log("wasm"),
	}, !s.cfg.Wasm)
	if s.names.captured {
		c.Names = s.names.update
	}
	if s.cfg.TrustBundles {
		c.Bundle = s.identity.SetBundle
	}
	if s.cfg.LastGood {
		c.LastGoodAge = s.cfg.LastGoodAge
		c.LastGood = filepath.Join(cmp.Or(s.world.DataDir, dataDir), lastGoodFile)
	}
	s.xds = relay
	s.plane = istiod.New(c)
	return nil
}

// vitalListeners are those of the capture; with HBONE also those by which istiod has a pod take such connections, and make them, as
// others send nothing else to who says that it takes HBONE.
func vitalListeners(c *config.Config) []string {
	vital := []string{build.OutboundListener, build.InboundListener}
	if c.Node.Metadata["ENABLE_HBONE"] == "true" {
		vital = append(vital, "connect_terminate", "main_internal", "connect_originate")
	}
	return vital
}

// warming is how much of what Envoy has taken it does not use yet. One that is starting, which is waited for, counts what it has taken
// as used.
func (s *Sidecar) warming(ctx context.Context) (clusters, listeners uint64, err error) {
	select {
	case <-s.serves:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	return s.admin.Warming(ctx)
}

// askHealth has istiod told how the application is, where a probe says how it is asked.
func (s *Sidecar) askHealth(c *istiod.Config) error {
	if s.cfg.ReadinessProbe == "" {
		return nil
	}
	health, err := status.NewHealth(status.HealthConfig{
		Probe: []byte(s.cfg.ReadinessProbe), PodIPs: s.cfg.NodeIPs, LegacyLocalhostProbe: s.cfg.ProbeLocalhost, Compliance: s.cfg.CompliancePolicy, Environ: s.world.Environ,
		Begin: s.inForce, Ready: s.Ready, Log: s.world.Log("status"),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", s.cfg.Spelled("readinessProbe"), err)
	}
	c.Health = health.Run
	return nil
}
