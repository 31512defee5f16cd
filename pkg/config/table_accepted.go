package config

// acceptedSettings are names of Istio's agent, past and present, that manifests carry
// and that nothing here depends on.
func acceptedSettings() []Setting {
	const template = "the bootstrap is built from typed parts, not from a template"
	return []Setting{
		{name: "templateFile", Flag: "templateFile", Env: "ISTIO_BOOTSTRAP", proxy: "proxyBootstrapTemplatePath", Kind: String, Effect: Warned, why: template,
			Doc: "Istio's bootstrap template"},
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
		{name: "wasmPurgeInterval", Env: "WASM_PURGE_INTERVAL", Kind: Duration, Effect: NoEffect, why: "what is old goes when something else comes or goes",
			Doc: "How often unused Wasm modules are looked for"},
		{name: "wasmRequestTimeout", Env: "WASM_HTTP_REQUEST_TIMEOUT", Kind: Duration, Effect: NoEffect, why: "each step of a pull has its own: 5 s to connect, 15 s for an answer, 30 s without a byte",
			Doc: "Time-out of a request for a Wasm module"},
		{name: "wasmRequestRetries", Env: "WASM_HTTP_REQUEST_MAX_RETRIES", Kind: Count, Effect: NoEffect, why: "it is tried for as long as the module is wanted",
			Doc: "How often a Wasm module is asked for"},
		{name: "vklog", Flag: "vklog", Kind: String, Effect: NoEffect, why: "no Kubernetes client logs here", Global: true,
			Doc: "Verbosity of the Kubernetes client's log"},
	}
}

// metadataSettings are node metadata on which istiod acts, or Istio's bootstrap, and the agent
// does not.
func metadataSettings() (rows []Setting) {
	for _, m := range []struct{ name, doc string }{
		{"HTTP10", "Take HTTP/1.0; on files it is always taken"},
		{"HTTP_PROXY_PORT", "Port of an HTTP proxy"},
		{"IDLE_TIMEOUT", "Idle time-out of connections"},
		{"INBOUND_LISTENER_EXACT_BALANCE", "Balance inbound connections over the workers"},
		{"OUTBOUND_LISTENER_EXACT_BALANCE", "Balance outbound connections over the workers"},
		{"ENABLE_HBONE", "Take and make HBONE connections"},
		{"DISABLE_HBONE_SEND", "Make no HBONE connections"},
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
			name: "meta:" + m.name, Env: metaPrefix + m.name, Kind: String, Effect: UnderIstiod,
			Doc: m.doc,
		})
	}
	return rows
}
