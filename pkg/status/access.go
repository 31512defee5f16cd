package status

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// forwardedSource4 and forwardedSource6 are what Envoy (and the agent's own
// probes) use as the source of traffic that came from outside the pod, see
// Istio's InboundPassthroughClusterIpv4/6. The first lies within 127.0.0.0/8,
// and must not be taken for a process of the pod.
var (
	forwardedSource4 = netip.AddrFrom4([4]byte{127, 0, 0, 6})
	forwardedSource6 = netip.AddrFrom16([16]byte{15: 6})
)

// local reports whether a request's RemoteAddr is a process of this pod: a
// loopback address, but neither of the two above.
func local(remoteAddr string) bool {
	ap, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return false
	}
	a := ap.Addr().Unmap().WithZone("")
	return a.IsLoopback() && a != forwardedSource4 && a != forwardedSource6
}

// localHost reports whether the Host header names this machine in a way that
// a public DNS name cannot: an IP address, "localhost" or another single
// label, or nothing. It is the only thing that tells a web page whose name was
// re-bound to 127.0.0.1 from curl, where the agent runs beside a browser.
func localHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	if !strings.Contains(host, ".") || strings.HasSuffix(strings.ToLower(host), ".localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// guard decides who may call a handler.
type guard struct {
	trustPeer bool // the caller was checked already (peer credentials)
	browser   *http.CrossOriginProtection
}

// local lets only processes of this pod through: everyone else gets 403,
// whatever the method. A browser's request for another site's sake is refused
// too, see [http.CrossOriginProtection] and localHost.
func (g guard) local(next http.Handler) http.Handler {
	if g.trustPeer {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !local(r.RemoteAddr):
			http.Error(w, "only requests from inside the pod's loopback are allowed", http.StatusForbidden)
		case !localHost(r.Host):
			http.Error(w, "the Host header must be an IP address or localhost", http.StatusForbidden)
		case g.browser.Check(r) != nil:
			http.Error(w, "cross-origin requests are refused", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// methods answers 405 to every method but the given ones.
func methods(next http.Handler, allowed ...string) http.Handler {
	allow := strings.Join(allowed, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(allowed, r.Method) {
			w.Header().Set("Allow", allow)
			http.Error(w, "method "+r.Method+" is not allowed, use "+allow, http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}
