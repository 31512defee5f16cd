package rollout

import (
	"slices"
	"strconv"
	"time"

	"understudy.mesh/pkg/contract"
)

// Word is what a pod's agent says of its generations (GET /upgrade on its status port), as far as it matters here.
type Word struct {
	HandoffDir  string       `json:"handoffDir"`
	Off         string       `json:"off"`
	Generations []Generation `json:"generations"`

	// Err is why there is none; At is when it was said.
	Err error     `json:"-"`
	At  time.Time `json:"-"`
}

// Generation is one life of an agent with its Envoy.
type Generation struct {
	Role        string   `json:"role"`
	Version     string   `json:"sidecarSetVersion"`
	LastAttempt *attempt `json:"lastAttempt"`
	// Requests are what its Envoy has answered; nil if that is unknown.
	Requests *contract.Requests `json:"requests"`
}

// attempt is one hand-off, as one side saw it.
type attempt struct {
	At     time.Time `json:"at"`
	Result string    `json:"result"`
	Reason string    `json:"reason"`
}

// The roles of generations that matter here.
const (
	roleServing = "serving"
	roleStandby = "standby"
)

// passing are reasons of a refusal that go by, so that the newcomer tries again.
var passing = []string{"busy", "unready", "moved"}

// serves reports whether the generation of a version has taken over.
func (w *Word) serves(version int64) bool {
	return w != nil && slices.ContainsFunc(w.Generations, func(g Generation) bool {
		return g.Role == roleServing && g.Version == strconv.FormatInt(version, 10)
	})
}

// alone reports whether every other generation than that of a version idles, or is gone.
func (w *Word) alone(version int64) bool {
	return w.serves(version) && !slices.ContainsFunc(w.Generations, func(g Generation) bool {
		return g.Version != strconv.FormatInt(version, 10) && g.Role != roleStandby && g.Role != ""
	})
}

// refused is why the generation that serves has refused a newcomer for good, after a moment; "" if it has not.
func (w *Word) refused(since time.Time) string {
	if w == nil {
		return ""
	}
	for _, g := range w.Generations {
		if a := g.LastAttempt; a != nil && g.Role == roleServing && a.Result == "refused" && a.At.After(since) && !slices.Contains(passing, a.Reason) {
			return a.Reason
		}
	}
	return ""
}

// unable is why a pod whose agent says this cannot be begun; "" if it can.
func (w *Word) unable() string {
	switch {
	case w.Err != nil:
		return "its agent does not say how it is: " + w.Err.Error()
	case w.Off != "" || w.HandoffDir == "":
		return "its agent has no hot upgrade: " + w.Off
	case !slices.ContainsFunc(w.Generations, func(g Generation) bool { return g.Role == roleServing }):
		return "none of its generations serves"
	}
	return ""
}
