package config

func podSettings() []Setting {
	return []Setting{
		{Name: "podName", Env: "POD_NAME", Kind: String, Field: "PodName",
			Doc: "Name of the pod: part of the node id"},
		{Name: "podNamespace", Env: "POD_NAMESPACE", Kind: String, Default: "default", Field: "PodNamespace",
			Doc: "Namespace of the pod: part of the node id, and of resources that name none"},
		{Name: "podUID", Env: "POD_UID", Kind: String, Field: "PodUID",
			Doc: "UID of the pod (metadata.uid of the downward API): generations of two pods never hand over to one another"},
		{Name: "serviceAccount", Env: "SERVICE_ACCOUNT", Kind: String, Field: "ServiceAccount",
			Doc: "Service account of the pod: node metadata"},
		{Name: "instanceIP", Flag: "ip", Env: "INSTANCE_IP", Kind: IP, Field: "InstanceIP",
			Doc: "The pod's first address; the addresses of its interfaces follow it"},
		{Name: "dualStack", Env: "ISTIO_DUAL_STACK", Kind: Bool, Default: "true", Field: "DualStack",
			Doc: "Serve IPv6 too in a pod whose first address is IPv4; give istio-iptables the same"},
		{Name: "interceptionMode", Env: "ISTIO_META_INTERCEPTION_MODE", Annotation: "sidecar.istio.io/interceptionMode", Proxy: "interceptionMode", Kind: InterceptionMode, Default: string(Redirect), Field: "Interception",
			Doc: "How inbound traffic is captured: REDIRECT, or TPROXY, with which the application sees its clients' addresses and which takes a capability; give istio-iptables the same (-m)"},
		{Name: "proxyMark", Flag: "proxyMark", Env: "PROXY_MARK", Kind: Mark, Field: "ProxyMark",
			Doc: "Mark (SO_MARK) of every socket by which Envoy and the agent reach others, for an application of the same user; takes a capability; give istio-iptables the same (--proxy-mark)"},
		{Name: "hostIP", Env: "HOST_IP", Kind: IP, Field: "HostIP",
			Doc: "Address of the node, put in place of $(HOST_IP) in the bootstrap override"},
		{Name: "domain", Flag: "domain", Kind: String, Field: "Domain",
			Doc: "DNS domain of the namespace, as the search list of its pods begins; ${POD_NAMESPACE}.svc.cluster.local unless set"},
		{Name: "serviceCluster", Flag: "serviceCluster", Proxy: "serviceCluster", Kind: String, Default: defaultServiceCluster, Field: "ServiceCluster",
			Doc: "Cluster of Envoy's node; at its default the pod's labels name it"},
	}
}

func meshSettings() []Setting {
	return []Setting{
		{Name: "configDir", Flag: "configDir", Env: "UNDERSTUDY_CONFIG_DIR", Kind: String, Field: "ConfigDir",
			Doc: "Run without istiod, on the Istio YAML in this directory"},
		{Name: "allowIgnored", Flag: "allowIgnored", Kind: Bool, Default: "false", Field: "AllowIgnored",
			Doc: "Accept resources in configDir that restrict access, although nothing enforces them"},
		{Name: "discoveryAddress", Flag: "discoveryAddress", Annotation: "sidecar.istio.io/discoveryAddress", Proxy: "discoveryAddress", Kind: HostPort, Default: "istiod.istio-system.svc:15012", Field: "DiscoveryAddress",
			Doc: "Address of istiod; configDir wins over it"},
		{Name: "meshConfig", Flag: "meshConfig", Kind: String, Default: "./etc/istio/config/mesh", Why: "Load itself reads it",
			Doc: "Mesh config file; it may be missing"},
		{Name: "outboundTrafficPolicy", Mesh: "outboundTrafficPolicy.mode", Kind: TrafficPolicy, Default: "ALLOW_ANY", Field: "RegistryOnly",
			Doc: "Outbound traffic to unknown destinations: ALLOW_ANY passes it, REGISTRY_ONLY refuses it"},
		{Name: "accessLogFile", Mesh: "accessLogFile", Kind: String, Field: "AccessLogFile",
			Doc: "File of Envoy's access log, for example /dev/stdout; none unless set"},
		{Name: "accessLogFormat", Mesh: "accessLogFormat", Kind: String, Field: "AccessLogFormat",
			Doc: "Format of the access log; Istio's unless set"},
		{Name: "accessLogEncoding", Mesh: "accessLogEncoding", Kind: LogEncoding, Default: "TEXT", Field: "AccessLogJSON",
			Doc: "Encoding of the access log: TEXT or JSON"},
		{Name: "connectTimeout", Mesh: "connectTimeout", Kind: Duration, Default: "10s", Field: "ConnectTimeout",
			Doc: "Longest time that Envoy takes to connect to an upstream"},
		{Name: "protocolDetectionTimeout", Mesh: "protocolDetectionTimeout", Kind: Duration, Default: "100ms", Field: "DetectionTimeout",
			Doc: "How long a connection may stay silent before it counts as TCP; 0s waits for ever"},
	}
}

