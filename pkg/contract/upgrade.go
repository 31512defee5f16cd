package contract

import "time"

// HookCutOff begins the termination message of a newcomer whose postStart hook ended with its kubelet or container runtime. It says nothing of the
// image: the kubelet starts the slot again.
const HookCutOff = "the postStart hook was cut off"

// UpgradeStatus is every generation of the pod that lives: what `upgrade-status -o json` prints, and, less the sockets, what the
// agent answers at [UpgradePath] of its status port. Its fields stay: each side may be of another release.
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
	// Requests are those that its Envoy has answered, up to the hand-over of one that does not serve any more; nil in an
	// earlier release, and if Envoy does not tell.
	Requests *Requests `json:"requests,omitempty"`
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

// Requests are the HTTP requests that one Envoy has answered by itself since its start: it begins at 0, whatever the one before
// has counted.
type Requests struct {
	Inbound  Answers `json:"inbound"`
	Outbound Answers `json:"outbound"`
}

// Answers are a number of requests, and how many of them were answered with a status of 500 to 599.
type Answers struct {
	Completed uint64 `json:"completed"`
	Errors    uint64 `json:"5xx"`
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
	// Steps are what happened in it, and in the drain after it, in turn.
	Steps []Step `json:"steps,omitempty"`
}

// Step is one moment of an Attempt.
type Step struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}
