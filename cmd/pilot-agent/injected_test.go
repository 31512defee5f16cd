package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"
)

// injectedContainer is what the agent is told by one of the injector's containers.
type injectedContainer struct {
	Name string
	Args []string
	Env  []struct {
		Name, Value string
		ValueFrom   *struct {
			FieldRef *struct{ FieldPath string }
		}
	}
}

// injected are the containers that the injector puts into a pod, and the annotations that the pod then has.
func injected(t *testing.T, mesh string, annotations map[string]string) (*profile.Settings, map[string]injectedContainer, map[string]string) {
	t.Helper()
	var spec profile.Spec
	if err := yaml.UnmarshalStrict([]byte(mesh), &spec); err != nil {
		t.Fatal(err)
	}
	layers, _, err := profile.FromAnnotations(annotations)
	if err != nil {
		t.Fatal(err)
	}
	s := profile.Resolve(append(layers, profile.Layer{Source: profile.SourceMesh, Spec: &spec})...)
	pod, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": "a", "annotations": annotations},
		"spec":     map[string]any{"containers": []any{map[string]any{"name": "a", "livenessProbe": map[string]any{"httpGet": map[string]any{"port": 80}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	read, err := inject.Read(pod)
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := read.Patch(s, inject.Environment{Namespace: inject.Namespace{Name: "shop"}})
	if err != nil {
		t.Fatal(err)
	}
	var ops []struct {
		Path  string
		Value json.RawMessage
	}
	if err := json.Unmarshal(text, &ops); err != nil {
		t.Fatal(err)
	}
	found, all := map[string]injectedContainer{}, maps.Clone(annotations)
	for _, o := range ops {
		if name, ok := strings.CutPrefix(o.Path, "/metadata/annotations"); ok {
			var value any
			json.Unmarshal(o.Value, &value)
			if one, ok := value.(string); ok {
				value = map[string]any{strings.ReplaceAll(strings.TrimPrefix(name, "/"), "~1", "/"): one}
			}
			if all == nil {
				all = map[string]string{}
			}
			for k, v := range value.(map[string]any) {
				all[k] = v.(string)
			}
		}
		if list := bytes.TrimSpace(o.Value); strings.Contains(o.Path, "ontainers") && !strings.Contains(o.Path, "Probe") {
			if list[0] != '[' {
				list = []byte("[" + string(list) + "]")
			}
			var containers []injectedContainer
			if err := json.Unmarshal(list, &containers); err != nil {
				t.Fatal(err)
			}
			for _, c := range containers {
				found[c.Name] = c
			}
		}
	}
	return s, found, all
}

// environ is what the kubelet makes of a container's variables.
func (c injectedContainer) environ(annotations map[string]string) (env []string) {
	known := map[string]string{"metadata.name": "a", "metadata.namespace": "shop", "metadata.uid": "u", "status.podIP": "10.1.1.1", "status.hostIP": "10.1.0.1", "spec.serviceAccountName": "sa", "spec.nodeName": "n"}
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			path := e.ValueFrom.FieldRef.FieldPath
			e.Value = known[path]
			if name, ok := strings.CutPrefix(path, "metadata.annotations['"); ok {
				e.Value = annotations[strings.TrimSuffix(name, "']")]
			}
		} else if e.ValueFrom != nil { // of the limit of cpu
			e.Value = "2"
		}
		env = append(env, e.Name+"="+e.Value)
	}
	return env
}

// injections are settings of a mesh, and annotations of a pod. Some annotations say otherwise than the mesh: the agent sees both.
var injections = []struct {
	name, mesh  string
	annotations map[string]string
}{
	{"nothing", "proxy: {image: p}", nil},
	{"the manual's", "{preset: asm, proxy: {image: p, terminationDrainDuration: 10s, concurrency: 3}, dns: {capture: true}, capture: {excludeOutboundIPRanges: [192.168.0.1/32], includeOutboundIPRanges: [172.1.1.2/32], excludeInboundPorts: [7013, 7014], excludeOutboundPorts: [7011], includeOutboundPorts: [7015, 7016]}}", nil},
	{"annotations above the mesh", "proxy: {image: p, terminationDrainDuration: 10s, statusPort: 15025, concurrency: 3, logLevel: info}", map[string]string{
		"proxy.istio.io/config":                            "terminationDrainDuration: 30s\nconcurrency: 1\nstatusPort: 15030\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\", EXIT_ON_ZERO_ACTIVE_CONNECTIONS: \"true\"}",
		"status.sidecar.istio.io/port":                     "15031",
		"sidecar.istio.io/logLevel":                        "debug",
		"sidecar.istio.io/discoveryAddress":                "other.istio-system.svc:15012",
		"traffic.sidecar.istio.io/excludeOutboundPorts":    "9000",
		"traffic.sidecar.istio.io/includeInboundPorts":     "80,443",
		"traffic.sidecar.istio.io/excludeInterfaces":       "eth1",
		"istio.io/reroute-virtual-interfaces":              "tap0",
		"readiness.status.sidecar.istio.io/periodSeconds":  "3",
		"traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
		"sidecar.istio.io/interceptionMode":                "TPROXY",
		"prometheus.io/port":                               "8080",
		"prometheus.io/scrape":                             "true",
		"kubectl.kubernetes.io/last-applied-configuration": "{}",
		"traffic.sidecar.istio.io/excludeOutboundIPRanges": "1.2.3.4/32",
		"sidecar.istio.io/componentLogLevel":               "http:debug",
		"sidecar.istio.io/agentLogLevel":                   "dns:debug",
	}},
	{"files and slots", "{proxy: {image: p, env: {A: b}}, controlPlane: {mode: files, configMap: mesh}, dns: {capture: true, autoAllocate: false}, hotUpgrade: {emptyImage: e, upgradeDrainDuration: 90s}}", nil},
	{"another mesh", "{proxy: {image: p, holdApplicationUntilProxyStarts: true}, controlPlane: {clusterDomain: example.org, trustDomain: td, meshID: m, network: n, clusterID: c, caAddress: \"ca:1\"}}", nil},
}

// TestInjectedSettings has the agent read what the injector has written: it means the same, and nothing of it is wrong or without effect.
func TestInjectedSettings(t *testing.T) {
	for _, tc := range injections {
		t.Run(tc.name, func(t *testing.T) {
			s, containers, annotations := injected(t, tc.mesh, tc.annotations)
			c := containers["istio-proxy"]
			cmd := newProxyCommand(&cli.Env{})
			cli.AddSettings(cmd.Flags(), true) // the root command has them
			for i := range c.Args {            // the kubelet does
				c.Args[i] = strings.ReplaceAll(c.Args[i], "$(POD_NAMESPACE)", "shop")
			}
			if err := cmd.ParseFlags(c.Args[1:]); err != nil {
				t.Fatal(err)
			}
			// That an istiod's release is not known is the image's to say, or the user's.
			environ := append(c.environ(annotations), "ISTIO_META_ISTIO_VERSION=1.32.0")
			cfg, warnings, err := config.Load(config.Sources{
				Role: config.Role(cmd.Flags().Arg(0)), Flags: cli.GivenSettings(cmd), Environ: environ,
				ReadFile: func(path string) ([]byte, error) {
					if !strings.HasSuffix(path, "/annotations") {
						return nil, fs.ErrNotExist
					}
					var text bytes.Buffer // as the downward API has it
					for name, value := range annotations {
						fmt.Fprintf(&text, "%s=%s\n", name, strconv.Quote(value))
					}
					return text.Bytes(), nil
				},
			})
			if err != nil || len(warnings) > 0 {
				t.Fatalf("%v, %v", err, warnings)
			}
			same(t, "statusPort", int(cfg.StatusPort), int(*s.Proxy.StatusPort))
			same(t, "terminationDrainDuration", cfg.TerminationDrainDuration, s.Proxy.TerminationDrainDuration.Duration)
			same(t, "proxyLogLevel", cfg.ProxyLogLevel, *s.Proxy.LogLevel)
			same(t, "proxyComponentLogLevel", cfg.ProxyComponentLogLevel, *s.Proxy.ComponentLogLevel)
			same(t, "discoveryAddress", cfg.DiscoveryAddress, *s.ControlPlane.DiscoveryAddress)
			same(t, "trustDomain", cfg.TrustDomain, *s.ControlPlane.TrustDomain)
			same(t, "clusterID", cfg.ClusterID, *s.ControlPlane.ClusterID)
			same(t, "domain", cfg.Domain, "shop.svc."+*s.ControlPlane.ClusterDomain)
			same(t, "interception", string(cfg.Interception), string(*s.Capture.Mode))
			same(t, "dns capture", cfg.DNSCapture, *s.DNS.Capture)
			same(t, "dns auto-allocate", cfg.DNSAutoAllocate, *s.DNS.AutoAllocate)
			same(t, "files", cfg.ConfigDir != "", *s.ControlPlane.Mode == profile.ModeFiles)
			same(t, "hot", cfg.HandoffDir != "", s.Hot())
			if s.Hot() {
				same(t, "upgradeDrainDuration", cfg.UpgradeDrainDuration, s.HotUpgrade.UpgradeDrainDuration.Duration)
				same(t, "versions", cfg.SidecarSetVersion+cfg.SidecarSetVersionAlt, "10")
			} else {
				same(t, "upgradeDrainDuration", cfg.UpgradeDrainDuration > time.Second, true)
			}
			concurrency := 2 // of the limit of cpu
			if s.Proxy.Concurrency != nil {
				concurrency = int(*s.Proxy.Concurrency)
			}
			same(t, "concurrency", cfg.Concurrency, concurrency)
		})
	}
}

func same[T comparable](t *testing.T, what string, agent, injector T) {
	t.Helper()
	if agent != injector {
		t.Errorf("%s: the agent has %v, the injector meant %v", what, agent, injector)
	}
}

// TestInjectedCapture does the same with istio-init.
func TestInjectedCapture(t *testing.T) {
	for _, tc := range injections {
		t.Run(tc.name, func(t *testing.T) {
			s, containers, annotations := injected(t, tc.mesh, tc.annotations)
			c := containers["istio-init"]
			if c.Args[0] != "istio-iptables" {
				t.Fatalf("it runs %q", c.Args)
			}
			flags := pflag.NewFlagSet("istio-iptables", pflag.ContinueOnError)
			iptablescmd.AddFlags(flags)
			if err := flags.Parse(c.Args[1:]); err != nil {
				t.Fatal(err)
			}
			host := iptablescmd.ThisHost()
			host.Addresses = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("10.1.1.1")}, nil }
			o, err := iptablescmd.Parse(flags, c.environ(annotations), host)
			if err != nil {
				t.Fatal(err)
			}
			got, capture := o.Config, s.Capture
			same(t, "mode", got.TPROXY, *capture.Mode == profile.TProxy)
			same(t, "dns", got.DNS.Capture, *s.DNS.Capture)
			same(t, "user", fmt.Sprint(got.UIDs, got.GIDs), "[1337] [1337]")
			same(t, "outbound addresses", prefixes(got.IncludeCIDRs), strings.Join(capture.IncludeOutboundIPRanges, ","))
			same(t, "outbound addresses left out", prefixes(iptables.Prefixes{List: got.ExcludeCIDRs}), strings.Join(capture.ExcludeOutboundIPRanges, ","))
			same(t, "inbound ports", ports(got.InboundPorts), list(capture.IncludeInboundPorts))
			same(t, "inbound ports left out", ports(iptables.Ports{List: got.ExcludeInboundPorts}), list(capture.ExcludeInboundPorts))
			same(t, "outbound ports", ports(iptables.Ports{List: got.IncludeOutboundPorts}), list(capture.IncludeOutboundPorts))
			same(t, "outbound ports left out", ports(iptables.Ports{List: got.ExcludeOutboundPorts}), list(capture.ExcludeOutboundPorts))
			same(t, "interfaces left out", strings.Join(got.ExcludeInterfaces, ","), strings.Join(capture.ExcludeInterfaces, ","))
			same(t, "interfaces of machines", strings.Join(got.VirtInterfaces, ","), strings.Join(capture.RerouteVirtualInterfaces, ","))
			if port := uint16(*s.Proxy.StatusPort); !slices.Contains(got.ExcludeInboundPorts, port) {
				t.Errorf("the status port %d is captured", port)
			}
		})
	}
}

func prefixes(p iptables.Prefixes) string {
	if p.All {
		return "*"
	}
	return list(p.List)
}

func ports(p iptables.Ports) string {
	if p.All {
		return "*"
	}
	return list(p.List)
}

// list is the elements of a slice between commas.
func list[T any](elements []T) string {
	var words []string
	for i := range elements {
		if s, ok := any(&elements[i]).(fmt.Stringer); ok {
			words = append(words, s.String())
			continue
		}
		words = append(words, fmt.Sprint(elements[i]))
	}
	return strings.Join(words, ",")
}
