// Package profile owns SidecarProfile, the settings that a pod is injected with: its type, defaults and presets, what is valid,
// and how the settings of a pod, its namespace and the mesh are merged, with the source of each.
//
// One type, Spec, is a layer of settings as somebody wrote it and also the outcome of a merge. A field that is absent (nil)
// inherits; an explicit "" or [] is a value. So no field may be of a type that cannot tell the two apart.
//
// The markers (+kubebuilder) and comments of the fields become deploy/chart/crds: make crd.
// +groupName=understudy.mesh
// +versionName=v1alpha1
package profile

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What a SidecarProfile is called by the API server.
const (
	Group   = "understudy.mesh"
	Version = "v1alpha1"
	Kind    = "SidecarProfile"
	Name    = "default" // of the one object of a namespace that counts
)

// SidecarProfile is the settings with which the injector puts the proxy into pods. The object named default counts: in the
// injector's namespace it is the mesh's, in any other one that namespace's. A pod's annotations are above both.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=sp
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="want the name default: the one object of a namespace that counts"
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="In force",type=string,JSONPath=`.status.conditions[?(@.type=="InForce")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SidecarProfile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// The settings. An absent field inherits; an empty one ("" or []) is a value.
	Spec Spec `json:"spec,omitempty"`
	// What became of the settings.
	Status Status `json:"status,omitempty"`
}

// Status says what became of the settings.
type Status struct {
	// The metadata.generation that the conditions speak of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Accepted (the settings are valid), InForce (pods are injected with them; otherwise with the last good ones), NotApplied
	// (part of it is for somebody else to apply), Conflict (another injector claims the same namespaces).
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Spec are the settings.
type Spec struct {
	// A set of defaults. Mesh only. Default: istio.
	// +kubebuilder:validation:Enum=istio;asm
	Preset *Preset `json:"preset,omitempty"`
	// By what pods are chosen. Mesh only.
	Injection *Injection `json:"injection,omitempty"`
	// The injector's own Deployment. Mesh only.
	Injector *Injector `json:"injector,omitempty"`
	// The container istio-proxy.
	Proxy *Proxy `json:"proxy,omitempty"`
	// The container istio-init.
	Init *Init `json:"init,omitempty"`
	// Which traffic goes through the proxy.
	Capture *Capture `json:"capture,omitempty"`
	// The proxy's DNS server.
	DNS *DNS `json:"dns,omitempty"`
	// A second slot, so that the proxy is upgraded in place.
	HotUpgrade *HotUpgrade `json:"hotUpgrade,omitempty"`
	// What Wasm modules need.
	Wasm *Wasm `json:"wasm,omitempty"`
	// Where the proxy's configuration comes from.
	ControlPlane *ControlPlane `json:"controlPlane,omitempty"`
}

// Preset names a set of defaults: Istio's, or those of Alibaba Cloud Service Mesh.
type Preset string

// The presets.
const (
	PresetIstio Preset = "istio"
	PresetASM   Preset = "asm"
)

// Injection is the policy by which pods are chosen.
type Injection struct {
	// Pods of every namespace are candidates unless it has istio-injection=disabled; otherwise of those with
	// istio-injection=enabled. Default: false.
	EnableNamespacesByDefault *bool `json:"enableNamespacesByDefault,omitempty"`
	// A candidate is injected unless it says no, by sidecar.istio.io/inject "false"; otherwise it is if it says yes. Default: true.
	AutoInjectByAnnotation *bool `json:"autoInjectByAnnotation,omitempty"`
	// Candidates with these labels are injected, unless they say no or a neverInjectSelector matches. One of the list is enough.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="self.all(s, has(s.matchLabels) && size(s.matchLabels) > 0 || has(s.matchExpressions) && size(s.matchExpressions) > 0)",message="an empty selector matches every pod: want matchLabels or matchExpressions"
	AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector,omitzero"`
	// Candidates with these labels are not injected, unless they say yes. One of the list is enough.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:XValidation:rule="self.all(s, has(s.matchLabels) && size(s.matchLabels) > 0 || has(s.matchExpressions) && size(s.matchExpressions) > 0)",message="an empty selector matches every pod: want matchLabels or matchExpressions"
	NeverInjectSelector []metav1.LabelSelector `json:"neverInjectSelector,omitzero"`
	// Annotations that an injected pod gets.
	InjectedAnnotations map[string]string `json:"injectedAnnotations,omitzero"`
	// Nothing is injected as long as it is true, and the API server does not ask the injector. Default: false.
	Paused *bool `json:"paused,omitempty"`
}

