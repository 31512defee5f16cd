// Package contract owns the names by which a pod's manifest and the agent in it meet: what the injector writes and the agent
// reads. Both use it, so neither can change one alone. It imports nothing but the standard library.
package contract

// Ports that the agent or its Envoy listens on.
const (
	AdminPort    = 15000 // Envoy's admin API, on loopback
	OutboundPort = 15001 // Envoy: captured outbound traffic
	DebugPort    = 15004 // istiod's debug pages through Istio's agent; reserved
	InboundPort  = 15006 // Envoy: captured inbound traffic
	TunnelPort   = 15008 // of an ambient mesh, never captured
	StatusPort   = 15020 // the agent: readiness, merged metrics, drain, application probes; unless set otherwise
	ReadyPort    = 15021 // the agent: readiness for the kubelet
	DNSPort      = 15053 // the agent: DNS
	StatsPort    = 15090 // Envoy: its own statistics
)

// ProxyUID is the user and the group of the proxy's container, whose traffic is not captured.
const ProxyUID = 1337

// Annotations of a pod that the injector and the agent both go by.
const (
	ConfigAnnotation     = "proxy.istio.io/config"        // a ProxyConfig as YAML
	StatusPortAnnotation = "status.sidecar.istio.io/port" // the agent's status port, or 0
)

// ASMPullSecret is the Secret with which the modules of ASMFilterDeployments are pulled, if it is there: ASM's name for it.
const ASMPullSecret = "asmwasm-cache"

// Revision is the injector's in istio.io/rev.
const Revision = "understudy"
