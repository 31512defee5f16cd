package config

import "understudy.mesh/pkg/contract"

const (
	// defaultServiceCluster is the value at which Istio's agent prefers the labels.
	defaultServiceCluster = "istio-proxy"
	// DefaultHandoffDir is where the ASM manual's manifests mount the volume that both
	// containers of a hot upgrade share: the hand-off directory where it exists and no
	// other was set.
	DefaultHandoffDir = "/etc/asm/uds"
	// DefaultTerminationLog is the terminationMessagePath of containers that set none.
	DefaultTerminationLog = "/dev/termination-log"
	// metaPrefix begins the variables that become node metadata.
	metaPrefix = "ISTIO_META_"
)

func podSettings() []Setting {
	return []Setting{
		{name: "podName", Env: "POD_NAME", Kind: String, field: "PodName",
			Doc: "Name of the pod: part of the node id"},
		{name: "podNamespace", Env: "POD_NAMESPACE", Kind: String, Default: "default", field: "PodNamespace",
			Doc: "Namespace of the pod: part of the node id, and of resources that name none"},
		{name: "podUID", Env: "POD_UID", Kind: String, field: "PodUID",
			Doc: "UID of the pod (metadata.uid of the downward API): generations of two pods never hand over to one another"},
		{name: "serviceAccount", Env: "SERVICE_ACCOUNT", Kind: String, field: "ServiceAccount",
			Doc: "Service account of the pod: node metadata"},
		{name: "istioVersion", Env: contract.ReleaseVariable, Kind: String, why: "it is metadata of Envoy's node",
			Doc: "Release of Istio that istiod and EnvoyFilters take Envoy for; " + istioVersion + " unless set"},
		{name: "instanceIP", Flag: "ip", Env: "INSTANCE_IP", Kind: IP, field: "InstanceIP",
			Doc: "The pod's first address; the addresses of its interfaces follow it"},
		{name: "excludeInterfaces", annotation: "traffic.sidecar.istio.io/excludeInterfaces", Kind: StringList, field: "ExcludeInterfaces",
			Doc: "Interfaces whose addresses are not the pod's; instanceIP is in any case"},
		{name: "dualStack", Env: contract.DualStackVariable, Kind: Bool, Default: "true", field: "DualStack",
			Doc: "Serve IPv6 too in a pod whose first address is IPv4; give istio-iptables the same"},
		{name: "interceptionMode", Env: contract.ModeVariable, annotation: contract.ModeAnnotation, proxy: "interceptionMode", Kind: InterceptionMode, Default: string(Redirect), field: "Interception",
			Doc: "How inbound traffic is captured: REDIRECT, or TPROXY, with which the application sees its clients' addresses and which takes a capability; give istio-iptables the same (-m)"},
		{name: "proxyMark", Flag: "proxyMark", Env: "PROXY_MARK", Kind: Mark, field: "ProxyMark",
			Doc: "Mark (SO_MARK) of every socket by which Envoy and the agent reach others, for an application of the same user; takes a capability; give istio-iptables the same (--proxy-mark)"},
		{name: "hostIP", Env: "HOST_IP", Kind: IP, field: "HostIP",
			Doc: "Address of the node, put in place of $(HOST_IP) in the bootstrap override"},
		{name: "domain", Flag: "domain", Kind: String, field: "Domain",
			Doc: "DNS domain of the namespace, as the search list of its pods begins; ${POD_NAMESPACE}.svc.cluster.local unless set"},
		{name: "serviceCluster", Flag: "serviceCluster", proxy: "serviceCluster", Kind: String, Default: defaultServiceCluster, field: "ServiceCluster",
			Doc: "Cluster of Envoy's node; at its default the pod's labels name it"},
		{name: "tracingServiceName", proxy: "tracingServiceName", Kind: String, field: "TracingServiceName",
			Doc: "How the pod's labels name the cluster of Envoy's node: APP_LABEL_AND_NAMESPACE, CANONICAL_NAME_ONLY or CANONICAL_NAME_AND_NAMESPACE; instead of serviceCluster"},
	}
}

