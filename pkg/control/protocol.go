package control

import "understudy.mesh/pkg/contract"

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
	// UpgradePath answers a [contract.UpgradeStatus] as JSON.
	UpgradePath = contract.UpgradePath
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
