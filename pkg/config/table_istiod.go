package config

// xdsHeaderPrefix begins the variables that become headers of every call to istiod.
const xdsHeaderPrefix = "XDS_HEADER_"

// istiodSettings say how istiod is reached.
func istiodSettings() []Setting {
	return []Setting{
		{name: "xdsRootCA", Env: "XDS_ROOT_CA", Kind: String, Effect: UnderIstiod, field: "XDSRootCA",
			Doc: "File of the roots that sign istiod's certificate, or SYSTEM for those of the operating system; unset: ./etc/certs/root-cert.pem if it is there, then what provCert and fileMountedCerts say, then ./var/run/secrets/istio/root-cert.pem"},
		{name: "istiodSAN", Env: "ISTIOD_SAN", Kind: String, Effect: UnderIstiod, field: "IstiodSAN",
			Doc: "Name in istiod's certificate, where it is not the host of discoveryAddress"},
		{name: "provCert", Env: "PROV_CERT", Kind: String, Effect: UnderIstiod, field: "ProvCert",
			Doc: "Directory of key.pem, cert-chain.pem and root-cert.pem, by which istiod knows the agent"},
		{name: "fileMountedCerts", Env: "FILE_MOUNTED_CERTS", Kind: Bool, Default: "false", Effect: UnderIstiod, field: "FileMountedCerts",
			Doc: "Let istiod know the agent by the files of ISTIO_META_TLS_CLIENT_KEY, _CERT_CHAIN and _ROOT_CERT"},
		{name: "jwtPolicy", Env: "JWT_POLICY", Kind: JWTPolicy, Default: "third-party-jwt", field: "FirstPartyJWT",
			Doc: "first-party-jwt: where no token for istiod is mounted, use the service account's own"},
		{name: "clusterID", Env: "ISTIO_META_CLUSTER_ID", Kind: String, field: "ClusterID",
			Doc: "Cluster that the pod belongs to, as istiod knows it"},
		{name: "keepaliveInterval", Env: "GRPC_KEEPALIVE_INTERVAL", Kind: Duration, Default: "30s", Effect: UnderIstiod, field: "KeepaliveInterval",
			Doc: "How long a connection to istiod may be silent before it is asked whether it lives; at least 10s"},
		{name: "keepaliveTimeout", Env: "GRPC_KEEPALIVE_TIMEOUT", Kind: Duration, Default: "10s", Effect: UnderIstiod, field: "KeepaliveTimeout",
			Doc: "How long the answer to that may take"},
		{name: "trustBundles", Env: "PROXY_CONFIG_XDS_AGENT", Kind: Bool, Default: "false", Effect: UnderIstiod, field: "TrustBundles",
			Doc: "Ask istiod for the roots that the mesh trusts besides those of its own authority (caCertificates of the MeshConfig; istiod needs ISTIO_MULTIROOT_MESH=true)"},
		{name: "readinessProbe", proxy: "readinessProbe", Kind: ProbeKind, Effect: UnderIstiod, field: "ReadinessProbe", secret: true,
			Doc: "How the application is asked how it is, which istiod is told: httpGet, tcpSocket, exec or grpc, for a workload that no kubelet asks (a virtual machine); its headers may carry credentials"},
		{name: "maxResponse", Env: "UNDERSTUDY_ISTIOD_MAX_RESPONSE", Kind: Limit, Default: "268435456", Effect: UnderIstiod, field: "MaxResponse",
			Doc: "Largest response of istiod that is taken, in bytes; at a larger one the stream is closed, and what Envoy has stays"},
		{name: "lastGood", Env: "UNDERSTUDY_LAST_GOOD", Kind: Switch, Default: "on", field: "LastGood",
			Doc: "Keep what Envoy has over a restart of the container: of istiod, which may be away then, or what the configuration files make, which need not be parsed then if they are the same"},
		{name: "lastGoodAge", Env: "UNDERSTUDY_LAST_GOOD_AGE", Kind: Duration, Default: "1h", Effect: UnderIstiod, field: "LastGoodAge",
			Doc: "How long istiod may have been away for an Envoy to start with that; at most 24h, as a policy that was made meanwhile is not in it"},
	}
}