func meshSettings() []Setting {
	return []Setting{
		{name: "configDir", Flag: "configDir", Env: "UNDERSTUDY_CONFIG_DIR", Kind: String, field: "ConfigDir",
			Doc: "Run without istiod, on the Istio YAML in this directory"},
		{name: "listeners", Env: "UNDERSTUDY_LISTENERS", Kind: ListenerShape, Default: "shared", field: "SharedListeners",
			Doc: "With configDir, the listeners of HTTP hosts with an address: shared, one for each port; each, one for each address and port"},
		{name: "maxHosts", Env: "UNDERSTUDY_MAX_HOSTS", Kind: Limit, Default: "100000", field: "MaxHosts",
			Doc: "With configDir, how many hosts its documents may have; with more the agent does not start, or, when it serves, goes on with what it had"},
		{name: "allowIgnored", Flag: "allowIgnored", Kind: Bool, Default: "false", field: "AllowIgnored",
			Doc: "Accept resources in configDir that restrict access, although nothing enforces them"},
		{name: "discoveryAddress", Flag: "discoveryAddress", annotation: "sidecar.istio.io/discoveryAddress", proxy: "discoveryAddress", Kind: HostPort, Default: "istiod.istio-system.svc:15012", field: "DiscoveryAddress",
			Doc: "Address of istiod; configDir wins over it"},
		{name: "controlPlaneAuthPolicy", Flag: "controlPlaneAuthPolicy", proxy: "controlPlaneAuthPolicy", Kind: AuthPolicy, Default: "MUTUAL_TLS", field: "ControlPlaneMutualTLS",
			Doc: "Authentication towards istiod: MUTUAL_TLS, or NONE, with which port 15010 is reached in plain text; 15012 is TLS in either case"},
		{name: "compat", Env: "UNDERSTUDY_COMPAT", Kind: CompatMode, Default: "none", field: "IstioCompat",
			Doc: "istio: what Istio's agent has not is off: cache, stale answers, prefetch and hedging of DNS, a kept certificate and a kept configuration, unless their own settings say otherwise, and keeping from Envoy what it has when istiod sends it again"},
		{name: "meshConfig", Flag: "meshConfig", Kind: String, Default: "./etc/istio/config/mesh", why: "Load itself reads it",
			Doc: "Mesh config file; it may be missing"},
		{name: "outboundTrafficPolicy", mesh: "outboundTrafficPolicy.mode", Kind: TrafficPolicy, Default: "ALLOW_ANY", field: "RegistryOnly",
			Doc: "Outbound traffic to unknown destinations: ALLOW_ANY passes it, REGISTRY_ONLY refuses it"},
		{name: "rootNamespace", mesh: "rootNamespace", Kind: String, Default: "istio-system", field: "RootNamespace",
			Doc: "Namespace whose EnvoyFilters are for the pods of every namespace"},
		{name: "accessLogFile", mesh: "accessLogFile", Kind: String, field: "AccessLogFile",
			Doc: "File of Envoy's access log, for example /dev/stdout; none unless set"},
		{name: "accessLogFormat", mesh: "accessLogFormat", Kind: String, field: "AccessLogFormat",
			Doc: "Format of the access log; Istio's unless set"},
		{name: "accessLogEncoding", mesh: "accessLogEncoding", Kind: LogEncoding, Default: "TEXT", field: "AccessLogJSON",
			Doc: "Encoding of the access log: TEXT or JSON"},
		{name: "connectTimeout", mesh: "connectTimeout", Kind: Duration, Default: "10s", field: "ConnectTimeout",
			Doc: "Longest time that Envoy takes to connect to an upstream"},
		{name: "protocolDetectionTimeout", mesh: "protocolDetectionTimeout", Kind: Duration, Default: "100ms", field: "DetectionTimeout",
			Doc: "How long a connection may stay silent before it counts as TCP; 0s waits for ever, as it does with files where a Wasm filter of HTTP fails closed"},
	}
}

