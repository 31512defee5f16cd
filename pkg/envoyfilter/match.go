package envoyfilter

import (
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// concerns says whether a patch is for the listener, of whatever chain and filter.
func (r *run) concerns(e *entry) bool {
	if e.context != networking.EnvoyFilter_ANY && e.context != r.context {
		return false
	}
	m := e.match
	if m.GetName() != "" && m.GetName() != r.listener.GetName() && m.GetName() != r.alias {
		return false
	}
	return r.virtual || m.GetPortNumber() == 0 || m.GetPortNumber() == r.listener.GetAddress().GetSocketAddress().GetPortValue()
}

// inChain says whether a patch is for a filter chain, and notes why not.
func (r *run) inChain(e *entry, c *listenerv3.FilterChain) bool {
	miss := r.chainMiss(e, c)
	if miss != "" {
		r.tell(e, false, levelChain, func() string {
			return "no filter chain of " + r.listener.GetName() + " " + miss + ", but for those that close every connection, which nothing patches"
		})
	}
	return miss == ""
}

// chainMiss is what a patch wants of a filter chain that this one is not.
func (r *run) chainMiss(e *entry, c *listenerv3.FilterChain) string {
	fcm, m := c.GetFilterChainMatch(), e.match.GetFilterChain()
	port := fcm.GetDestinationPort().GetValue()
	if want := e.match.GetPortNumber(); r.virtual && want != 0 && want != port {
		return fmt.Sprintf("is for portNumber %d", want)
	}
	if want := m.GetDestinationPort(); want != 0 && want != port {
		return fmt.Sprintf("is for destinationPort %d", want)
	}
	if m.GetName() != "" && m.GetName() != c.GetName() {
		return fmt.Sprintf("has the name %q", m.GetName())
	}
	if m.GetSni() != "" && !slices.Contains(fcm.GetServerNames(), m.GetSni()) {
		return fmt.Sprintf("is for the SNI %q", m.GetSni())
	}
	if m.GetTransportProtocol() != "" && m.GetTransportProtocol() != fcm.GetTransportProtocol() {
		return fmt.Sprintf("is for transportProtocol %q", m.GetTransportProtocol())
	}
	if m.GetApplicationProtocols() != "" {
		for p := range strings.SplitSeq(m.GetApplicationProtocols(), ",") {
			if !slices.Contains(fcm.GetApplicationProtocols(), p) {
				return fmt.Sprintf("is for the application protocol %q", p)
			}
		}
	}
	return ""
}

// networkAnchor and httpAnchor say whether a patch names a filter to go by.
func networkAnchor(e *entry) bool { return e.match.GetFilterChain().GetFilter() != nil }
func httpAnchor(e *entry) bool    { return e.match.GetFilterChain().GetFilter().GetSubFilter() != nil }

// sameNetwork and sameHTTP say whether a filter is the one that a patch names; it may name none, which any is.
func sameNetwork(name string, e *entry) bool {
	return !networkAnchor(e) || networkName(e.match.GetFilterChain().GetFilter().GetName()) == networkName(name)
}

func sameHTTP(name string, e *entry) bool {
	return !httpAnchor(e) || httpName(e.match.GetFilterChain().GetFilter().GetSubFilter().GetName()) == httpName(name)
}