// Injector is the injector's own Deployment.
type Injector struct {
	// The injector applies these settings to its own Deployment; otherwise whoever deploys it does. Default: false; preset asm: true.
	Manage *bool `json:"manage,omitempty"`
	// How many replicas. Default: as deployed.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=50
	ReplicaCount *int32 `json:"replicaCount,omitempty"`
	// On which nodes. Default: as deployed.
	NodeSelector map[string]string `json:"nodeSelector,omitzero"`
	// Its resources. Default: as deployed.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
}

// Proxy is the container istio-proxy.
type Proxy struct {
	// Istio's ProxyConfig as YAML, for what has no field here. A field beside it wins.
	Config *string `json:"config,omitempty"`
	// The image. Default: of the injector's release.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9][a-zA-Z0-9._\-/:@+]*$`
	Image *string `json:"image,omitempty"`
	// When the image is pulled. Default: IfNotPresent.
	// +kubebuilder:validation:Enum=Always;IfNotPresent;Never
	ImagePullPolicy *corev1.PullPolicy `json:"imagePullPolicy,omitempty"`
	// Secrets that the pod gets for pulling images.
	// +kubebuilder:validation:MaxItems=64
	ImagePullSecrets []string `json:"imagePullSecrets,omitzero"`
	// The resources, all of them: one level replaces another's as a whole. Default: 100m and 128Mi to 2 and 1Gi.
	// +kubebuilder:validation:XValidation:rule="!has(self.limits) || !('memory' in self.limits) || quantity(string(self.limits['memory'])).compareTo(quantity('4Mi')) >= 0",message="memory below 4Mi: the unit is missing (1025 is bytes; 1025Mi?)"
	// +kubebuilder:validation:XValidation:rule="!has(self.requests) || !has(self.limits) || !('cpu' in self.requests) || !('cpu' in self.limits) || quantity(string(self.requests['cpu'])).compareTo(quantity(string(self.limits['cpu']))) <= 0",message="the request of cpu is above its limit"
	// +kubebuilder:validation:XValidation:rule="!has(self.requests) || !has(self.limits) || !('memory' in self.requests) || !('memory' in self.limits) || quantity(string(self.requests['memory'])).compareTo(quantity(string(self.limits['memory']))) <= 0",message="the request of memory is above its limit"
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
	// Envoy's log level. Default: warning.
	LogLevel *string `json:"logLevel,omitempty"`
	// Envoy's log levels by component, such as misc:error,dns:debug. Default: misc:error.
	ComponentLogLevel *string `json:"componentLogLevel,omitempty"`
	// The agent's log levels, such as default:info,dns:debug. Default: info.
	AgentLogLevel *string `json:"agentLogLevel,omitempty"`
	// How many worker threads Envoy has; 0 is one for each core. Default: by the limit of CPU.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1024
	Concurrency *int32 `json:"concurrency,omitempty"`
	// The hooks of the container. With hotUpgrade, postStart must be pilot-agent wait.
	Lifecycle *corev1.Lifecycle `json:"lifecycle,omitempty"`
	// The application starts after the proxy is ready. Default: false.
	HoldApplicationUntilProxyStart *bool `json:"holdApplicationUntilProxyStarts,omitempty"`
	// Probes of the application go by the agent, so that they work in spite of mutual TLS. Default: true.
	RewriteAppProbes *bool `json:"rewriteAppProbes,omitempty"`
	// The application's metrics are scraped with the proxy's. Default: true.
	MergePrometheus *bool `json:"mergePrometheus,omitempty"`
	// How long connections may go on when the pod ends; whole seconds. Default: 5s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('1h') && duration(self).getMilliseconds() % 1000 == 0",message="want whole seconds from 0s to 1h"
	TerminationDrainDuration *metav1.Duration `json:"terminationDrainDuration,omitempty"`
	// The port of the agent's status server; 0 turns the proxy's own probes off. Default: 15020; preset asm: 15021.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	// +kubebuilder:validation:XValidation:rule="!(self in [15000, 15001, 15004, 15006, 15008, 15053, 15090])",message="the agent or Envoy has this port: want another, 15020 or 15021"
	StatusPort *int32 `json:"statusPort,omitempty"`
	// The timing of the readiness probe.
	Readiness *Readiness `json:"readiness,omitempty"`
	// Variables of the proxy and of istio-init (Istio's proxyMetadata), merged name by name. Those that the injector sets are refused.
	// +kubebuilder:validation:MaxProperties=1000
	// +kubebuilder:validation:XValidation:rule="!('PROXY_CONFIG' in self) && !('ISTIO_META_DNS_CAPTURE' in self) && !('ISTIO_META_DNS_AUTO_ALLOCATE' in self)",message="the injector sets this variable: for DNS use spec.dns, for a ProxyConfig proxy.config"
	Env map[string]string `json:"env,omitzero"`
	// Whether the proxy is a native sidecar: Auto is if every node's kubelet is 1.33 or newer. Default: Auto.
	// +kubebuilder:validation:Enum=Auto;Always;Never
	Native *Native `json:"native,omitempty"`
	// The seccomp profile. Default: RuntimeDefault, unless the pod has one.
	SeccompProfile *corev1.SeccompProfile `json:"seccompProfile,omitempty"`
}