func envoySettings() []Setting {
	return []Setting{
		{name: "binaryPath", Flag: "binaryPath", proxy: "binaryPath", Kind: Path, Default: "/usr/local/bin/envoy", field: "BinaryPath",
			Doc: "The Envoy to run"},
		{name: "configPath", Flag: "configPath", proxy: "configPath", Kind: Path, Default: "./etc/istio/proxy", field: "ConfigPath",
			Doc: "Directory of the bootstrap file and of the sockets"},
		{name: "concurrency", Flag: "concurrency", proxy: "concurrency", Kind: Count, field: "Concurrency", flagZero: true,
			Doc: "Envoy's worker threads; 0 uses every core, unset the CPU limit"},
		{name: "cpuLimit", Env: "ISTIO_CPU_LIMIT", Kind: Cores, field: "CPULimit",
			Doc: "CPU limit of the container in cores, rounded up; the concurrency when that is unset"},
		{name: "proxyLogLevel", Flag: "proxyLogLevel", Kind: EnvoyLevels, Default: "warning", field: "ProxyLogLevel",
			Doc: "Envoy's log level; may carry component levels: warning,misc:error"},
		{name: "proxyComponentLogLevel", Flag: "proxyComponentLogLevel", Kind: EnvoyComponents, field: "ProxyComponentLogLevel",
			Doc: "Envoy's component log levels, where proxyLogLevel carries none"},
		{name: "skipDeprecatedLogs", Env: "ENVOY_SKIP_DEPRECATED_LOGS", Kind: Bool, Default: "true", field: "SkipDeprecatedLogs",
			Doc: "Envoy's --skip-deprecated-logs"},
		{name: "coreDump", Env: "ISTIO_ENVOY_ENABLE_CORE_DUMP", Kind: Bool, Default: "false", field: "CoreDump",
			Doc: "Envoy's --enable-core-dump"},
		{name: "bootstrapOverride", Env: "ISTIO_BOOTSTRAP_OVERRIDE", Kind: String, field: "BootstrapOverride",
			Doc: "File (YAML or JSON) that Envoy merges into its bootstrap: --config-yaml"},
		{name: "customConfigFile", Flag: "customConfigFile", proxy: "customConfigFile", Kind: String, field: "CustomConfigFile",
			Doc: "A bootstrap that Envoy gets instead of the agent's, whole but for the address of its admin; it has to listen at readyPort, and there is no hot upgrade"},
		{name: "outlierLogPath", Flag: "outlierLogPath", Kind: String, field: "OutlierLogPath",
			Doc: "File of the log of outlier detection events"},
		{name: "runtimeValues", proxy: "runtimeValues", Kind: StringMap, field: "RuntimeValues",
			Doc: "Envoy's runtime values; an empty one deletes a default"},
		{name: "connectionLimit", proxy: "connectionSettings.globalDownstreamConnectionLimit", Kind: Limit, field: "ConnectionLimit",
			Doc: "Most connections that Envoy takes, of all listeners together; nodeConnectionLimit unless set, then runtimeValues' overload.global_downstream_max_connections, then what the limit of open files allows: half of what it is beyond 256"},
		{name: "nodeConnectionLimit", Env: "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS", Kind: Limit, field: "NodeConnectionLimit",
			Doc: "The same, where connectionLimit is not set"},
		{name: "statsInclusionPrefixes", annotation: "sidecar.istio.io/statsInclusionPrefixes", proxy: "proxyStatsMatcher.inclusionPrefixes", Kind: StringList, field: "StatsInclusionPrefixes",
			Doc: "Prefixes of further Envoy statistics to keep"},
		{name: "statsInclusionSuffixes", annotation: "sidecar.istio.io/statsInclusionSuffixes", proxy: "proxyStatsMatcher.inclusionSuffixes", Kind: StringList, field: "StatsInclusionSuffixes",
			Doc: "Suffixes of further Envoy statistics to keep"},
		{name: "statsInclusionRegexps", annotation: "sidecar.istio.io/statsInclusionRegexps", proxy: "proxyStatsMatcher.inclusionRegexps", Kind: RegexpList, field: "StatsInclusionRegexps",
			Doc: "Regular expressions of further Envoy statistics to keep"},
		{name: "extraStatTags", annotation: "sidecar.istio.io/extraStatTags", proxy: "extraStatTags", Kind: StringList, field: "ExtraStatTags",
			Doc: "Tags that extensions put into the names of statistics, and that become labels"},
		{name: "fileFlushInterval", proxy: "fileFlushInterval", Kind: Duration, Default: "1s", field: "FileFlushInterval",
			Doc: "Envoy's --file-flush-interval-msec"},
		{name: "fileFlushMinSizeKb", proxy: "fileFlushMinSizeKb", Kind: Size, field: "FileFlushMinSizeKB",
			Doc: "Envoy's --file-flush-min-size-kb"},
	}
}

