package overview

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
)

// Connections is what a drain waits for; "" while nothing was counted yet, and of a generation that does not drain.
func Connections(g contract.GenerationStatus) string {
	if g.Role != "draining" || g.Drain == nil && g.Connections == 0 {
		return ""
	}
	text := strconv.Itoa(g.Connections)
	if g.Drain == nil {
		return text
	}
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{g.Drain.Idle, "idle"}, {g.Drain.Active, "active"}, {g.Drain.Streams, "streams"}, {g.Drain.TCP, "TCP"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	return text
}

// LastAttempt is a generation's last hand-off, or why it did not answer.
func LastAttempt(now time.Time, g contract.GenerationStatus) string {
	if g.Error != "" {
		return "no answer: " + g.Error
	}
	a := g.LastAttempt
	if a == nil {
		return ""
	}
	when, direction := ago(now, a.At)+" ago", "to"
	if a.Result == "running" {
		when = "for " + ago(now, a.At)
	}
	if a.TakingOver {
		direction = "from"
	}
	text := fmt.Sprintf("%s %s, %s %s", a.Result, when, direction, a.With)
	if a.Reason != "" {
		text += ": " + a.Reason
	}
	return text
}

// ago is how long ago t was, "" for never.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return control.Briefly(now.Sub(t))
}
