package mesh

import (
	"fmt"
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// resolution is how the endpoints of a service are found: the API's ServiceEntry.Resolution, in a byte.
type resolution uint8

const (
	resolveNone    = resolution(networking.ServiceEntry_NONE)            // the address the application dialled
	resolveStatic  = resolution(networking.ServiceEntry_STATIC)          // the endpoints' IP addresses
	resolveDNS     = resolution(networking.ServiceEntry_DNS)             // every address of the endpoints' names
	resolveDNSRR   = resolution(networking.ServiceEntry_DNS_ROUND_ROBIN) // one address of the one name at a time
	resolveDynamic = resolution(networking.ServiceEntry_DYNAMIC_DNS)     // every address of the name that Host or SNI says
)

func (r resolution) String() string { return networking.ServiceEntry_Resolution(r).String() }

// byName says whether Envoy looks up the names of the endpoints, or of the host itself.
func (r resolution) byName() bool { return r == resolveDNS || r == resolveDNSRR }

// protocol is what Envoy does with the bytes of a port; Istio's names with the same treatment share one.
type protocol uint8

const (
	protoTCP protocol = iota
	protoTLS          // TLS and HTTPS: opaque, routed by SNI where the address does not tell
	protoHTTP
	protoHTTP2 // HTTP2 and GRPC
	protoGRPCWeb
	protoUDP // declared but not captured: iptables redirects TCP only
)

// protocols are the values of ServicePort.protocol, from Istio's pkg/config/protocol. HTTP_PROXY is HTTP to istiod
// outside of a Sidecar's listeners.
var protocols = [...]struct {
	name string
	is   protocol
}{
	{"HTTP", protoHTTP}, {"HTTPS", protoTLS}, {"GRPC", protoHTTP2}, {"GRPC-WEB", protoGRPCWeb}, {"HTTP2", protoHTTP2},
	{"HTTP_PROXY", protoHTTP}, {"MONGO", protoTCP}, {"MYSQL", protoTCP}, {"REDIS", protoTCP}, {"TCP", protoTCP},
	{"TLS", protoTLS}, {"UDP", protoUDP},
}

// parseProtocol reads a ServicePort.protocol, of any case; without one, a port is TCP.
func parseProtocol(name string) (p protocol, known bool) {
	for i := range protocols {
		if strings.EqualFold(protocols[i].name, name) {
			return protocols[i].is, true
		}
	}
	return protoTCP, name == ""
}

func protocolNames() string {
	names := make([]string, len(protocols))
	for i := range protocols {
		names[i] = protocols[i].name
	}
	return strings.Join(names, ", ")
}

func (p protocol) isHTTP() bool { return p == protoHTTP || p == protoHTTP2 || p == protoGRPCWeb }

func (p protocol) String() string {
	names := [...]string{protoTCP: "TCP", protoTLS: "TLS", protoHTTP: "HTTP", protoHTTP2: "HTTP2", protoGRPCWeb: "GRPC-WEB", protoUDP: "UDP"}
	if int(p) < len(names) {
		return names[p]
	}
	return fmt.Sprintf("protocol %d", p)
}

// port is one port of a ServiceEntry.
type port struct {
	name           string
	number, target uint16 // target is number where targetPort is not given
	protocol       protocol
}

// endpoint is one place where a service is served.
type endpoint struct {
	address  string // IP, host name, or unix:// path
	locality string // region/zone/subzone
	ports    []portOverride
	weight   uint32 // 0 counts as 1
}

// portOverride is an endpoint's own number for a named port.
type portOverride struct {
	name   string
	number uint16
}

// on returns the number under which the endpoint serves p.
func (e *endpoint) on(p port) uint16 {
	for _, o := range e.ports {
		if o.name == p.name {
			return o.number
		}
	}
	return p.target
}

const unixPrefix = "unix://"

func (e *endpoint) isUnix() bool { return strings.HasPrefix(e.address, unixPrefix) }

// entry is a valid ServiceEntry.
type entry struct {
	hosts      []string       // lower case
	addresses  []netip.Prefix // the zero prefix is every address
	ports      []port
	endpoints  []endpoint
	itself     bool    // the hosts are names that Envoy looks up: their own endpoints
	selector   []label // nil: no selector
	exportTo   []string
	resolution resolution
}

// workload is a valid WorkloadEntry.
type workload struct {
	endpoint endpoint
	labels   []label
}

// label is one key and value; slices of them are sorted by key.
type label struct{ key, value string }

// matches says whether every label of selector is among labels.
func matches(selector, labels []label) bool {
	for _, want := range selector {
		found := false
		for _, have := range labels {
			found = found || have == want
		}
		if !found {
			return false
		}
	}
	return true
}

// object is one good document: the unit of "last good state". It is immutable once decoded.
type object struct {
	kind            string
	namespace, name string
	created         int64  // metadata.creationTimestamp, Unix seconds; 0 when absent, as in files
	sum             uint64 // of the document's bytes
	entry           *entry
	workload        *workload
}

// key identifies an object across files and edits.
type key struct{ kind, namespace, name string }

func (o *object) key() key { return key{o.kind, o.namespace, o.name} }

// older is the order in which documents win conflicts: Istio's, by creation time, then name.
func older(a, b *object) int {
	if a.created != b.created {
		if a.created < b.created {
			return -1
		}
		return 1
	}
	if c := strings.Compare(a.namespace, b.namespace); c != 0 {
		return c
	}
	return strings.Compare(a.name, b.name)
}
