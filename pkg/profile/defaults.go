package profile

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
)

// SourceMesh is the source of the layer whose exclusions of capture are a floor: a namespace and a pod only add to them.
const SourceMesh = "mesh"

const sourceBuiltIn = "built-in"

// Istio's defaults, which PROXY_CONFIG does not repeat.
const (
	defaultDrain     = 5 * time.Second
	defaultDiscovery = "istiod.istio-system.svc:15012"
	defaultDomain    = "cluster.local"
)

// builtIn is the layer below all others, with every default.
func builtIn() *Spec {
	return &Spec{
		Preset: new(PresetIstio),
		Injection: &Injection{
			EnableNamespacesByDefault: new(false), AutoInjectByAnnotation: new(true), Paused: new(false),
			AlwaysInjectSelector: []metav1.LabelSelector{}, NeverInjectSelector: []metav1.LabelSelector{},
			InjectedAnnotations: map[string]string{},
		},
		Injector: &Injector{Manage: new(false)},
		Proxy:    builtInProxy(),
		Init:     &Init{CNI: new(false)},
		Capture: &Capture{
			Mode:                     new(Redirect),
			IncludeOutboundIPRanges:  []string{all},
			ExcludeOutboundIPRanges:  []string{},
			IncludeInboundPorts:      []intstr.IntOrString{intstr.FromString(all)},
			ExcludeInboundPorts:      []intstr.IntOrString{},
			IncludeOutboundPorts:     []intstr.IntOrString{},
			ExcludeOutboundPorts:     []intstr.IntOrString{},
			ExcludeInterfaces:        []string{},
			RerouteVirtualInterfaces: []string{},
		},
		DNS:        &DNS{Capture: new(false)},
		HotUpgrade: &HotUpgrade{HandoffDir: new("/etc/asm/uds"), UpgradeDrainDuration: &metav1.Duration{Duration: time.Minute}},
		Wasm:       &Wasm{PullSecrets: []string{}},
		ControlPlane: &ControlPlane{
			Mode: new(ModeIstiod), ConfigMap: new(""),
			DiscoveryAddress: new(defaultDiscovery), ClusterID: new("Kubernetes"), Network: new(""),
			TrustDomain: new(defaultDomain), ClusterDomain: new(defaultDomain),
		},
	}
}

func builtInProxy() *Proxy {
	return &Proxy{
		ImagePullPolicy: new(corev1.PullIfNotPresent), ImagePullSecrets: []string{},
		Resources: limits("100m", "128Mi", "2", "1Gi"),
		LogLevel:  new("warning"), ComponentLogLevel: new("misc:error"), AgentLogLevel: new("default:info"),
		HoldApplicationUntilProxyStart: new(false), RewriteAppProbes: new(true), MergePrometheus: new(true),
		TerminationDrainDuration: &metav1.Duration{Duration: defaultDrain},
		StatusPort:               new(int32(contract.StatusPort)),
		Readiness:                &Readiness{InitialDelaySeconds: new(int32(0)), PeriodSeconds: new(int32(15)), FailureThreshold: new(int32(4))},
		Env:                      map[string]string{},
		Native:                   new(NativeAuto),
	}
}

// defaults is what a preset changes of the built-in defaults.
func (p Preset) defaults() *Spec {
	if p != PresetASM {
		return &Spec{}
	}
	return &Spec{
		Injector: &Injector{Manage: new(true)},
		Proxy:    &Proxy{StatusPort: new(int32(contract.ReadyPort)), Env: map[string]string{"DNS_AGENT": ""}},
		Init:     &Init{Resources: limits("10m", "10Mi", "100m", "50Mi")},
		Capture:  &Capture{ExcludeInboundPorts: []intstr.IntOrString{intstr.FromInt32(15081), intstr.FromInt32(9191)}},
		Wasm:     &Wasm{PullSecrets: []string{contract.ASMPullSecret}},
	}
}

// limits are resources as they are spelt in this file.
func limits(requestCPU, requestMemory, limitCPU, limitMemory string) *corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return &corev1.ResourceRequirements{Requests: list(requestCPU, requestMemory), Limits: list(limitCPU, limitMemory)}
}