// Readiness is the timing of the proxy's readiness probe.
type Readiness struct {
	// Seconds before the first probe. Default: 0.
	// +kubebuilder:validation:Minimum=0
	InitialDelaySeconds *int32 `json:"initialDelaySeconds,omitempty"`
	// Seconds between probes. Default: 15.
	// +kubebuilder:validation:Minimum=1
	PeriodSeconds *int32 `json:"periodSeconds,omitempty"`
	// After how many failures the proxy is not ready. Default: 4.
	// +kubebuilder:validation:Minimum=1
	FailureThreshold *int32 `json:"failureThreshold,omitempty"`
}

// Native says whether the proxy is a native sidecar (an init container that is restarted always).
type Native string

// Whether the proxy is a native sidecar.
const (
	NativeAuto   Native = "Auto" // if every node's kubelet is 1.33 or newer
	NativeAlways Native = "Always"
	NativeNever  Native = "Never"
)

// Init is the container istio-init.
type Init struct {
	// istio-cni captures traffic, so there is no istio-init. Default: false.
	CNI *bool `json:"cni,omitempty"`
	// The image. Default: the proxy's.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9][a-zA-Z0-9._\-/:@+]*$`
	Image *string `json:"image,omitempty"`
	// The resources, all of them. Default: the proxy's; preset asm: 10m and 10Mi to 100m and 50Mi.
	// +kubebuilder:validation:XValidation:rule="!has(self.limits) || !('memory' in self.limits) || quantity(string(self.limits['memory'])).compareTo(quantity('4Mi')) >= 0",message="memory below 4Mi: the unit is missing (1025 is bytes; 1025Mi?)"
	// +kubebuilder:validation:XValidation:rule="!has(self.requests) || !has(self.limits) || !('cpu' in self.requests) || !('cpu' in self.limits) || quantity(string(self.requests['cpu'])).compareTo(quantity(string(self.limits['cpu']))) <= 0",message="the request of cpu is above its limit"
	// +kubebuilder:validation:XValidation:rule="!has(self.requests) || !has(self.limits) || !('memory' in self.requests) || !('memory' in self.limits) || quantity(string(self.requests['memory'])).compareTo(quantity(string(self.limits['memory']))) <= 0",message="the request of memory is above its limit"
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
}

