package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// defaultMaxFileBytes holds about 30,000 ServiceEntries; a file above it is a mistake, and is not read.
const defaultMaxFileBytes = 16 << 20

// defaultMaxBytes bounds what is read before the hosts can be counted: 500,000 ServiceEntries, several times as many as
// a pod has addresses for.
const defaultMaxBytes = 256 << 20

// Options are the settings of the embedded control plane. What is a setting of the user's has its default there and none
// here, where zero is a value like any other. The caller owns the slices and must not change them afterwards.
type Options struct {
	// Namespace is the pod's; needed. Documents without a namespace are in it, and exportTo "." is measured against it.
	Namespace string
	// IPv4 and IPv6 say which families the pod has. At least one is needed.
	IPv4, IPv6 bool
	// InboundPort and OutboundPort are where Envoy captures; needed.
	InboundPort, OutboundPort uint16
	// TransparentMark is for inbound traffic that TPROXY captures, with both its
	// addresses as the client gave them: Envoy calls the application from the client's
	// address, and marks what it sends with this number, by which the application's
	// answers find back. 0 is inbound traffic by REDIRECT.
	TransparentMark uint32
	// ReservedPorts belong to the agent and Envoy: captured inbound traffic is never forwarded to them, and no
	// wildcard listener may take them.
	ReservedPorts []uint16
	// RegistryOnly refuses outbound traffic to unknown destinations (outboundTrafficPolicy REGISTRY_ONLY) instead of
	// passing it through.
	RegistryOnly bool
	// AutoAllocate asks for a VIP for every ServiceEntry host that has no address, see Registry.AutoHosts.
	AutoAllocate bool
	// VIPRanges are where VIPs come from. A connection into them that no listener declares is refused.
	VIPRanges []netip.Prefix
	// DNSResolver is how Envoy looks up the names of resolution DYNAMIC_DNS, which does not follow the bootstrap's default
	// as all else does; nil is c-ares with resolv.conf. Owned by the caller, and never changed.
	DNSResolver *corev3.TypedExtensionConfig
	// ConnectTimeout bounds Envoy's upstream TCP connects; needed, as Envoy takes no 0.
	ConnectTimeout time.Duration
	// DetectionTimeout is how long a connection may say nothing before it is taken for a server-first protocol; 0 is
	// for ever.
	DetectionTimeout time.Duration
	// AccessLog is MeshConfig's accessLogFile, accessLogFormat and accessLogEncoding. An empty path is no access log,
	// an empty format Istio's default format.
	AccessLog AccessLog
	// AllowIgnored makes kinds that restrict access (security.istio.io, Sidecar) ignored instead of an error.
	AllowIgnored bool
	// MaxHosts is how many hosts the documents may have; 0 is as many as there are.
	MaxHosts int
	// maxFileBytes is the largest file that is read; default 16 MiB.
	maxFileBytes int64
	// maxBytes is how large all files may be together; default 256 MiB.
	maxBytes int64
	// now is the clock; default time.Now.
	now func() time.Time
}

// AccessLog says where Envoy logs each request and connection, and how.
type AccessLog struct {
	// Path is a file such as /dev/stdout; empty means no access log.
	Path string
	// Format is an Envoy format string, or with JSON a JSON object of such strings; empty means Istio's default.
	Format string
	// JSON selects accessLogEncoding JSON.
	JSON bool
}

// withDefaults returns o with the defaults that are no settings, or an error when no resources can be made of it.
func (o Options) withDefaults() (Options, error) {
	switch {
	case !o.IPv4 && !o.IPv6:
		return o, fmt.Errorf("mesh options: neither IPv4 nor IPv6 is on, the pod needs an address of one of them")
	case o.InboundPort == 0 || o.OutboundPort == 0:
		return o, fmt.Errorf("mesh options: the capture ports are %d and %d, both are needed", o.InboundPort, o.OutboundPort)
	case o.Namespace == "":
		return o, fmt.Errorf("mesh options: the pod's namespace is needed")
	case o.ConnectTimeout <= 0:
		return o, fmt.Errorf("connectTimeout is %s, should be longer than 0s", o.ConnectTimeout)
	case o.DetectionTimeout < 0:
		return o, fmt.Errorf("protocolDetectionTimeout is %s, should be 0s, which waits for ever, or longer", o.DetectionTimeout)
	}
	o.maxFileBytes = cmp.Or(o.maxFileBytes, defaultMaxFileBytes)
	o.maxBytes = cmp.Or(o.maxBytes, defaultMaxBytes)
	if o.now == nil {
		o.now = time.Now
	}
	return o, nil
}

// reserved says whether port belongs to the agent or Envoy, so that no wildcard listener may be made for it.
func (o *Options) reserved(port uint16) bool {
	return port == o.InboundPort || port == o.OutboundPort || slices.Contains(o.ReservedPorts, port)
}

// HasFamily says whether the pod has the family of a.
func (o *Options) HasFamily(a netip.Addr) bool {
	if a.Is4() {
		return o.IPv4
	}
	return o.IPv6
}
