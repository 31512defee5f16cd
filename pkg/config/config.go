// Package config owns the names of the agent's settings: every flag, environment
// variable, annotation and ProxyConfig or MeshConfig field that `pilot-agent proxy`
// reads. One table (Settings) drives parsing, --help, the reference page and the dump
// at start. The package reads the outside only through Sources, and hands out one
// immutable, typed Config.
package config

import (
	"net/netip"
	"time"

	"understudy.mesh/internal/compliance"
	"understudy.mesh/pkg/logging"
)

// Role is what the proxy does in the mesh: the argument of `pilot-agent proxy`.
type Role string

// The roles of Istio's agent that this one plays; Sidecar is the default.
const (
	Sidecar Role = "sidecar"
	Router  Role = "router"
)

// ParseRole returns the role named s.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case Sidecar, Router:
		return r, nil
	}
	return "", &problem{source: sourceFlag, key: "role", value: s, remedy: "want sidecar or router"}
}

// Takeover says when a generation takes over from a live one.
type Takeover string

// TakeoverAuto lets the newer of two generations take over. TakeoverForce takes over
// from whichever serves: for a cluster that was restored, whose numbers of OpenKruise
// went backwards.
const (
	TakeoverAuto  Takeover = "auto"
	TakeoverForce Takeover = "force"
)

// Interception is how a pod's inbound traffic is captured (Istio's
// ProxyConfig.interceptionMode).
type Interception string

// Redirect hides the client's address from the application, TPROXY does not. NoCapture
// is a pod of which nothing is captured.
const (
	Redirect  Interception = "REDIRECT"
	TPROXY    Interception = "TPROXY"
	NoCapture Interception = "NONE"
)

// Sources is what main read of the world for Load.
type Sources struct {
	Role    Role
	Flags   map[string]string // only those that the command line sets, by name without dashes
	Environ []string          // "KEY=value", as os.Environ
	NodeIPs []netip.Addr      // of the interfaces: up, neither loopback nor link-local
	// AddrsOf are the addresses of an interface, by its name; nil means that there is none.
	AddrsOf func(name string) ([]netip.Addr, error)
	// ReadFile reads the mesh file and the downward API's files, and fails as os.ReadFile
	// does: a file that does not exist counts as empty. It must bound what it reads.
	ReadFile func(path string) ([]byte, error)
	// MemoryLimit is what the agent's control group, with Envoy in it, may have, in bytes; 0 is no limit.
	MemoryLimit int64
	// Platform asks a cloud where the machine is; nil means nobody can be asked. static are
	// variables that spare the question.
	Platform func(name string, ipv4 bool, static map[string]string) (Platform, error)
	// IsDir says whether path is a directory; nil means no directory is there.
	IsDir func(path string) bool
}

// Platform is what a cloud says of the machine: the same fields, in the same order, as
// platform.Info.
type Platform struct {
	Region, Zone string
	Metadata     map[string]string
}