func envoySettings() []Setting {
	return []Setting{
		{Name: "binaryPath", Flag: "binaryPath", Proxy: "binaryPath", Kind: Path, Default: "/usr/local/bin/envoy", Field: "BinaryPath",
			Doc: "The Envoy to run"},
		{Name: "configPath", Flag: "configPath", Proxy: "configPath", Kind: Path, Default: "./etc/istio/proxy", Field: "ConfigPath",
			Doc: "Directory of the bootstrap file and of the sockets"},
		{Name: "concurrency", Flag: "concurrency", Proxy: "concurrency", Kind: Count, Field: "Concurrency", FlagZero: true,
			Doc: "Envoy's worker threads; 0 uses every core, unset the CPU limit"},
		{Name: "cpuLimit", Env: "ISTIO_CPU_LIMIT", Kind: Cores, Field: "CPULimit",
			Doc: "CPU limit of the container in cores, rounded up; the concurrency when that is unset"},
		{Name: "proxyLogLevel", Flag: "proxyLogLevel", Kind: EnvoyLevels, Default: "warning", Field: "ProxyLogLevel",
			Doc: "Envoy's log level; may carry component levels: warning,misc:error"},
		{Name: "proxyComponentLogLevel", Flag: "proxyComponentLogLevel", Kind: EnvoyComponents, Field: "ProxyComponentLogLevel",
			Doc: "Envoy's component log levels, where proxyLogLevel carries none"},
		{Name: "skipDeprecatedLogs", Env: "ENVOY_SKIP_DEPRECATED_LOGS", Kind: Bool, Default: "true", Field: "SkipDeprecatedLogs",
			Doc: "Envoy's --skip-deprecated-logs"},
		{Name: "coreDump", Env: "ISTIO_ENVOY_ENABLE_CORE_DUMP", Kind: Bool, Default: "false", Field: "CoreDump",
			Doc: "Envoy's --enable-core-dump"},
		{Name: "bootstrapOverride", Env: "ISTIO_BOOTSTRAP_OVERRIDE", Kind: String, Field: "BootstrapOverride",
			Doc: "File (YAML or JSON) that Envoy merges into its bootstrap: --config-yaml"},
		{Name: "outlierLogPath", Flag: "outlierLogPath", Kind: String, Field: "OutlierLogPath",
			Doc: "File of the log of outlier detection events"},
		{Name: "runtimeValues", Proxy: "runtimeValues", Kind: StringMap, Field: "RuntimeValues",
			Doc: "Envoy's runtime values; an empty one deletes a default"},
		{Name: "connectionLimit", Proxy: "connectionSettings.globalDownstreamConnectionLimit", Kind: Limit, Field: "ConnectionLimit",
			Doc: "Most connections that Envoy takes, of all listeners together; nodeConnectionLimit unless set, then runtimeValues' overload.global_downstream_max_connections, then what the limit of open files allows: half of what it is beyond 256"},
		{Name: "nodeConnectionLimit", Env: "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS", Kind: Limit, Field: "NodeConnectionLimit",
			Doc: "The same, where connectionLimit is not set"},
		{Name: "statsInclusionPrefixes", Annotation: "sidecar.istio.io/statsInclusionPrefixes", Proxy: "proxyStatsMatcher.inclusionPrefixes", Kind: StringList, Field: "StatsInclusionPrefixes",
			Doc: "Prefixes of further Envoy statistics to keep"},
		{Name: "statsInclusionSuffixes", Annotation: "sidecar.istio.io/statsInclusionSuffixes", Proxy: "proxyStatsMatcher.inclusionSuffixes", Kind: StringList, Field: "StatsInclusionSuffixes",
			Doc: "Suffixes of further Envoy statistics to keep"},
		{Name: "statsInclusionRegexps", Annotation: "sidecar.istio.io/statsInclusionRegexps", Proxy: "proxyStatsMatcher.inclusionRegexps", Kind: RegexpList, Field: "StatsInclusionRegexps",
			Doc: "Regular expressions of further Envoy statistics to keep"},
		{Name: "extraStatTags", Annotation: "sidecar.istio.io/extraStatTags", Proxy: "extraStatTags", Kind: StringList, Field: "ExtraStatTags",
			Doc: "Tags that extensions put into the names of statistics, and that become labels"},
		{Name: "fileFlushInterval", Proxy: "fileFlushInterval", Kind: Duration, Default: "1s", Field: "FileFlushInterval",
			Doc: "Envoy's --file-flush-interval-msec"},
		{Name: "fileFlushMinSizeKb", Proxy: "fileFlushMinSizeKb", Kind: Size, Field: "FileFlushMinSizeKB",
			Doc: "Envoy's --file-flush-min-size-kb"},
	}
}

