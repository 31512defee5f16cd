package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/pkg/contract"
)

// What the kubelet says of a container that it cannot make, or that ends again and again.
var (
	cannotPull  = []string{"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"}
	cannotStart = []string{"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
	endsAgain   = []string{"PostStartHookError", "CrashLoopBackOff"}
)

// progress is how far a pod is, with the reason if it does not go on.
func (p *pass) progress(pod *Pod, m *memory) (class, string) {
	if pod.broken != nil {
		return never, pod.broken.Error()
	}
	switch r := &pod.record; r.Step {
	case stepSwitching:
		return p.switching(pod, m)
	case stepResizing:
		return p.resizing(pod, m)
	case stepResetting:
		if what, reason := p.resetting(pod); what != done {
			return what, reason
		}
	case stepAborting:
		back := p.back(pod) && p.lowered(pod, r.Slot)
		switch {
		case !r.Superseded && r.Run == p.status.Run && !p.forgiven(r.At):
			return failed, r.Reason
		case !back:
			return inFlight, ""
		}
	case stepNoRoom:
		switch {
		case !p.lowered(pod, r.Slot):
			return held, r.Reason
		case r.Run == p.status.Run && !p.forgiven(r.At):
			return never, r.Reason
		}
	}
	return p.settled(pod)
}

// forgiven reports whether a failure was before the upgrade was told to go on.
func (p *pass) forgiven(at time.Time) bool {
	resumed := p.Upgrade.Spec.ResumedAt
	return resumed != nil && !at.After(resumed.Time)
}

// settled is of a pod of which one slot works and the other is idle.
func (p *pass) settled(pod *Pod) (class, string) {
	working, idle := pod.roles()
	switch {
	case !pod.settled():
		return never, "both its slots have a version, and nothing says who upgrades it"
	case working.image == p.Upgrade.Spec.Image:
		return done, ""
	}
	if pod.Outdated != "" {
		return never, "needs a restart: " + pod.Outdated
	}
	switch {
	case !pod.ready:
		return held, "it is not ready"
	case !idle.ready:
		return held, "its idle slot " + idle.name + " does not run"
	}
	at := pod.record.free(idle.name, p.Upgrade.Spec.Image)
	if reset := pod.record.free(working.name, idle.image); reset.After(at) {
		at = reset
	}
	if at.After(p.now) && !p.Upgrade.Spec.Force {
		return held, fmt.Sprintf("its third switch within ten minutes: the kubelet would let a slot wait, and the pod were unready; it goes on at %s (--force does not wait)", at.UTC().Format(time.RFC3339))
	}
	return candidate, ""
}

// begin asks the agent of a candidate, and begins with the pod if it is able. It returns why not.
func (p *pass) begin(pod *Pod, m *memory) string {
	if m.word == nil || p.now.Sub(m.word.At) > freshWord {
		p.ask(pod, m, askEvery)
		return ""
	}
	if why := m.word.unable(); why != "" {
		return why
	}
	working, idle := pod.roles()
	r := record{
		Step: stepResizing, Run: p.status.Run, Slot: idle.name, Version: working.version + 1, New: p.Upgrade.Spec.Image, Old: working.image, Empty: idle.image,
		Starts: pod.record.Starts, Injected: cmp.Or(pod.record.Injected, working.image),
	}
	if idle.requests.lower(working.requests) {
		r.Idle, r.At = new(idle.requests), p.now.UTC()
		p.write(pod, "raise the requests of "+idle.name, r, nil)
		return ""
	}
	p.change(pod, m, r)
	return ""
}

// change is the one write that begins the upgrade: image and versions together.
func (p *pass) change(pod *Pod, m *memory, r record) {
	*m = memory{word: m.word, asked: m.asked, asking: m.asking, pass: m.pass}
	slot, other := pod.slot(r.Slot), pod.other(r.Slot)
	r.Step, r.At, r.Restarts = stepSwitching, p.now.UTC(), slot.restarts
	r.Before = m.word.requests(other.version)
	r.started(r.Slot, r.New, p.now)
	version := strconv.FormatInt(r.Version, 10)
	p.write(pod, r.Slot+" gets "+r.New, r, map[string]string{
		contract.VersionAnnotation + r.Slot:        version,
		contract.VersionAltAnnotation + r.Slot:     strconv.FormatInt(other.version, 10),
		contract.VersionAltAnnotation + other.name: version,
	}, image(r.Slot, r.New))
}

// resizing is of a pod whose idle slot is to get the requests of the one that serves.
func (p *pass) resizing(pod *Pod, m *memory) (class, string) {
	r := pod.record
	slot, working := pod.slot(r.Slot), pod.other(r.Slot)
	asked := !slot.requests.lower(working.requests)
	if m.pressed.IsZero() {
		m.pressed = p.now
	}
	switch {
	case r.New != p.Upgrade.Spec.Image || p.Upgrade.Spec.Paused || slot.image != r.Empty || len(p.status.Failed) >= p.failures:
		r.Step, r.At, r.Reason = stepNoRoom, p.now.UTC(), "it was given up"
		r.Run = 0 // nothing was tried that would count
		p.write(pod, "put the requests of "+r.Slot+" back", r, nil)
	case asked && slot.actual != nil && !slot.actual.lower(working.requests) && pod.resize.reason == "":
		p.change(pod, m, r)
	case p.now.Sub(m.pressed) >= roomLimit:
		r.Step, r.At = stepNoRoom, p.now.UTC()
		r.Reason = "no room on node: " + cmp.Or(pod.resize.message, pod.resize.reason, "the kubelet does not give "+r.Slot+" its requests")
		if !asked { // a quota, or a node that cannot change requests
			r.Reason = "the API server refuses " + r.Slot + " the requests of " + working.name + "; the log says why"
		}
		p.write(pod, r.Reason, r, nil)
	case !asked:
		p.raise(pod, slot, working.requests)
	}
	return inFlight, ""
}

// switching is of a pod whose idle slot has got the image.
func (p *pass) switching(pod *Pod, m *memory) (class, string) {
	r := &pod.record
	slot := pod.slot(r.Slot)
	serves := m.word.serves(r.Version)
	late := p.now.Sub(r.At) >= p.deadline
	switch {
	case slot.image != r.New:
		return never, fmt.Sprintf("somebody else has given %s the image %s: finish by hand, and delete the annotation %s", r.Slot, slot.image, stateAnnotation)
	case serves && (m.failing != "" || late && !m.good):
		return p.turnBack(pod, m)
	case serves:
		return p.observe(pod, m)
	case r.New != p.Upgrade.Spec.Image:
		return p.abort(pod, "another image was asked for", true)
	case m.word.refused(r.At) != "":
		return p.abort(pod, "the generation that serves refuses the new one: "+m.word.refused(r.At), false)
	}
	if why := cmp.Or(slot.broken(r.Restarts), p.stalled(pod, m)); why != "" {
		return p.abort(pod, why, false)
	}
	if late {
		return p.abort(pod, fmt.Sprintf("its new proxy does not serve after %s%s", p.deadline, said(m.word)), false)
	}
	p.ask(pod, m, askEvery)
	return inFlight, ""
}

// broken is why a slot that has got an image cannot run it; "" if that is not known.
func (s *slot) broken(before int32) string {
	switch {
	case slices.Contains(cannotPull, s.waiting), slices.Contains(cannotStart, s.waiting):
		return s.waiting + ": " + s.message
	case s.cutOff: // the kubelet was started anew, and starts the slot again
		return ""
	case s.restarts > before+1, s.restarts > before && (s.ended || slices.Contains(endsAgain, s.waiting)):
		return fmt.Sprintf("its new proxy ended with exit status %d: %s", s.lastExitCode, s.message)
	}
	return ""
}

// stalled is why a slot does not start its new image: the kubelet has ended what ran in it, has given up on the next for now, and says of a
// native sidecar no more than that. While it pulls an image it says nothing at all.
func (p *pass) stalled(pod *Pod, m *memory) string {
	slot := pod.slot(pod.record.Slot)
	switch {
	case !slot.ended || slot.restarts > pod.record.Restarts || pod.ready:
		m.stalled = time.Time{}
	case m.stalled.IsZero():
		m.stalled = p.now
	case p.now.Sub(m.stalled) >= stallLimit:
		return "its image is not started; kubectl describe pod says why"
	}
	return ""
}

func said(w *Word) string {
	switch {
	case w == nil:
		return ""
	case w.Err != nil:
		return ": " + w.Err.Error()
	}
	for _, g := range w.Generations {
		if a := g.LastAttempt; a != nil && a.Result != "success" {
			return ": " + a.Result + ": " + a.Reason
		}
	}
	return ""
}

// observe is of a pod whose new proxy serves. The last word on it is said at the end.
func (p *pass) observe(pod *Pod, m *memory) (class, string) {
	if m.good {
		return p.drain(pod, m)
	}
	r := pod.record
	slot := pod.slot(r.Slot)
	every := askServing
	switch worse := m.word.worse(r.Version, pod.other(r.Slot).version, r.Before); {
	case !m.served.IsZero() && slot.restarts > m.restarts:
		m.failing = fmt.Sprintf("its new proxy ended with exit status %d while it was watched: %s", slot.lastExitCode, slot.message)
	case worse != "":
		m.failing = worse
	case !pod.ready || !slot.ready || slot.restarts == r.Restarts:
		m.served, every = time.Time{}, askEvery
	case m.served.IsZero():
		m.served, m.restarts = p.now, slot.restarts
	case !m.word.At.Before(m.served.Add(p.limits.observe)):
		m.good = true
		return p.drain(pod, m)
	case p.now.Sub(m.served) >= p.limits.observe:
		every = askEvery
	}
	p.ask(pod, m, every)
	return inFlight, ""
}

// drain waits until the old generation idles, and then gives its slot the empty image.
func (p *pass) drain(pod *Pod, m *memory) (class, string) {
	r := pod.record
	if !m.word.alone(r.Version) {
		p.ask(pod, m, askServing)
		return draining, ""
	}
	old := pod.other(r.Slot)
	r.Step, r.At, r.Restarts, r.Served = stepResetting, p.now.UTC(), old.restarts, pod.slot(r.Slot).restarts
	r.started(old.name, r.Empty, p.now)
	p.write(pod, old.name+" gets the empty image", r, map[string]string{
		contract.VersionAnnotation + old.name:  "0",
		contract.VersionAltAnnotation + r.Slot: "0",
	}, image(old.name, r.Empty))
	return draining, ""
}

// turnBack is of a pod whose new proxy serves and is worse than the old one: once that idles, it takes over again.
func (p *pass) turnBack(pod *Pod, m *memory) (class, string) {
	if m.failing == "" {
		m.failing = fmt.Sprintf("it is not ready %s after its new image", p.deadline)
	}
	if !m.word.alone(pod.record.Version) {
		p.ask(pod, m, askServing)
		return inFlight, ""
	}
	return p.abort(pod, m.failing, false)
}

// abort gives the new slot the empty image again. The old one serves, as it did.
func (p *pass) abort(pod *Pod, reason string, superseded bool) (class, string) {
	const enough = 512
	r := pod.record
	if !p.lowerFirst(pod) {
		return inFlight, ""
	}
	slot, old := pod.slot(r.Slot), pod.other(r.Slot)
	r.Step, r.At, r.Restarts, r.Superseded = stepAborting, p.now.UTC(), slot.restarts, superseded
	reason = strings.Join(strings.Fields(reason), " ") // of several lines, as a termination message is
	r.Reason = strings.ToValidUTF8(reason[:min(len(reason), enough)], "")
	r.started(r.Slot, r.Empty, p.now)
	p.write(pod, r.Slot+" gets the empty image again: "+r.Reason, r, map[string]string{
		contract.VersionAnnotation + r.Slot:      "0",
		contract.VersionAltAnnotation + old.name: "0",
	}, image(r.Slot, r.Empty))
	if superseded {
		return inFlight, ""
	}
	return failed, r.Reason
}

// lowerFirst reports whether the new slot may have the empty image now. To the kubelet its requests are part of what it remembers of a start: where the
// upgrade before has just given the slot the empty image, with the requests of a proxy, the same with those of an idle slot is another start,
// and the pod is spared a wait of 10 s.
func (p *pass) lowerFirst(pod *Pod) bool {
	r, m := &pod.record, p.of(pod)
	if !r.free(r.Slot, r.Empty).After(p.now) {
		return true
	}
	if m.lowering.IsZero() {
		m.lowering = p.now
	}
	return p.now.Sub(m.lowering) >= lowerLimit || p.lowered(pod, r.Slot)
}

// back reports whether the slot of a pod that failed runs the empty image again.
func (p *pass) back(pod *Pod) bool {
	r := &pod.record
	slot := pod.slot(r.Slot)
	return r.Step == stepAborting && slot.image == r.Empty && slot.ready && slot.restarts > r.Restarts
}

// resetting is of a pod whose old slot has got the empty image: done if it runs that.
func (p *pass) resetting(pod *Pod) (class, string) {
	r := &pod.record
	old := pod.other(r.Slot)
	switch {
	case old.image != r.Empty: // somebody has begun the next one
		return done, ""
	case slices.Contains(cannotPull, old.waiting), slices.Contains(cannotStart, old.waiting):
		return failed, fmt.Sprintf("slot %s cannot idle: %s: %s", old.name, old.waiting, old.message)
	case !old.ready || old.restarts == r.Restarts, !p.lowered(pod, old.name):
		return draining, ""
	}
	return done, ""
}

// lowered reports whether an idle slot has its low requests again, and sees to it.
func (p *pass) lowered(pod *Pod, name string) bool {
	slot, low := pod.slot(name), pod.record.Idle
	if low == nil || !low.lower(slot.requests) {
		return true
	}
	p.raise(pod, slot, *low)
	return false
}

// raise gives a slot requests by the subresource.
func (p *pass) raise(pod *Pod, s *slot, to requests) {
	patch := pod.patch(nil, map[string]any{"name": s.name, "resources": map[string]any{"requests": to}})
	p.plan.Writes = append(p.plan.Writes, Write{Pod: pod, Resize: true, Patch: patch, What: "the requests of " + s.name})
}

func image(slot, image string) map[string]any { return map[string]any{"name": slot, "image": image} }

func (p *pass) write(pod *Pod, what string, r record, annotations map[string]string, containers ...map[string]any) {
	all := map[string]string{stateAnnotation: r.text()}
	for key, value := range annotations {
		all[key] = value
	}
	p.plan.Writes = append(p.plan.Writes, Write{Pod: pod, Patch: pod.patch(all, containers...), What: what})
}

// ask has the agent of a pod asked, unless it was a moment ago.
func (p *pass) ask(pod *Pod, m *memory, every time.Duration) {
	if since := p.now.Sub(m.asked); since < every || m.asking && since < askLimit {
		return
	}
	m.asked, m.asking = p.now, true
	p.plan.Ask = append(p.plan.Ask, pod)
}
