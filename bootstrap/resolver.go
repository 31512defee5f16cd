package bootstrap

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// queryTimeoutSeconds and queryTries bound one look-up of Envoy's. A cluster is not
	// used before its first look-up has ended, and a name is not published before its
	// cluster is used: with Envoy's defaults, 5 s and 4 tries, a dead name server would
	// hold back names for half a minute.
	queryTimeoutSeconds = 2
	queryTries          = 2
	// udpMaxQueries makes the resolver take a new socket, and so another source port,
	// now and then: a load balancer in front of the cluster's DNS pins a socket to one
	// server (istio#53577).
	udpMaxQueries = 100
)

// DNSResolver is how Envoy looks up names: with the server that is given, by TCP and with
// each name as it is written; that server walks resolv.conf's search list. The zero value
// is the servers of resolv.conf, whose list Envoy walks itself. One connection over
// loopback loses nothing of what a start with thousands of names asks at once, and has no
// answer of anybody else's put in. The bootstrap has it as the default; what in Envoy
// does not follow that (the dynamic forward proxy) needs it too.
func DNSResolver(server netip.AddrPort) *corev3.TypedExtensionConfig {
	cares := &caresv3.CaresDnsResolverConfig{
		QueryTimeoutSeconds: wrapperspb.UInt64(queryTimeoutSeconds),
		QueryTries:          wrapperspb.UInt32(queryTries),
		UdpMaxQueries:       wrapperspb.UInt32(udpMaxQueries),
	}
	if server.IsValid() {
		cares.Resolvers = []*corev3.Address{tcp(server.Addr().String(), server.Port())}
		cares.DnsResolverOptions = &corev3.DnsResolverOptions{UseTcpForDnsLookups: true, NoDefaultSearchDomain: true}
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.network.dns_resolver.cares", TypedConfig: typed(cares)}
}
