package config

import "understudy.mesh/pkg/contract"

func serverSettings() []Setting {
	return []Setting{
		{name: "statusPort", Flag: "statusPort", annotation: contract.StatusPortAnnotation, proxy: "statusPort", Kind: PortOrOff, Default: "15020", field: "StatusPort",
			Doc: "Port of the agent's status server; 0 turns it off"},
		{name: "proxyAdminPort", Flag: "proxyAdminPort", proxy: "proxyAdminPort", Kind: Port, Default: "15000", field: "AdminPort",
			Doc: "Loopback port of Envoy's admin interface, served by the agent"},
		{name: "readyPort", Env: "ENVOY_STATUS_PORT", Kind: Port, Default: "15021", field: "ReadyPort",
			Doc: "Port of /healthz/ready for the kubelet"},
		{name: "readyProxyProtocol", Env: "ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL", Kind: Bool, Default: "false", field: "ReadyProxyProtocol",
			Doc: "Take connections to readyPort with the PROXY protocol's header as well as without"},
		{name: "prometheusPort", Env: "ENVOY_PROMETHEUS_PORT", Kind: Port, Default: "15090", field: "StatsPort",
			Doc: "Port of Envoy's own Prometheus statistics"},
		{name: "metricsLocalhostAccessOnly", Env: "METRICS_LOCALHOST_ACCESS_ONLY", Kind: Bool, Default: "false", field: "MetricsLoopbackOnly",
			Doc: "Answer /metrics and /stats/prometheus of the status port on loopback only"},
		{name: "envoyMetricsLocalhostAccessOnly", metadata: "METRICS_LOCALHOST_ACCESS_ONLY", Kind: Bool, Default: "false", field: "StatsLoopbackOnly",
			Doc: "Listen on loopback only at prometheusPort"},
		{name: "mergeEnvoyStats", Env: "PILOT_AGENT_MERGE_ENVOY_STATS", Kind: Bool, Default: "true", field: "MergeEnvoyStats",
			Doc: "Add Envoy's statistics to /stats/prometheus"},
		{name: "profiling", Flag: "profiling", Kind: Bool, Default: "true", field: "Profiling",
			Doc: "Serve /debug/pprof on the status port, on loopback only"},
		{name: "appProbers", Env: contract.ProbersVariable, Kind: JSONObject, field: "AppProbers", secret: true,
			Doc: "The application's probes that the injector rewrote; their headers may carry credentials"},
		{name: "prometheusAnnotations", Env: contract.PrometheusVariable, Kind: JSONObject, field: "PrometheusAnnotations",
			Doc: "Where the application's own metrics are scraped"},
		{name: "http2Probing", Env: "ISTIO_ENABLE_HTTP2_PROBING", Kind: Bool, Default: "true", field: "HTTP2Probing",
			Doc: "Let probes of HTTPS applications use HTTP/2"},
		{name: "probeLocalhost", Env: "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", Kind: Bool, Default: "false", field: "ProbeLocalhost",
			Doc: "Probe the application at localhost instead of the pod's address"},
	}
}

func dnsSettings() []Setting {
	return []Setting{
		{name: "dnsCapture", Env: contract.DNSCaptureVariable, Kind: Bool, Default: "false", field: "DNSCapture",
			Doc: "Answer the pod's DNS (sidecars only)"},
		{name: "dnsServer", Env: "ISTIO_META_ENABLE_DNS_SERVER", Kind: Bool, Default: "false", field: "DNSServer",
			Doc: "Answer the pod's DNS in every role"},
		{name: "dnsAutoAllocate", Env: contract.DNSAllocateVariable, Kind: Bool, Default: "false", field: "DNSAutoAllocate",
			Doc: "Give a virtual address to every ServiceEntry host that has none"},
		{name: "dnsProxyAddr", Env: "DNS_PROXY_ADDR", Kind: ListenAddrs, Default: "localhost:15053", field: "DNSAddrs",
			Doc: "Where the DNS server listens; localhost is 127.0.0.1 and, in a pod with IPv6, ::1"},
		{name: "dnsForwardParallel", Env: "DNS_FORWARD_PARALLEL", Kind: Bool, Default: "false", field: "DNSForwardParallel",
			Doc: "Ask all servers of resolv.conf at once instead of one after the other"},
		{name: "dnsForwardTimeout", Env: "DNS_FORWARD_TIMEOUT", Kind: Duration, Default: "5s", field: "DNSForwardTimeout",
			Doc: "Longest wait for the answer of one server"},
		{name: "dnsTTL", Env: "UNDERSTUDY_DNS_TTL", Kind: Duration, Default: "30s", field: "DNSTTL",
			Doc: "How long a client may keep the answer for a name of the mesh; whole seconds, at least 1s"},
		{name: "dnsHold", Env: "UNDERSTUDY_DNS_HOLD", Kind: Duration, Default: "2s", field: "DNSHold",
			Doc: "How long a query waits for the first names of the mesh before it is forwarded; a resolver's own patience is 5s"},
		{name: "dnsStale", Env: "UNDERSTUDY_DNS_STALE", Kind: Duration, Default: "1h", field: "DNSStale",
			Doc: "How long beyond its end an answer may be given while no server answers; names under the cluster domain 1m at most; 0s: not at all"},
		{name: "dnsCache", Env: "UNDERSTUDY_DNS_CACHE", Kind: Switch, Default: "on", field: "DNSCache",
			Doc: "Keep answers for as long as their TTL says"},
		{name: "dnsPrefetch", Env: "UNDERSTUDY_DNS_PREFETCH", Kind: Switch, Default: "on", field: "DNSPrefetch",
			Doc: "Ask again for what is asked for often before it ends"},
		{name: "dnsHedge", Env: "UNDERSTUDY_DNS_HEDGE", Kind: Switch, Default: "on", field: "DNSHedge",
			Doc: "Ask the next server as well when one takes longer than it usually does"},
	}
}

