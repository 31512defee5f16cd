package rule

import (
	"net/netip"
	"strings"
)

const chainPrefix = "ISTIO_"

// The chains of capture, by Istio's names, and those of the kernel that lead to them.
const (
	PreRouting  = "PREROUTING"
	Output      = "OUTPUT"
	Inbound     = chainPrefix + "INBOUND"
	InRedirect  = chainPrefix + "IN_REDIRECT"
	Outbound    = chainPrefix + "OUTPUT"
	OutRedirect = chainPrefix + "REDIRECT"
	OutboundDNS = chainPrefix + "OUTPUT_DNS"
	DropChain   = chainPrefix + "DROP"
	Divert      = chainPrefix + "DIVERT"
	Transparent = chainPrefix + "TPROXY"
)

// IsOurChain reports whether a chain is one of capture's, by its name.
func IsOurChain(name string) bool { return strings.HasPrefix(name, chainPrefix) }

// Loopback is the loopback interface.
const Loopback = "lo"

// LoopbackV6 is what counts as loopback in IPv6.
var LoopbackV6 = netip.MustParsePrefix("::1/128")

// Envoy calls the application from these addresses; ::6 must be added to lo.
var (
	PassthroughV6 = netip.MustParsePrefix("::6/128")
	Passthrough   = []netip.Prefix{netip.MustParsePrefix("127.0.0.6/32"), PassthroughV6}
)

// Targets that say nothing but their verdict.
var (
	Leave = Target{Verdict: "RETURN"} // leave the packet alone: back to the built-in chain
	Drop  = Target{Verdict: "DROP"}
)