// Config is the effective configuration. Settings names the source of each field that
// a table row fills; the others say here what they derive from.
type Config struct {
	Role Role

	// The pod.
	PodName, PodNamespace, ServiceAccount string
	PodUID                                string // "" is unknown
	InstanceIP, HostIP                    netip.Addr
	NodeIPs                               []netip.Addr // InstanceIP first, then Sources.NodeIPs; loopback when there is none
	ExcludeInterfaces                     []string     // whose addresses NodeIPs leaves out
	DualStack                             bool
	Interception                          Interception
	ProxyMark                             uint32 // of the sockets of Envoy and the agent; 0 is none
	IPv4, IPv6                            bool   // families in NodeIPs that are served
	Domain                                string // DNS domain of the namespace
	Node                                  Node   // what Envoy says it is

	// The control plane.
	ConfigDir        string // "" is istiod at DiscoveryAddress
	SharedListeners  bool   // of HTTP hosts, one a port
	MaxHosts         uint32 // of the files
	AllowIgnored     bool
	DiscoveryAddress string // host:port
	// ControlPlaneMutualTLS is controlPlaneAuthPolicy: istiod is reached over TLS.
	ControlPlaneMutualTLS bool
	XDSRootCA             string // a file, "SYSTEM", or "" for what Istio's agent looks for
	IstiodSAN             string // "" follows from DiscoveryAddress
	ProvCert              string // a directory; "" is none
	FileMountedCerts      bool
	FirstPartyJWT         bool
	ClusterID             string
	XDSHeaders            map[string]string // of the variables XDS_HEADER_*
	KeepaliveInterval     time.Duration
	KeepaliveTimeout      time.Duration
	TrustBundles          bool          // ask istiod for further roots
	MaxResponse           uint32        // bytes of one response of istiod's
	LastGood              bool          // keep what istiod has said on disk
	LastGoodAge           time.Duration // how old that may be at a start
	RegistryOnly          bool          // refuse outbound traffic to unknown destinations
	RootNamespace         string        // whose documents are for every namespace
	AccessLogFile         string        // "" is none
	AccessLogFormat       string        // "" is Envoy's default format
	AccessLogJSON         bool
	ConnectTimeout        time.Duration
	DetectionTimeout      time.Duration // 0 waits for ever

	// The workload's certificate.
	TrustDomain                string
	CAAddress                  string            // host:port; "" is DiscoveryAddress
	CAProvider                 string            // Citadel
	CARootCA                   string            // a file, "SYSTEM", or "" for what CertProvider says
	CertProvider               string            // "custom", "none", or any other for the mesh's own roots
	CAHeaders                  map[string]string // of the variables CA_HEADER_*
	CertSigner                 string            // "" is the authority's own
	CertLifetime               time.Duration
	CertGrace, CertGraceJitter float64 // parts of the lifetime, 0 to 1
	RSABits                    int
	ECCAlgorithm, ECCCurve     string // ECCAlgorithm is ECDSA, or "" for RSA
	PKCS8Key                   bool
	OutputCerts                string // a directory; "" is none
	FileDebounce               time.Duration
	CACRL                      bool
	KeepCertificate            bool          // over a restart of the container
	InKubernetes               bool          // as the variables of its containers say
	OldRoots                   time.Duration // negative: as long as a certificate of theirs

	// The hot upgrade.
	HandoffDir           string        // "" is no hot upgrade
	UpgradeDrainDuration time.Duration // ParentShutdownDuration unless set
	Takeover             Takeover
	UpgradeStats         bool // carry the old Envoy's statistics over
	// SidecarSetVersion and SidecarSetVersionAlt are what OpenKruise wrote, unchecked: the
	// hand-off parses them; "" is unset.
	SidecarSetVersion, SidecarSetVersionAlt string

	// Envoy.
	BinaryPath, ConfigPath string
	ServiceCluster         string
	TracingServiceName     string // how ServiceCluster follows from the pod's labels; "" is unset
	ProxyLogLevel          string // one level
	ProxyComponentLogLevel string // "component:level,..." or ""
	Concurrency            int    // 0 lets Envoy use every core
	CPULimit               int    // cores; 0 is none
	MemoryLimit            int64  // of the agent alone, in bytes, soft; 0 is none
	SkipDeprecatedLogs     bool
	CoreDump               bool
	BootstrapOverride      string // path of a file
	OutlierLogPath         string
	RuntimeValues          map[string]string
	// ConnectionLimit bounds the connections of all of Envoy's listeners together; 0 leaves it to
	// RuntimeValues, or to the limit of open files. NodeConnectionLimit is what it is when it is unset.
	ConnectionLimit, NodeConnectionLimit uint32
	ExtraStatTags                        []string
	StatsInclusionPrefixes               []string
	StatsInclusionSuffixes               []string
	StatsInclusionRegexps                []string
	FileFlushInterval                    time.Duration // of Envoy's access logs
	FileFlushMinSizeKB                   uint32        // 0 is Envoy's default
	DrainDuration                        time.Duration
	ParentShutdownDuration               time.Duration
	TerminationDrainDuration             time.Duration
	MinimumDrainDuration                 time.Duration
	DrainIdleTimeout                     time.Duration // 0: idle connections are waited for
	ExitOnZeroActiveConnections          bool
	RestartHung                          bool // kill an Envoy that hangs, and start another
	TerminationLog                       string

	// What Envoy's bootstrap has besides.
	CustomConfigFile                 string // is the bootstrap; "" is the agent's own
	Tracer                           Tracer
	ZipkinAddress, DatadogAddress    string // of Tracer
	AccessLogService, MetricsService Service
	MetricsServiceAddress            string // of MetricsService
	StatsdAddress                    string // host:port, "" is none
	StatsCompression                 bool
	StatsHistogramBuckets            map[string][]float64 // by prefix
	StatsFlushInterval               time.Duration        // 0 is Envoy's
	StatsEvictionInterval            time.Duration        // 0 is never
	SecureStatsPort                  uint16               // 0 is none
	SecureMergedStatsPort            uint16               // 0 is none
	DeltaXDS                         bool
	MetadataDiscovery                bool   // of peers
	SelfDiscovery                    bool   // of the workload's own endpoints
	LoadStats                        string // JSON, "" is none
	IdentitySocketFile               string
	ReadinessProbe                   string // JSON, "" is none
	CloudPlatform                    string // aws, azure or gcp; "" or none is none
	CompliancePolicy                 compliance.Policy
	StripFragment                    bool

	// Wasm modules.
	WasmAllow, WasmInsecureRegistries []string
	WasmSecretsDir                    string
	DockerConfig                      string // a directory, "" is none
	WasmCAFile                        string // "" is none
	WasmBlockedCIDRs                  []netip.Prefix
	WasmMirrors                       []string // from=to
	WasmMaxBinarySize                 uint32
	WasmModuleExpiry                  time.Duration
	WasmCheck                         bool
	Wasm                              bool

	// The agent's servers.
	StatusPort, ReadyPort uint16 // StatusPort 0 is no status server besides ReadyPort
	StatsPort, AdminPort  uint16
	ReadyProxyProtocol    bool // ReadyPort takes the PROXY protocol, too
	MetricsLoopbackOnly   bool // the agent's /metrics and /stats/prometheus
	StatsLoopbackOnly     bool // Envoy's StatsPort
	MergeEnvoyStats       bool
	Profiling             bool
	AppProbers            string // JSON, "" is none
	PrometheusAnnotations string // JSON, "" is none
	HTTP2Probing          bool
	ProbeLocalhost        bool
	DNSCapture            bool // also false for a router, unless DNSServer
	DNSServer             bool
	DNSAutoAllocate       bool
	DNSAddrs              []netip.AddrPort
	DNSForwardParallel    bool
	DNSForwardTimeout     time.Duration
	DNSTTL                time.Duration // whole seconds, at least one
	DNSHold               time.Duration
	DNSStale              time.Duration // 0: off
	DNSCache              bool
	DNSPrefetch           bool
	DNSHedge              bool
	IstioCompat           bool // what Istio's agent has not is off
	LogLevels             logging.Levels
	LogJSON               bool
	LogTarget             string // stdout, stderr or a path

	effective []Value
}

// Value is one setting as it is in force.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"`  // a secret is masked
	Source string `json:"source"` // "default", "derived", or where it was set
}

// Effective returns every setting that is in force with its source, in the order of
// Settings: what the agent logs at its start. Rows without effect are left out.
func (c *Config) Effective() []Value { return c.effective }

// Node is Envoy's identity (envoy.config.core.v3.Node): the same fields, in the same
// order, as bootstrap.Node, to which it converts.
type Node struct {
	ID, Cluster           string
	Metadata              map[string]any
	Region, Zone, SubZone string
}