// Capture is which traffic goes through the proxy. Ports are numbers, also as text. What is excluded adds to what the mesh
// excludes; what is included replaces it.
type Capture struct {
	// How captured traffic gets to the proxy; NONE captures nothing. Default: REDIRECT.
	// +kubebuilder:validation:Enum=REDIRECT;TPROXY;NONE
	Mode *CaptureMode `json:"mode,omitempty"`
	// Outbound destinations that are captured, as CIDRs, or "*" alone. Default: ["*"].
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.size() == 1 && self[0] == '*' || self.all(c, isCIDR(c))",message="want CIDRs, or '*' alone"
	IncludeOutboundIPRanges []string `json:"includeOutboundIPRanges,omitzero"`
	// Outbound destinations that are not captured, as CIDRs.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.all(c, isCIDR(c))",message="want CIDRs, such as 10.0.0.0/8"
	ExcludeOutboundIPRanges []string `json:"excludeOutboundIPRanges,omitzero"`
	// Inbound ports that are captured, or "*" alone. Default: ["*"].
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:XIntOrString
	// +kubebuilder:validation:items:Pattern=`^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]|\*)$`
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) != int || p > 0 && p < 65536)",message="want ports from 1 to 65535"
	// +kubebuilder:validation:XValidation:rule="self.size() == 1 || !self.exists(p, type(p) == string && p == '*')",message="want '*' alone, or ports"
	IncludeInboundPorts []intstr.IntOrString `json:"includeInboundPorts,omitzero"`
	// Inbound ports that are not captured, besides the proxy's own.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:XIntOrString
	// +kubebuilder:validation:items:Pattern=`^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$`
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) != int || p > 0 && p < 65536)",message="want ports from 1 to 65535"
	ExcludeInboundPorts []intstr.IntOrString `json:"excludeInboundPorts,omitzero"`
	// Outbound ports that are captured whatever the destination.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:XIntOrString
	// +kubebuilder:validation:items:Pattern=`^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$`
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) != int || p > 0 && p < 65536)",message="want ports from 1 to 65535"
	IncludeOutboundPorts []intstr.IntOrString `json:"includeOutboundPorts,omitzero"`
	// Outbound ports that are not captured.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:XIntOrString
	// +kubebuilder:validation:items:Pattern=`^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$`
	// +kubebuilder:validation:XValidation:rule="self.all(p, type(p) != int || p > 0 && p < 65536)",message="want ports from 1 to 65535"
	ExcludeOutboundPorts []intstr.IntOrString `json:"excludeOutboundPorts,omitzero"`
	// Network interfaces whose traffic is not captured.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^[a-zA-Z][a-zA-Z0-9_.\-]*$`
	ExcludeInterfaces []string `json:"excludeInterfaces,omitzero"`
	// Network interfaces of virtual machines, whose traffic counts as outbound.
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^[a-zA-Z][a-zA-Z0-9_.\-]*$`
	RerouteVirtualInterfaces []string `json:"rerouteVirtualInterfaces,omitzero"`
}

// CaptureMode is how captured traffic reaches the proxy (Istio's interceptionMode).
type CaptureMode string

// The modes of capture.
const (
	Redirect CaptureMode = "REDIRECT"
	TProxy   CaptureMode = "TPROXY"
	None     CaptureMode = "NONE"
)

// DNS is the proxy's DNS server.
type DNS struct {
	// The application's DNS queries go to the agent, which knows the hosts of the mesh. Default: false.
	Capture *bool `json:"capture,omitempty"`
	// Hosts without an address get one of the proxy's. Default: as capture.
	AutoAllocate *bool `json:"autoAllocate,omitempty"`
}

// HotUpgrade gives the pod a second slot, so that its proxy is upgraded in place. It is on when EmptyImage is set.
type HotUpgrade struct {
	// The image of the slot that idles. Set, it turns hot upgrade on; "" turns it off.
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9][a-zA-Z0-9._\-/:@+]*)?$`
	EmptyImage *string `json:"emptyImage,omitempty"`
	// The directory where old and new proxy meet. Default: /etc/asm/uds.
	// +kubebuilder:validation:Pattern=`^/.*[^/]$`
	HandoffDir *string `json:"handoffDir,omitempty"`
	// How long the old proxy may serve connections that it has; whole seconds. Default: 60s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h') && duration(self).getMilliseconds() % 1000 == 0",message="want whole seconds from 0s to 720h"
	UpgradeDrainDuration *metav1.Duration `json:"upgradeDrainDuration,omitempty"`
	// What the slot that idles requests: the same as the one that serves, or little until an upgrade resizes it. Default:
	// Resize where every node's kubelet is 1.33 or newer, otherwise Same.
	// +kubebuilder:validation:Enum=Same;Resize
	StandbyRequests *StandbyRequests `json:"standbyRequests,omitempty"`
}