func wasmSettings() []Setting {
	return []Setting{
		{name: "wasm", Env: "UNDERSTUDY_WASM", Kind: Switch, Default: "on", field: "Wasm",
			Doc: "Run Wasm filters; off: with files every one is left out, under istiod each lets everything pass, and no module is fetched"},
		{name: "wasmAllow", Env: "UNDERSTUDY_WASM_ALLOW", Kind: StringList, field: "WasmAllow",
			Doc: "Registries and servers that modules may come from, each with a path if need be: registry.example.com/filters; all unless set"},
		{name: "wasmSecretsDir", Env: "UNDERSTUDY_WASM_SECRETS_DIR", Kind: Path, Default: "/etc/istio/wasm-secrets", field: "WasmSecretsDir",
			Doc: "Directory of the pull secrets: <secret>/.dockerconfigjson"},
		{name: "dockerConfig", Env: "DOCKER_CONFIG", Kind: String, field: "DockerConfig",
			Doc: "Directory of a config.json whose credentials open a registry for which a module has no pull secret; no credential helper is run"},
		{name: "wasmCAFile", Env: "UNDERSTUDY_WASM_CA_FILE", Kind: String, field: "WasmCAFile",
			Doc: "File of authorities (PEM) of registries, besides the system's"},
		{name: "wasmInsecureRegistries", Env: "WASM_INSECURE_REGISTRIES", Kind: StringList, field: "WasmInsecureRegistries",
			Doc: "Registries without TLS, or whose certificate is not checked; * is each"},
		{name: "wasmBlockedCIDRs", Env: "BLOCKED_CIDRS_IN_WASM_FETCH", Kind: Prefixes, field: "WasmBlockedCIDRs",
			Doc: "Addresses that are never asked for a module, besides link-local ones and the metadata servers of clouds"},
		{name: "wasmMirrors", Env: "UNDERSTUDY_WASM_MIRRORS", Kind: StringList, field: "WasmMirrors",
			Doc: "from=to: images whose names begin with the one are fetched from the other: docker.io=mirror.example.com/hub"},
		{name: "wasmMaxBinarySize", Env: "ISTIO_WASM_MAX_BINARY_SIZE_BYTES", Kind: Limit, Default: "268435456", field: "WasmMaxBinarySize",
			Doc: "Largest module in bytes, on the way and unpacked"},
		{name: "wasmModuleExpiry", Env: "WASM_MODULE_EXPIRY", Kind: Duration, Default: "24h", field: "WasmModuleExpiry",
			Doc: "How long a module stays in the store that nobody uses"},
		{name: "wasmCheck", Env: "UNDERSTUDY_WASM_CHECK", Kind: Switch, Default: "on", field: "WasmCheck",
			Doc: "Have an Envoy try each module before the one that serves gets it; off: its structure is checked all the same"},
	}
}

func logSettings() []Setting {
	return []Setting{
		{name: "logOutputLevel", Flag: "log_output_level", Kind: LogLevels, Default: "default:info", field: "LogLevels", Global: true,
			Doc: "Levels per scope (= package): default:info,dnsproxy:debug; debug, info, warn, error, fatal, none"},
		{name: "logAsJSON", Flag: "log_as_json", Kind: Bool, Default: "false", field: "LogJSON", Global: true,
			Doc: "Log JSON lines instead of text, Envoy's log included"},
		{name: "logTarget", Flag: "log_target", Kind: String, Default: "stdout", field: "LogTarget", Global: true,
			Doc: "Where the log goes: stdout, stderr or a file"},
	}
}
