package control

import "time"

// Prefixes of the control socket's URL paths. The rest of the path is that on the port
// that the prefix stands for.
const (
	// StatusPrefix is the status port (15020): readiness, metrics, drain, quit, debug pages.
	StatusPrefix = "/status"
	// AdminPrefix is the admin port (15000): the running Envoy's admin API.
	AdminPrefix = "/admin"
)

// Paths of the control socket that only commands of this container use.
const (
	// RolePath answers a [RoleStatus] as JSON.
	RolePath = "/role"
	// UpgradePath answers an [UpgradeStatus] as JSON.
	UpgradePath = "/upgrade"
	// WaitingPath is a POST whose body lasts as long as a `wait` waits. One that is killed has no time to end it.
	WaitingPath = "/waiting"
	// WaitFailedPath is a POST of why a `wait` failed, as text.
	WaitFailedPath = "/wait-failed"
)

// RoleStatus is what `wait` asks its own container's agent for.
type RoleStatus struct {
	// Role is starting, serving, handing-off, draining or standby.
	Role string `json:"role"`
	// Settled: this agent serves and its hand-off is complete, or it stands by because a
	// newer generation serves.
	Settled bool `json:"settled"`
	// Drained: settled, and the Envoy of the previous generation, if there was one, has exited.
	Drained bool `json:"drained"`
	// Failed: this agent is about to end, and never settles any more.
	Failed bool `json:"failed,omitempty"`
	// Reason is what is pending, or why the last take-over failed, or the agent; "" once drained.
	Reason string `json:"reason,omitempty"`
	// UpgradeDrainSeconds is --upgradeDrainDuration.
	UpgradeDrainSeconds float64 `json:"upgradeDrainSeconds"`
}

// UpgradeStatus is what `upgrade-status` shows: every generation of the pod that lives.
type UpgradeStatus struct {
	// HandoffDir is where generations meet; "" when hot upgrade is off, and Off then says why.
	HandoffDir string `json:"handoffDir,omitempty"`
	Off        string `json:"off,omitempty"`
	// Generations begins with the agent that was asked; the others follow, latest start first.
	Generations []GenerationStatus `json:"generations"`
}

// GenerationStatus is one life of an agent with its Envoy.
type GenerationStatus struct {
	ID    string    `json:"id"`
	Self  bool      `json:"self,omitempty"` // the agent that was asked
	Role  string    `json:"role,omitempty"`
	Since time.Time `json:"since,omitzero"` // of the role
	// Started is when the agent's process did.
	Started           time.Time `json:"started,omitzero"`
	AgentVersion      string    `json:"agent,omitempty"`
	EnvoyVersion      string    `json:"envoy,omitempty"`
	HotRestartVersion string    `json:"hotRestart,omitempty"`
	// SidecarSetVersion and its Alt are what OpenKruise wrote; "" when unset.
	SidecarSetVersion    string `json:"sidecarSetVersion,omitempty"`
	SidecarSetVersionAlt string `json:"sidecarSetVersionAlt,omitempty"`
	// Connections are those that its Envoy still serves, while draining.
	Connections int `json:"connections,omitempty"`
	// Drain is of what kind they are; nil while they were not counted yet, in an earlier release, and if
	// Envoy does not tell.
	Drain *Drain `json:"drain,omitempty"`
	// Sockets are the names of the listening sockets that it holds.
	Sockets []string `json:"sockets,omitempty"`
	// LastAttempt is the last hand-off that it took part in, on either side.
	LastAttempt *Attempt `json:"lastAttempt,omitempty"`
	// Error is why it did not answer; then only its ID is known.
	Error string `json:"error,omitempty"`
}

// Drain is what a drain waits for.
type Drain struct {
	// Idle are HTTP connections without a request: at least so many, since one of HTTP/2 may have several
	// requests. UNDERSTUDY_DRAIN_IDLE_TIMEOUT says how long they are waited for.
	Idle int `json:"idle"`
	// Active are HTTP requests, streams of gRPC and server-sent events among them.
	Active int `json:"active"`
	// Streams are WebSockets, CONNECT and other upgraded requests.
	Streams int `json:"streams"`
	// TCP are connections of which Envoy does not speak the protocol.
	TCP int `json:"tcp"`
}

// Attempt is one hand-off, as one side saw it.
type Attempt struct {
	At time.Time `json:"at"`
	// With is the other generation's ID.
	With string `json:"with"`
	// TakingOver: this side was the successor.
	TakingOver bool `json:"takingOver"`
	// Result is running, success, failure or refused; Reason says why it failed.
	Result  string  `json:"result"`
	Reason  string  `json:"reason,omitempty"`
	Seconds float64 `json:"seconds,omitempty"` // from its beginning to its end
}

// Debug pages about DNS on the status port, for loopback only. All answer JSON. With
// ?name=N a list has only the names that contain the labels N, in any case.
const (
	// DNSLookupPath answers ?name=N&type=T with a [dnsproxy.Explanation].
	DNSLookupPath = "/debug/dns/lookup"
	// DNSTablePath answers the names that the agent answers itself: a list of
	// [table.Host]; ?name=N.
	DNSTablePath = "/debug/dns/table"
	// DNSCachePath answers the content of the cache: a list of [cache.Entry]; ?name=N.
	DNSCachePath = "/debug/dns/cache"
	// DNSFlushPath is a POST that removes answers from the cache, and answers
	// {"flushed": how many}; ?name=N.
	DNSFlushPath = "/debug/dns/flush"
	// DNSVIPsPath answers {"pool": [vip.Stats], "vips": list of [vip.VIP]}; ?name=N.
	DNSVIPsPath = "/debug/dns/vips"
	// DNSUpstreamsPath answers the servers that questions are forwarded to: a list of
	// [upstream.Stats].
	DNSUpstreamsPath = "/debug/dns/upstreams"
)
