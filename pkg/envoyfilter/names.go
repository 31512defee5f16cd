package envoyfilter

import "strings"

// connectionManager is the network filter that has HTTP filters.
const connectionManager = "envoy.filters.network.http_connection_manager"

// The names that Envoy's filters had before 1.14, as in Istio's list (pkg/config/xds): documents that were written for
// Istio 1.4 to 1.8 anchor at them.
const (
	httpPrefix    = "envoy.filters.http."
	networkPrefix = "envoy.filters.network."
)

// httpName is the name that an HTTP filter has today.
func httpName(name string) string {
	switch name {
	case "envoy.http_dynamo_filter":
		return httpPrefix + "dynamo"
	case "envoy.rate_limit":
		return httpPrefix + "ratelimit"
	}
	return current(name, httpPrefix, "buffer", "cors", "csrf", "ext_authz", "fault", "grpc_http1_bridge", "grpc_json_transcoder",
		"grpc_web", "gzip", "health_check", "ip_tagging", "lua", "router", "squash")
}

// networkName is the name that a network filter has today.
func networkName(name string) string {
	return current(name, networkPrefix, "client_ssl_auth", "ext_authz", "http_connection_manager", "mongo_proxy", "ratelimit", "redis_proxy", "tcp_proxy")
}

func current(name, prefix string, old ...string) string {
	if last, had := strings.CutPrefix(name, "envoy."); had {
		for _, o := range old {
			if last == o {
				return prefix + o
			}
		}
	}
	return name
}