// bootstrapSettings are what Envoy's bootstrap has by ProxyConfig and annotations, besides the
// control plane: what it sends.
func bootstrapSettings() []Setting {
	const noTracer = "Envoy has no LightStep tracer any more: send spans as OpenTelemetry, by a Telemetry resource"
	return []Setting{
		{name: "tracing", proxy: "tracing", Kind: TracerKind, Effect: UnderIstiod, field: "Tracer",
			Doc: "Where Envoy sends spans: zipkin or datadog, with tlsSettings; the rest is istiod's"},
		{name: "zipkinAddress", Flag: "zipkinAddress", proxy: "zipkinAddress", Kind: HostPort, Effect: UnderIstiod, field: "ZipkinAddress",
			Doc: "Address of a Zipkin collector, where tracing names no tracer"},
		{name: "datadogAgentAddress", Flag: "datadogAgentAddress", Kind: HostPort, Effect: UnderIstiod, field: "DatadogAddress",
			Doc: "Address of a Datadog agent, where tracing names no tracer"},
		{name: "lightstepAddress", Flag: "lightstepAddress", Kind: String, Effect: Warned, why: noTracer,
			Doc: "Address of a LightStep collector"},
		{name: "lightstepAccessToken", Flag: "lightstepAccessToken", Kind: String, Effect: Warned, why: noTracer, secret: true,
			Doc: "Token for the LightStep collector"},
		{name: "lightstepSecure", Flag: "lightstepSecure", Kind: Bool, Effect: Warned, why: noTracer,
			Doc: "Whether LightStep is reached over TLS"},
		{name: "lightstepCacertPath", Flag: "lightstepCacertPath", Kind: String, Effect: Warned, why: noTracer,
			Doc: "CA of the LightStep collector"},
		{name: "envoyAccessLogService", proxy: "envoyAccessLogService", Kind: ServiceKind, Effect: UnderIstiod, field: "AccessLogService",
			Doc: "Cluster envoy_accesslog_service, to which istiod lets Envoy send access logs: address, tlsSettings, tcpKeepalive"},
		{name: "envoyMetricsService", proxy: "envoyMetricsService", Kind: ServiceKind, field: "MetricsService",
			Doc: "Where Envoy sends its statistics over gRPC: address, tlsSettings (under istiod only), tcpKeepalive"},
		{name: "envoyMetricsServiceAddress", Flag: "envoyMetricsServiceAddress", proxy: "envoyMetricsServiceAddress", Kind: HostPort, field: "MetricsServiceAddress",
			Doc: "The same, where envoyMetricsService names no address"},
		{name: "statsdUdpAddress", Flag: "statsdUdpAddress", proxy: "statsdUdpAddress", Kind: HostPort, field: "StatsdAddress",
			Doc: "Address of a statsd listener; a name is resolved once, at the start"},
		{name: "statsCompression", proxy: "statsCompression", Kind: Bool, Default: "true", Effect: UnderIstiod, field: "StatsCompression",
			Doc: "Compress what prometheusPort answers, for a client that takes it"},
		{name: "statsHistogramBuckets", annotation: "sidecar.istio.io/statsHistogramBuckets", Kind: BucketMap, field: "StatsHistogramBuckets",
			Doc: "Buckets of Envoy's histograms, by prefix of the statistic's name"},
		{name: "statsFlushInterval", annotation: "sidecar.istio.io/statsFlushInterval", Kind: Duration, field: "StatsFlushInterval",
			Doc: "How often Envoy flushes statistics to where they are sent; Envoy's 5s unless set"},
		{name: "statsEvictionInterval", annotation: "sidecar.istio.io/statsEvictionInterval", Kind: Duration, field: "StatsEvictionInterval",
			Doc: "How often Envoy drops statistics that were not used; a multiple of statsFlushInterval"},
	}
}

