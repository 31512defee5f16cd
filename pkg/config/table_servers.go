package config

func serverSettings() []Setting {
	return []Setting{
		{Name: "statusPort", Flag: "statusPort", Annotation: "status.sidecar.istio.io/port", Proxy: "statusPort", Kind: PortOrOff, Default: "15020", Field: "StatusPort",
			Doc: "Port of the agent's status server; 0 turns it off"},
		{Name: "proxyAdminPort", Flag: "proxyAdminPort", Proxy: "proxyAdminPort", Kind: Port, Default: "15000", Field: "AdminPort",
			Doc: "Loopback port of Envoy's admin interface, served by the agent"},
		{Name: "readyPort", Env: "ENVOY_STATUS_PORT", Kind: Port, Default: "15021", Field: "ReadyPort",
			Doc: "Port of /healthz/ready for the kubelet"},
		{Name: "prometheusPort", Env: "ENVOY_PROMETHEUS_PORT", Kind: Port, Default: "15090", Field: "StatsPort",
			Doc: "Port of Envoy's own Prometheus statistics"},
		{Name: "metricsLocalhostAccessOnly", Env: "METRICS_LOCALHOST_ACCESS_ONLY", Kind: Bool, Default: "false", Field: "MetricsLoopbackOnly",
			Doc: "Answer /metrics and /stats/prometheus of the status port on loopback only"},
		{Name: "envoyMetricsLocalhostAccessOnly", Metadata: "METRICS_LOCALHOST_ACCESS_ONLY", Kind: Bool, Default: "false", Field: "StatsLoopbackOnly",
			Doc: "Listen on loopback only at prometheusPort"},
		{Name: "mergeEnvoyStats", Env: "PILOT_AGENT_MERGE_ENVOY_STATS", Kind: Bool, Default: "true", Field: "MergeEnvoyStats",
			Doc: "Add Envoy's statistics to /stats/prometheus"},
		{Name: "profiling", Flag: "profiling", Kind: Bool, Default: "true", Field: "Profiling",
			Doc: "Serve /debug/pprof on the status port, on loopback only"},
		{Name: "appProbers", Env: "ISTIO_KUBE_APP_PROBERS", Kind: JSONObject, Field: "AppProbers", Secret: true,
			Doc: "The application's probes that the injector rewrote; their headers may carry credentials"},
		{Name: "prometheusAnnotations", Env: "ISTIO_PROMETHEUS_ANNOTATIONS", Kind: JSONObject, Field: "PrometheusAnnotations",
			Doc: "Where the application's own metrics are scraped"},
		{Name: "http2Probing", Env: "ISTIO_ENABLE_HTTP2_PROBING", Kind: Bool, Default: "true", Field: "HTTP2Probing",
			Doc: "Let probes of HTTPS applications use HTTP/2"},
		{Name: "probeLocalhost", Env: "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", Kind: Bool, Default: "false", Field: "ProbeLocalhost",
			Doc: "Probe the application at localhost instead of the pod's address"},
	}
}

func dnsSettings() []Setting {
	return []Setting{
		{Name: "dnsCapture", Env: "ISTIO_META_DNS_CAPTURE", Kind: Bool, Default: "false", Field: "DNSCapture",
			Doc: "Answer the pod's DNS (sidecars only)"},
		{Name: "dnsServer", Env: "ISTIO_META_ENABLE_DNS_SERVER", Kind: Bool, Default: "false", Field: "DNSServer",
			Doc: "Answer the pod's DNS in every role"},
		{Name: "dnsAutoAllocate", Env: "ISTIO_META_DNS_AUTO_ALLOCATE", Kind: Bool, Default: "false", Field: "DNSAutoAllocate",
			Doc: "Give a virtual address to every ServiceEntry host that has none"},
		{Name: "dnsProxyAddr", Env: "DNS_PROXY_ADDR", Kind: ListenAddrs, Default: "localhost:15053", Field: "DNSAddrs",
			Doc: "Where the DNS server listens; localhost is 127.0.0.1 and, in a pod with IPv6, ::1"},
		{Name: "dnsForwardParallel", Env: "DNS_FORWARD_PARALLEL", Kind: Bool, Default: "false", Field: "DNSForwardParallel",
			Doc: "Ask all servers of resolv.conf at once instead of one after the other"},
		{Name: "dnsForwardTimeout", Env: "DNS_FORWARD_TIMEOUT", Kind: Duration, Default: "5s", Field: "DNSForwardTimeout",
			Doc: "Longest wait for the answer of one server"},
		{Name: "dnsTTL", Env: "UNDERSTUDY_DNS_TTL", Kind: Duration, Default: "30s", Field: "DNSTTL",
			Doc: "How long a client may keep the answer for a name of the mesh; whole seconds, at least 1s"},
		{Name: "dnsHold", Env: "UNDERSTUDY_DNS_HOLD", Kind: Duration, Default: "2s", Field: "DNSHold",
			Doc: "How long a query waits for the first names of the mesh before it is forwarded; a resolver's own patience is 5s"},
		{Name: "dnsStale", Env: "UNDERSTUDY_DNS_STALE", Kind: Duration, Default: "1h", Field: "DNSStale",
			Doc: "How long beyond its end an answer may be given while no server answers; names under the cluster domain 1m at most; 0s: not at all"},
		{Name: "dnsCache", Env: "UNDERSTUDY_DNS_CACHE", Kind: Switch, Default: "on", Field: "DNSCache",
			Doc: "Keep answers for as long as their TTL says"},
		{Name: "dnsPrefetch", Env: "UNDERSTUDY_DNS_PREFETCH", Kind: Switch, Default: "on", Field: "DNSPrefetch",
			Doc: "Ask again for what is asked for often before it ends"},
		{Name: "dnsHedge", Env: "UNDERSTUDY_DNS_HEDGE", Kind: Switch, Default: "on", Field: "DNSHedge",
			Doc: "Ask the next server as well when one takes longer than it usually does"},
	}
}

func logSettings() []Setting {
	return []Setting{
		{Name: "logOutputLevel", Flag: "log_output_level", Kind: LogLevels, Default: "default:info", Field: "LogLevels", Global: true,
			Doc: "Levels per scope (= package): default:info,dnsproxy:debug; debug, info, warn, error, fatal, none"},
		{Name: "logAsJSON", Flag: "log_as_json", Kind: Bool, Default: "false", Field: "LogJSON", Global: true,
			Doc: "Log JSON lines instead of text, Envoy's log included"},
		{Name: "logTarget", Flag: "log_target", Kind: String, Default: "stdout", Field: "LogTarget", Global: true,
			Doc: "Where the log goes: stdout, stderr or a file"},
	}
}
