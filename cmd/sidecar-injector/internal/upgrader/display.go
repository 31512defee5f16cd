package upgrader

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
)

// Display shows an upgrade as it goes on: a line for each change, one that is written anew on a terminal, or an event of JSON.
type Display struct {
	Out  io.Writer
	JSON bool
	// Live is that lines of progress replace each other.
	Live bool

	began   time.Time
	before  rollout.Counts
	first   int32
	failed  map[string]bool
	shown   bool
	waiting string
	open    bool // a live line has no end yet
}

// event is a line of JSON.
type event struct {
	Time    time.Time       `json:"time"`
	Event   string          `json:"event"`
	Phase   rollout.Phase   `json:"phase,omitempty"`
	Image   string          `json:"image,omitempty"`
	Pods    *rollout.Counts `json:"pods,omitempty"`
	Waiting string          `json:"waiting,omitempty"`
	Rate    float64         `json:"podsPerMinute,omitempty"`
	ETA     float64         `json:"etaSeconds,omitempty"`
	Pod     string          `json:"pod,omitempty"`
	Reason  string          `json:"reason,omitempty"`
}

// Show shows what has changed.
func (d *Display) Show(u *rollout.SidecarUpgrade, now time.Time) {
	s := &u.Status
	if !d.shown {
		d.began, d.first, d.failed = now, s.Pods.Done, map[string]bool{}
		d.put(event{Time: now, Event: "started", Image: s.Image, Phase: s.Phase}, fmt.Sprintf("%s: the pods of namespace %s get %s", s.Phase, u.Namespace, s.Image))
	}
	for _, f := range s.Failed {
		if !d.failed[f.Pod] {
			d.failed[f.Pod] = true
			d.put(event{Time: now, Event: "failed", Pod: f.Pod, Reason: f.Reason}, "failed: pod "+f.Pod+": "+f.Reason)
		}
	}
	if s.Waiting != d.waiting {
		d.waiting = s.Waiting
		if s.Waiting != "" {
			d.put(event{Time: now, Event: "waiting", Waiting: s.Waiting}, "waiting: "+s.Waiting)
		}
	}
	if d.shown && s.Pods == d.before {
		return
	}
	d.shown, d.before = true, s.Pods
	d.progress(s, now)
}

func (d *Display) progress(s *rollout.Status, now time.Time) {
	e := event{Time: now, Event: "progress", Phase: s.Phase, Pods: &s.Pods}
	p, took := s.Pods, now.Sub(d.began)
	text := fmt.Sprintf("%s  done %d/%d  in flight %d  draining %d  failed %d  held %d", clock(took), p.Done, p.Total, p.InFlight, p.Draining, p.Failed, p.Held)
	if n := p.Done - d.first; n > 0 && took > 0 {
		e.Rate = float64(n) / took.Minutes()
		text += fmt.Sprintf("  %.1f/min", e.Rate)
		if left := p.Total - p.Done - p.Failed - p.Held; left > 0 {
			e.ETA = float64(left) / e.Rate * 60
			text += "  ETA " + clock(time.Duration(e.ETA*float64(time.Second)))
		}
	}
	if d.JSON || !d.Live {
		d.put(e, text)
		return
	}
	fmt.Fprintf(d.Out, "\r\x1b[K%s", text)
	d.open = true
}

func clock(t time.Duration) string {
	s := int(t.Seconds())
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// End says what came of it.
func (d *Display) End(u *rollout.SidecarUpgrade, now time.Time) {
	s := &u.Status
	for _, h := range s.Held {
		d.put(event{Time: now, Event: "held", Pod: h.Pod, Reason: h.Reason}, "held: pod "+h.Pod+": "+h.Reason)
	}
	d.put(event{Time: now, Event: "ended", Phase: s.Phase, Image: s.Image, Pods: &s.Pods, Waiting: s.Waiting}, summary(u))
}

// summary is an upgrade in a line.
func summary(u *rollout.SidecarUpgrade) string {
	s := &u.Status
	text := fmt.Sprintf("%s: %d of %d pods run %s; in flight %d, draining %d, failed %d, held %d", s.Phase, s.Pods.Done, s.Pods.Total, s.Image,
		s.Pods.InFlight, s.Pods.Draining, s.Pods.Failed, s.Pods.Held)
	if s.PreviousImage != "" && s.PreviousImage != s.Image {
		text += "; --undo goes back to " + s.PreviousImage
	}
	return text
}

func (d *Display) put(e event, text string) {
	if d.JSON {
		line, err := json.Marshal(e)
		if err != nil {
			text = err.Error()
		} else {
			text = string(line)
		}
	}
	if d.open {
		fmt.Fprintln(d.Out)
		d.open = false
	}
	fmt.Fprintln(d.Out, text)
}