// extensionSettings are what Envoy's bootstrap has by variables of Istio's agent.
func extensionSettings() []Setting {
	return []Setting{
		{name: "secureMetricsPort", Env: "ENVOY_SECURE_METRICS_PORT", Kind: PortOrOff, Default: "0", Effect: UnderIstiod, field: "SecureStatsPort",
			Doc: "Port of Envoy's own Prometheus statistics over the mesh's mutual TLS; 0 is none"},
		{name: "secureMergedMetricsPort", Env: "ENVOY_SECURE_MERGED_METRICS_PORT", Kind: PortOrOff, Default: "0", Effect: UnderIstiod, field: "SecureMergedStatsPort",
			Doc: "Port of the merged metrics over the mesh's mutual TLS; 0 is none"},
		{name: "deltaXDS", Env: "ISTIO_DELTA_XDS", Kind: Bool, Default: "true", Effect: UnderIstiod, field: "DeltaXDS",
			Doc: "Speak of Envoy's resources in increments, with istiod and with Envoy; false: in whole states (SotW), of which istiod makes, and Envoy reads, all clusters or listeners at each change of one"},
		{name: "peerMetadataDiscovery", Env: "PEER_METADATA_DISCOVERY", Kind: Bool, Effect: UnderIstiod, field: "MetadataDiscovery",
			Doc: "Let Envoy ask istiod for the metadata of its peers, which takes Istio's Envoy; as ISTIO_META_ENABLE_HBONE unless set"},
		{name: "selfDiscovery", Env: "ISTIO_META_ENABLE_SELF_DISCOVERY", Kind: Bool, Default: "false", Effect: UnderIstiod, field: "SelfDiscovery",
			Doc: "Let Envoy know the workload's own endpoints, for routing that is aware of zones"},
		{name: "loadStatsConfig", Env: "ISTIO_META_LOAD_STATS_CONFIG_JSON", Kind: JSONObject, Effect: UnderIstiod, field: "LoadStats",
			Doc: "Where Envoy reports load: an ApiConfigSource of Envoy's"},
		{name: "workloadIdentitySocketFile", Env: "WORKLOAD_IDENTITY_SOCKET_FILE", Kind: String, Default: "socket", Effect: UnderIstiod, field: "IdentitySocketFile",
			Doc: "Name of the file of another server's socket for certificates: node metadata"},
		{name: "cloudPlatform", Env: "CLOUD_PLATFORM", Kind: CloudName, Effect: UnderIstiod, field: "CloudPlatform",
			Doc: "The cloud whose metadata server is asked for region and zone, where no label has them, and for PLATFORM_METADATA: aws, azure or gcp; nobody is asked unless it is set"},
		{name: "gcpMetadata", Env: gcpMetadataVariable, Kind: String, Effect: UnderIstiod,
			Doc: "What the metadata server of gcp would say: project|number|cluster|location"},
		{name: "gcpQuotaProject", Env: "GCP_QUOTA_PROJECT", Kind: String, Effect: UnderIstiod,
			Doc: "Part of the same"},
		{name: "gcpZone", Env: "GCP_ZONE", Kind: String, Effect: UnderIstiod,
			Doc: "The zone, beside it"},
		{name: "compliancePolicy", Env: "COMPLIANCE_POLICY", Kind: CompliancePolicy, field: "CompliancePolicy",
			Doc: "What TLS of the agent may use: fips-140-2 (TLS 1.2), fips-140-3, both only in a build with a FIPS 140 module (make build-fips), or pqc (TLS 1.3 with X25519MLKEM768). The first two bind Envoy's Google gRPC client as well; Envoy's other TLS is as istiod says, which needs the same policy"},
		{name: "stripFragment", Env: "HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED", Kind: Bool, Default: "true", field: "StripFragment",
			Doc: "Envoy cuts the fragment off a request's path; false sets the runtime value of that name"},
	}
}
