package config

import "slices"

// acceptedSettings are names of Istio's agent, past and present, that manifests carry
// and that nothing here depends on.
func acceptedSettings() []Setting {
	const (
		template = "the bootstrap is built from typed parts, not from a template"
		tracing  = "tracing is configured by the control plane"
		mtls     = "this release has no workload certificates"
		sinks    = "statistics are scraped, not pushed"
	)
	rows := []Setting{
		{name: "templateFile", Flag: "templateFile", Env: "ISTIO_BOOTSTRAP", proxy: "proxyBootstrapTemplatePath", Kind: String, Effect: Warned, why: template,
			Doc: "Istio's bootstrap template"},
		{name: "customConfigFile", Flag: "customConfigFile", proxy: "customConfigFile", Kind: String, Effect: Warned, why: template,
			Doc: "A bootstrap file instead of the generated one"},
		{name: "trustDomain", Flag: "trust-domain", Env: "TRUST_DOMAIN", mesh: "trustDomain", Kind: String, Default: "cluster.local", Effect: NoEffect, why: mtls,
			Doc: "SPIFFE trust domain"},
		{name: "controlPlaneAuthPolicy", Flag: "controlPlaneAuthPolicy", proxy: "controlPlaneAuthPolicy", Kind: String, Effect: NoEffect, why: mtls,
			Doc: "Authentication towards istiod: NONE or MUTUAL_TLS"},
		{name: "zipkinAddress", Flag: "zipkinAddress", proxy: "zipkinAddress", Kind: String, Effect: Warned, why: tracing,
			Doc: "Address of a Zipkin collector"},
		{name: "lightstepAddress", Flag: "lightstepAddress", Kind: String, Effect: Warned, why: tracing,
			Doc: "Address of a LightStep collector"},
		{name: "lightstepAccessToken", Flag: "lightstepAccessToken", Kind: String, Effect: Warned, why: tracing, secret: true,
			Doc: "Token for the LightStep collector"},
		{name: "lightstepSecure", Flag: "lightstepSecure", Kind: Bool, Effect: Warned, why: tracing,
			Doc: "Whether LightStep is reached over TLS"},
		{name: "lightstepCacertPath", Flag: "lightstepCacertPath", Kind: String, Effect: Warned, why: tracing,
			Doc: "CA of the LightStep collector"},
		{name: "datadogAgentAddress", Flag: "datadogAgentAddress", Kind: String, Effect: Warned, why: tracing,
			Doc: "Address of a Datadog agent"},
		{name: "statsdUdpAddress", Flag: "statsdUdpAddress", proxy: "statsdUdpAddress", Kind: String, Effect: Warned, why: sinks,
			Doc: "Address of a statsd listener"},
		{name: "envoyMetricsServiceAddress", Flag: "envoyMetricsServiceAddress", proxy: "envoyMetricsServiceAddress", Kind: String, Effect: Warned, why: sinks,
			Doc: "Address of an Envoy metrics service"},
		{name: "dnsRefreshRate", Flag: "dnsRefreshRate", mesh: "dnsRefreshRate", Kind: Duration, Effect: NoEffect, why: "Envoy refreshes at the records' own TTL",
			Doc: "How often Envoy resolves upstream names"},
		{name: "proxyConnectTimeout", Flag: "connectTimeout", proxy: "connectTimeout", Kind: Duration, Effect: NoEffect, why: "the control plane is a Unix socket; upstreams follow the mesh file",
			Doc: "Connect time-out of Envoy towards supporting services"},
		{name: "controlPlaneBootstrap", Flag: "controlPlaneBootstrap", Kind: Bool, Effect: NoEffect, why: "it has had no meaning since Istio 1.5",
			Doc: "Whether the bootstrap is for the control plane"},
		{name: "disableInternalTelemetry", Flag: "disableInternalTelemetry", Kind: Bool, Effect: NoEffect, why: "there is no internal telemetry",
			Doc: "Switch internal telemetry off"},
		{name: "serviceregistry", Flag: "serviceregistry", Kind: String, Effect: NoEffect, why: "the registry is the control plane's business",
			Doc: "The platform's service registry"},
		{name: "stsPort", Flag: "stsPort", Kind: PortOrOff, Effect: NoEffect, why: "there is no token exchange server",
			Doc: "Port of the token exchange server"},
		{name: "tokenManagerPlugin", Flag: "tokenManagerPlugin", Kind: String, Effect: NoEffect, why: "there is no token exchange server",
			Doc: "Plug-in of the token exchange server"},
		{name: "logStacktraceLevel", Flag: "log_stacktrace_level", Kind: String, Effect: NoEffect, why: "records carry no stack traces", Global: true,
			Doc: "Levels from which records carry a stack trace"},
		{name: "logCaller", Flag: "log_caller", Kind: String, Effect: NoEffect, why: "records carry no caller", Global: true,
			Doc: "Scopes whose records name the caller"},
		{name: "vklog", Flag: "vklog", Kind: String, Effect: NoEffect, why: "no Kubernetes client logs here", Global: true,
			Doc: "Verbosity of the Kubernetes client's log"},
	}
	return slices.Concat(rows, statsSettings(), metadataSettings())
}