func lifeSettings() []Setting {
	return []Setting{
		{Name: "drainDuration", Flag: "drainDuration", Proxy: "drainDuration", Kind: Duration, Default: "45s", Field: "DrainDuration",
			Doc: "How long Envoy takes to close connections that it drains, such as those of a listener that has changed; at least 1s. Envoy gets the largest of this and of the drains of a stop and of an upgrade"},
		{Name: "parentShutdownDuration", Flag: "parentShutdownDuration", Proxy: "parentShutdownDuration", Kind: Duration, Default: "60s", Field: "ParentShutdownDuration",
			Doc: "How long the old Envoy lives on in a hot upgrade; upgradeDrainDuration goes before it"},
		{Name: "terminationDrainDuration", Env: "TERMINATION_DRAIN_DURATION_SECONDS", Proxy: "terminationDrainDuration", Kind: Duration, EnvKind: Seconds, Default: "5s", Field: "TerminationDrainDuration",
			Doc: "How long Envoy drains after SIGTERM before it is ended"},
		{Name: "minimumDrainDuration", Env: "MINIMUM_DRAIN_DURATION", Kind: Duration, Default: "5s", Field: "MinimumDrainDuration",
			Doc: "Shortest drain with exitOnZeroActiveConnections"},
		{Name: "exitOnZeroActiveConnections", Env: "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", Kind: Bool, Default: "false", Field: "ExitOnZeroActiveConnections",
			Doc: "End Envoy when its last connection has ended, instead of after terminationDrainDuration"},
		{Name: "hungEnvoy", Env: "UNDERSTUDY_HUNG_ENVOY", Kind: HungAction, Default: "report", Field: "RestartHung",
			Doc: "What becomes of an Envoy that hangs, besides that the pod is not ready: report only says so, restart ends it with SIGKILL and starts another on the same sockets"},
	}
}

func upgradeSettings() []Setting {
	return []Setting{
		{Name: "handoffDir", Flag: "handoffDir", Env: "UNDERSTUDY_HANDOFF_DIR", Kind: String, EmptyEnv: true, Field: "HandoffDir",
			Doc: "Where generations meet: a directory that both containers share. Unset: " + DefaultHandoffDir + " when that exists. Empty: no hot upgrade"},
		{Name: "upgradeDrainDuration", Flag: "upgradeDrainDuration", Env: "UNDERSTUDY_UPGRADE_DRAIN_DURATION", Kind: Duration, Field: "UpgradeDrainDuration",
			Doc: "Longest time an old generation may go on serving connections it already has; parentShutdownDuration unless set"},
		{Name: "takeover", Flag: "takeover", Env: "UNDERSTUDY_TAKEOVER", Kind: TakeoverMode, Default: string(TakeoverAuto), Field: "Takeover",
			Doc: "auto: the newer generation takes over; force: this one does, whatever the numbers of OpenKruise say, such as after a cluster was restored"},
		{Name: "upgradeStats", Env: "UNDERSTUDY_UPGRADE_STATS", Kind: Bool, Default: "true", Field: "UpgradeStats",
			Doc: "Carry the old Envoy's counters and gauges over to the new one"},
		{Name: "sidecarSetVersion", Env: "SIDECARSET_VERSION", Kind: String, Field: "SidecarSetVersion",
			Doc: "OpenKruise's number of this container's generation; read once, at the start"},
		{Name: "sidecarSetVersionAlt", Env: "SIDECARSET_VERSION_ALT", Kind: String, Field: "SidecarSetVersionAlt",
			Doc: "OpenKruise's number of the other container's generation; read once, at the start"},
	}
}
