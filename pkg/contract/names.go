package contract

// Variables of a slot in which the injector tells the agent what it cannot know otherwise. They are Istio's, but for the last two.
const (
	ConfigVariable      = "PROXY_CONFIG"                       // a ProxyConfig as JSON
	PodPortsVariable    = "ISTIO_META_POD_PORTS"               // the application's ports, as JSON
	AppsVariable        = "ISTIO_META_APP_CONTAINERS"          // names of its containers, separated by commas
	ProbersVariable     = "ISTIO_KUBE_APP_PROBERS"             // its probes and hooks by their paths with the agent, as JSON
	PrometheusVariable  = "ISTIO_PROMETHEUS_ANNOTATIONS"       // where its metrics are, as JSON
	ModeVariable        = "ISTIO_META_INTERCEPTION_MODE"       // how traffic is captured
	DNSCaptureVariable  = "ISTIO_META_DNS_CAPTURE"             // whether the agent answers DNS
	DNSAllocateVariable = "ISTIO_META_DNS_AUTO_ALLOCATE"       // whether hosts without an address get one
	DrainVariable       = "TERMINATION_DRAIN_DURATION_SECONDS" // how long connections may go on when the pod ends
	DualStackVariable   = "ISTIO_DUAL_STACK"                   // whether both IP versions are captured
	ReleaseVariable     = "ISTIO_META_ISTIO_VERSION"           // the release that istiod takes the proxy for
	VersionVariable     = "SIDECARSET_VERSION"                 // of the slot, by which the newer generation is known
	VersionAltVariable  = "SIDECARSET_VERSION_ALT"             // of the other slot
)

// Paths that the agent serves. Behind a prefix comes the container's name, and then a probe's or a hook's own.
const (
	ReadyPath   = "/healthz/ready"
	ReadyURL    = "http://localhost:15021" + ReadyPath // at ReadyPort, for whoever is in the pod
	MetricsPath = "/stats/prometheus"                  // the proxy's and the application's, merged
	DrainPath   = "/drain"
	UpgradePath = "/upgrade" // an UpgradeStatus, for everybody who reaches the pod

	ProbePrefix   = "/app-health/"
	ReadinessPath = "readyz"
	LivenessPath  = "livez"
	StartupPath   = "startupz"
	HookPrefix    = "/app-lifecycle/"
	PreStopPath   = "prestopz"
	PostStartPath = "poststartz"
)

// Annotations of a pod that say what is captured, for the injector and for istio-cni.
const (
	ModeAnnotation             = "sidecar.istio.io/interceptionMode"
	IncludeOutboundIPs         = "traffic.sidecar.istio.io/includeOutboundIPRanges"
	ExcludeOutboundIPs         = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	IncludeInboundPorts        = "traffic.sidecar.istio.io/includeInboundPorts"
	ExcludeInboundPorts        = "traffic.sidecar.istio.io/excludeInboundPorts"
	IncludeOutboundPorts       = "traffic.sidecar.istio.io/includeOutboundPorts"
	ExcludeOutboundPorts       = "traffic.sidecar.istio.io/excludeOutboundPorts"
	ExcludeInterfaces          = "traffic.sidecar.istio.io/excludeInterfaces"
	RerouteInterfaces          = "istio.io/reroute-virtual-interfaces"
	RerouteInterfacesByOldName = "traffic.sidecar.istio.io/kubevirtInterfaces"
)