// statsSettings are annotations by which Istio tunes Envoy's statistics.
func statsSettings() []Setting {
	return []Setting{
		{name: "statsHistogramBuckets", annotation: "sidecar.istio.io/statsHistogramBuckets", Kind: String, Effect: Warned, why: "histograms have Envoy's own buckets",
			Doc: "Buckets of Envoy's histograms"},
		{name: "statsFlushInterval", annotation: "sidecar.istio.io/statsFlushInterval", Kind: String, Effect: Warned, why: "statistics are scraped, not pushed",
			Doc: "How often Envoy flushes statistics to its sinks"},
		{name: "statsEvictionInterval", annotation: "sidecar.istio.io/statsEvictionInterval", Kind: String, Effect: Warned, why: "statistics are kept as long as Envoy lives",
			Doc: "How often Envoy drops statistics that are not used"},
	}
}

// metadataSettings are node metadata on which Istio's bootstrap, or istiod, acts, and nothing
// here does. They are part of Envoy's node all the same.
func metadataSettings() (rows []Setting) {
	for _, m := range []struct{ name, doc string }{
		{"HTTP10", "Take HTTP/1.0, which is always taken here"},
		{"HTTP_PROXY_PORT", "Port of an HTTP proxy"},
		{"IDLE_TIMEOUT", "Idle time-out of connections"},
		{"INBOUND_LISTENER_EXACT_BALANCE", "Balance inbound connections over the workers"},
		{"OUTBOUND_LISTENER_EXACT_BALANCE", "Balance outbound connections over the workers"},
		{"ENVOY_SECURE_METRICS_PORT", "Port of Envoy's statistics over mutual TLS"},
		{"ENVOY_SECURE_MERGED_METRICS_PORT", "Port of the merged metrics over mutual TLS"},
		{"ENABLE_HBONE", "Take and make HBONE connections"},
		{"DISABLE_HBONE_SEND", "Make no HBONE connections"},
		{"METADATA_DISCOVERY", "Discover the metadata of peers"},
		{"ENABLE_SELF_DISCOVERY", "Discover the locality of the pod itself"},
		{"GENERATOR", "Kind of configuration that the control plane makes"},
		{"REQUESTED_NETWORK_VIEW", "Networks whose endpoints are wanted"},
		{"AUTO_REGISTER_GROUP", "WorkloadGroup in which the control plane registers a virtual machine"},
		{"CLOUDRUN_ADDR", "Address of the control plane in Cloud Run"},
		{"TLS_SERVER_CERT_CHAIN", "File of the certificate for inbound mutual TLS"},
		{"TLS_SERVER_KEY", "File of its key"},
		{"TLS_SERVER_ROOT_CERT", "File of the roots for clients"},
		{"TLS_CLIENT_CERT_CHAIN", "File of the certificate for outbound mutual TLS"},
		{"TLS_CLIENT_KEY", "File of its key"},
		{"TLS_CLIENT_ROOT_CERT", "File of the roots for servers"},
	} {
		rows = append(rows, Setting{
			name: "meta:" + m.name, Env: metaPrefix + m.name, Kind: String, Effect: Warned,
			why: "it is only passed on, as metadata of Envoy's node", Doc: m.doc,
		})
	}
	return rows
}
