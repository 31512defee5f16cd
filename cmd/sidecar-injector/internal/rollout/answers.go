package rollout

import (
	"fmt"
	"slices"
	"strconv"

	"understudy.mesh/pkg/contract"
)

const (
	// minErrors is how many answers with 5xx the new proxy has at least before they count, minRequests how many requests the old
	// one must have had for its share of them to say anything.
	minErrors, minRequests = 5, 20
	// worseBy and worseTimes are what the share of 5xx exceeds that is clearly higher: so much, besides so many times the old one.
	worseBy, worseTimes = 0.01, 2
)

// requests are those of the generation of a version, if its agent tells them.
func (w *Word) requests(version int64) *contract.Requests {
	if w == nil {
		return nil
	}
	i := slices.IndexFunc(w.Generations, func(g Generation) bool { return g.Version == strconv.FormatInt(version, 10) })
	if i < 0 {
		return nil
	}
	return w.Generations[i].Requests
}

// worse is why the answers of the new proxy are worse than those of the old one; "" if they are not, or nobody knows. before is
// what the old one had answered when the upgrade began.
func (w *Word) worse(newer, older int64, before *contract.Requests) string {
	now, old := w.requests(newer), w.requests(older)
	if now == nil || old == nil {
		return ""
	}
	if before == nil {
		before = old
	}
	if why := worse(now.Inbound, old.Inbound, before.Inbound); why != "" {
		return "inbound: " + why
	}
	if why := worse(now.Outbound, old.Outbound, before.Outbound); why != "" {
		return "outbound: " + why
	}
	return ""
}

// worse compares one direction. The old share is that of the proxy's whole life, or that of the time from the beginning of the
// upgrade to the hand-over if it is higher: what fails of late is not the new proxy's doing.
func worse(now, old, before contract.Answers) string {
	if now.Errors < minErrors || old.Completed < minRequests {
		return ""
	}
	usual := share(old)
	late := contract.Answers{Completed: old.Completed - min(before.Completed, old.Completed), Errors: old.Errors - min(before.Errors, old.Errors)}
	if late.Completed >= minRequests {
		usual = max(usual, share(late))
	}
	if share(now) <= worseTimes*usual+worseBy {
		return ""
	}
	return fmt.Sprintf("%d of %d requests were answered with 5xx by its new proxy, %.1f%%; by the old one %.1f%%", now.Errors, now.Completed, 100*share(now), 100*usual)
}

// share is the part of answers that are errors.
func share(a contract.Answers) float64 { return float64(a.Errors) / float64(max(a.Completed, 1)) }