// StandbyRequests is what the idle slot requests: the same as the one that serves, or little until an upgrade resizes it.
type StandbyRequests string

// The requests of the idle slot.
const (
	StandbySame   StandbyRequests = "Same"
	StandbyResize StandbyRequests = "Resize"
)

// Wasm is what Wasm modules need.
type Wasm struct {
	// Secrets of registries that modules are pulled from, of the pod's namespace; one that is not there holds up no pod. Default: none;
	// with the preset asm asmwasm-cache.
	// +kubebuilder:validation:MaxItems=64
	PullSecrets []string `json:"pullSecrets,omitzero"`
}

// ControlPlane is where the proxy's configuration comes from.
type ControlPlane struct {
	// Whether an istiod configures the proxy, or files do. Default: istiod.
	// +kubebuilder:validation:Enum=istiod;files
	Mode *ControlPlaneMode `json:"mode,omitempty"`
	// With mode files: the ConfigMap of Istio YAML, of the pod's namespace.
	// +kubebuilder:validation:MaxLength=253
	ConfigMap *string `json:"configMap,omitempty"`
	// istiod's address, host:port. Default: istiod.istio-system.svc:15012.
	// +kubebuilder:validation:Pattern=`^.+:[0-9]+$`
	DiscoveryAddress *string `json:"discoveryAddress,omitempty"`
	// The address of who signs certificates. Default: istiod's.
	// +kubebuilder:validation:Pattern=`^.+:[0-9]+$`
	CAAddress *string `json:"caAddress,omitempty"`
	// The cluster's name in the mesh. Default: Kubernetes.
	ClusterID *string `json:"clusterID,omitempty"`
	// The mesh's name. Default: the trust domain.
	MeshID *string `json:"meshID,omitempty"`
	// The trust domain. Default: cluster.local.
	// +kubebuilder:validation:MaxLength=253
	TrustDomain *string `json:"trustDomain,omitempty"`
	// The network of the pods. Default: "".
	Network *string `json:"network,omitempty"`
	// The cluster's domain. Default: cluster.local.
	// +kubebuilder:validation:MaxLength=253
	ClusterDomain *string `json:"clusterDomain,omitempty"`
}

// ControlPlaneMode is istiod, or files in a ConfigMap.
type ControlPlaneMode string

// The control planes.
const (
	ModeIstiod ControlPlaneMode = "istiod"
	ModeFiles  ControlPlaneMode = "files"
)
