package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/pkg/envoyfilter"
)

// Resolution is how the endpoints of a service are found: the API's ServiceEntry.Resolution, in a byte.
type Resolution uint8

// The ways of the API.
const (
	ResolveNone    = Resolution(networking.ServiceEntry_NONE)            // the address the application dialled
	ResolveStatic  = Resolution(networking.ServiceEntry_STATIC)          // the endpoints' IP addresses
	ResolveDNS     = Resolution(networking.ServiceEntry_DNS)             // every address of the endpoints' names
	ResolveDNSRR   = Resolution(networking.ServiceEntry_DNS_ROUND_ROBIN) // one address of the one name at a time
	ResolveDynamic = Resolution(networking.ServiceEntry_DYNAMIC_DNS)     // every address of the name that Host or SNI says
)

func (r Resolution) String() string { return networking.ServiceEntry_Resolution(r).String() }

// byName says whether Envoy looks up the names of the endpoints, or of the host itself.
func (r Resolution) byName() bool { return r == ResolveDNS || r == ResolveDNSRR }

// Protocol is what Envoy does with the bytes of a port; Istio's names with the same treatment share one.
type Protocol uint8

// The protocols that are told apart.
const (
	ProtoTCP Protocol = iota
	ProtoTLS          // TLS and HTTPS: opaque, routed by SNI where the address does not tell
	ProtoHTTP
	ProtoHTTP2 // HTTP2 and GRPC
	ProtoGRPCWeb
	ProtoUDP // declared but not captured: iptables redirects TCP only
)

// protocols are the values of ServicePort.protocol, from Istio's pkg/config/protocol. HTTP_PROXY is HTTP to istiod
// outside of a Sidecar's listeners.
var protocols = [...]struct {
	name string
	is   Protocol
}{
	{"HTTP", ProtoHTTP}, {"HTTPS", ProtoTLS}, {"GRPC", ProtoHTTP2}, {"GRPC-WEB", ProtoGRPCWeb}, {"HTTP2", ProtoHTTP2},
	{"HTTP_PROXY", ProtoHTTP}, {"MONGO", ProtoTCP}, {"MYSQL", ProtoTCP}, {"REDIS", ProtoTCP}, {"TCP", ProtoTCP},
	{"TLS", ProtoTLS}, {"UDP", ProtoUDP},
}

// parseProtocol reads a ServicePort.protocol, of any case; without one, a port is TCP.
func parseProtocol(name string) (p Protocol, known bool) {
	for i := range protocols {
		if strings.EqualFold(protocols[i].name, name) {
			return protocols[i].is, true
		}
	}
	return ProtoTCP, name == ""
}

func protocolNames() string {
	names := make([]string, len(protocols))
	for i := range protocols {
		names[i] = protocols[i].name
	}
	return strings.Join(names, ", ")
}

// IsHTTP says whether Envoy reads the requests of the port.
func (p Protocol) IsHTTP() bool { return p == ProtoHTTP || p == ProtoHTTP2 || p == ProtoGRPCWeb }

// namesHost says whether a connection to the port names a host that can be looked up.
func (p Protocol) namesHost() bool { return p.IsHTTP() || p == ProtoTLS }

func (p Protocol) String() string {
	names := [...]string{ProtoTCP: "TCP", ProtoTLS: "TLS", ProtoHTTP: "HTTP", ProtoHTTP2: "HTTP2", ProtoGRPCWeb: "GRPC-WEB", ProtoUDP: "UDP"}
	if int(p) < len(names) {
		return names[p]
	}
	return fmt.Sprintf("protocol %d", p)
}

// Port is one port of a ServiceEntry.
type Port struct {
	name           string
	Number, target uint16 // target is number where targetPort is not given
	Protocol       Protocol
}

// Endpoint is one place where a service is served.
type Endpoint struct {
	Address  string // IP, host name, or unix:// path
	Locality string // region/zone/subzone
	ports    []portOverride
	Weight   uint32 // 0 counts as 1
}

// portOverride is an endpoint's own number for a named port.
type portOverride struct {
	name   string
	number uint16
}

// On returns the number under which the endpoint serves p.
func (e *Endpoint) On(p Port) uint16 {
	for _, o := range e.ports {
		if o.name == p.name {
			return o.number
		}
	}
	return p.target
}

const unixPrefix = "unix://"

// UnixPath is the path of an endpoint that is a Unix socket.
func (e *Endpoint) UnixPath() (path string, is bool) { return strings.CutPrefix(e.Address, unixPrefix) }

func (e *Endpoint) isUnix() bool { return strings.HasPrefix(e.Address, unixPrefix) }

// entry is a valid ServiceEntry.
type entry struct {
	hosts      []string       // lower case
	addresses  []netip.Prefix // the zero prefix is every address
	ports      []Port
	endpoints  []Endpoint
	itself     bool    // the hosts are names that Envoy looks up: their own endpoints
	selector   []label // nil: no selector
	exportTo   []string
	resolution Resolution
}

// workload is a valid WorkloadEntry.
type workload struct {
	endpoint Endpoint
	labels   []label
}

// label is one key and value; slices of them are sorted by key.
type label struct{ key, value string }

// matches says whether every label of selector is among labels.
func matches(selector, labels []label) bool {
	return !slices.ContainsFunc(selector, func(want label) bool { return !slices.Contains(labels, want) })
}

// object is one good document: the unit of "last good state". It is immutable once decoded.
type object struct {
	kind            string
	namespace, name string
	created         int64  // metadata.creationTimestamp, Unix seconds; 0 when absent, as in files
	sum             uint64 // of the document's bytes
	entry           *entry
	workload        *workload
	filter          *envoyfilter.Filter
	denial          bool // it stands in the place of a bad document
}

// key identifies an object across files and edits.
type key struct{ kind, namespace, name string }

func (o *object) key() key { return key{o.kind, o.namespace, o.name} }

// older is the order in which documents win conflicts: Istio's, by creation time, then name.
func older(a, b *object) int {
	return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
}