func lifeSettings() []Setting {
	return []Setting{
		{name: "drainDuration", Flag: "drainDuration", proxy: "drainDuration", Kind: Duration, Default: "45s", field: "DrainDuration",
			Doc: "How long Envoy takes to close connections that it drains, such as those of a listener that has changed; at least 1s. Envoy gets the largest of this and of the drains of a stop and of an upgrade"},
		{name: "parentShutdownDuration", Flag: "parentShutdownDuration", proxy: "parentShutdownDuration", Kind: Duration, Default: "60s", field: "ParentShutdownDuration",
			Doc: "How long the old Envoy lives on in a hot upgrade; upgradeDrainDuration goes before it"},
		{name: "terminationDrainDuration", Env: contract.DrainVariable, proxy: "terminationDrainDuration", Kind: Duration, envKind: Seconds, Default: "5s", field: "TerminationDrainDuration",
			Doc: "How long Envoy drains after SIGTERM before it is ended"},
		{name: "minimumDrainDuration", Env: "MINIMUM_DRAIN_DURATION", Kind: Duration, Default: "5s", field: "MinimumDrainDuration",
			Doc: "Shortest drain with exitOnZeroActiveConnections"},
		{name: "exitOnZeroActiveConnections", Env: "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", Kind: Bool, Default: "false", field: "ExitOnZeroActiveConnections",
			Doc: "End Envoy when its last connection has ended, instead of after terminationDrainDuration"},
		{name: "drainIdleTimeout", Env: "UNDERSTUDY_DRAIN_IDLE_TIMEOUT", Kind: Duration, Default: "0s", field: "DrainIdleTimeout",
			Doc: "Closes idle HTTP connections once nothing else has been left for so long, in the drain of a hot upgrade and with exitOnZeroActiveConnections; a client that writes at that moment gets a reset. 0s: they are waited for like all others"},
		{name: "hungEnvoy", Env: "UNDERSTUDY_HUNG_ENVOY", Kind: HungAction, Default: "report", field: "RestartHung",
			Doc: "What becomes of an Envoy that hangs, besides that the pod is not ready: report only says so, restart ends it with SIGKILL and starts another on the same sockets"},
		{name: "memoryLimit", Env: "GOMEMLIMIT", Kind: Memory, field: "MemoryLimit",
			Doc: "Bytes, also as 128MiB, within which the agent, without Envoy, tries to stay by collecting garbage sooner; no hard bound; off: none. Unset, or all of the control group's limit, as Istio's template sets it: half of that, as the other half is Envoy's; none without one"},
		{name: "terminationLog", Env: "UNDERSTUDY_TERMINATION_LOG", Kind: Path, Default: DefaultTerminationLog, field: "TerminationLog",
			Doc: "The container's terminationMessagePath: where the kubelet reads why the agent ended, if the file exists"},
	}
}

func upgradeSettings() []Setting {
	return []Setting{
		{name: "handoffDir", Flag: "handoffDir", Env: "UNDERSTUDY_HANDOFF_DIR", Kind: String, emptyEnv: true, field: "HandoffDir",
			Doc: "Where generations meet: a directory that both containers share. Unset: " + DefaultHandoffDir + " when that exists. Empty: no hot upgrade"},
		{name: "upgradeDrainDuration", Flag: "upgradeDrainDuration", Env: "UNDERSTUDY_UPGRADE_DRAIN_DURATION", Kind: Duration, field: "UpgradeDrainDuration",
			Doc: "Longest time an old generation may go on serving connections it already has; parentShutdownDuration unless set"},
		{name: "takeover", Flag: "takeover", Env: "UNDERSTUDY_TAKEOVER", Kind: TakeoverMode, Default: string(TakeoverAuto), field: "Takeover",
			Doc: "auto: the newer generation takes over; force: this one does, whatever the numbers of OpenKruise say, such as after a cluster was restored"},
		{name: "upgradeStats", Env: "UNDERSTUDY_UPGRADE_STATS", Kind: Bool, Default: "true", field: "UpgradeStats",
			Doc: "Carry the old Envoy's counters and gauges over to the new one"},
		{name: "sidecarSetVersion", Env: contract.VersionVariable, Kind: String, field: "SidecarSetVersion",
			Doc: "OpenKruise's number of this container's generation; read once, at the start"},
		{name: "sidecarSetVersionAlt", Env: contract.VersionAltVariable, Kind: String, field: "SidecarSetVersionAlt",
			Doc: "OpenKruise's number of the other container's generation; read once, at the start"},
	}
}
