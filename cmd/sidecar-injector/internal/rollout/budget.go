package rollout

import (
	"fmt"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// look says what is to be said of a pod, and does what is due for one that was begun.
func (p *pass) look(pod *Pod) {
	if pod.DeletionTimestamp != nil {
		return
	}
	m := p.of(pod)
	what, reason := p.progress(pod, m)
	selected := p.selector.Matches(labels.Set(pod.Labels))
	p.all[""]++
	if pod.owner != "" {
		p.all[pod.owner]++
	}
	switch unready := !pod.ready; {
	case what == failed && !p.back(pod):
		p.unsettled = true
		fallthrough
	case what == inFlight:
		p.flying = append(p.flying, pod)
		p.disturb(pod)
	case unready:
		p.disturb(pod)
	}
	if !selected && (what != inFlight && what != draining) {
		return
	}
	p.count(pod, m, what, reason)
}

// disturb counts a pod that is unready, or may become so by us.
func (p *pass) disturb(pod *Pod) {
	p.disturbed[""]++
	if pod.owner != "" {
		p.disturbed[pod.owner]++
	}
}

// count adds a pod to the numbers of the status.
func (p *pass) count(pod *Pod, m *memory, what class, reason string) {
	c := &p.status.Pods
	c.Total++
	if what != held && what != candidate {
		m.held = time.Time{}
	}
	mine := pod.record.Run == p.status.Run
	switch what {
	case candidate:
		p.candidates = append(p.candidates, pod)
	case done:
		c.Done++
		m.word = nil // it would be kept for every pod to the end
		if mine {
			p.passed++
			p.watch(pod, m)
		}
	case inFlight:
		c.InFlight++
		if mine {
			p.begun++
		}
	case draining:
		c.Draining++
		if mine {
			p.passed++
		}
	case failed:
		c.Failed++
		p.fail(pod, reason, pod.record.At)
	case held:
		p.hold(pod, m, reason)
	case never:
		p.name(pod, reason)
	}
}

// hold notes that a pod cannot be begun for now.
func (p *pass) hold(pod *Pod, m *memory, reason string) {
	if m.held.IsZero() {
		m.held = p.now
	}
	if p.now.Sub(m.held) < max(p.deadline, heldLimit) {
		p.waits = true
	}
	p.name(pod, reason)
}

func (p *pass) name(pod *Pod, reason string) {
	p.status.Pods.Held++
	if len(p.status.Held) < maxReasons {
		p.status.Held = append(p.status.Held, PodReason{Pod: pod.Name, Reason: reason})
	}
}

// watch fails a pod that was upgraded and is worse for it while the canary lasts.
func (p *pass) watch(pod *Pod, m *memory) {
	if p.status.GateSince == nil || p.now.Sub(p.status.GateSince.Time) > max(p.bake, p.soak) {
		return
	}
	if pod.ready {
		m.unready = time.Time{}
	} else if m.unready.IsZero() {
		m.unready = p.now
	}
	working, _ := pod.roles()
	switch {
	case working.restarts > pod.record.Served:
		p.fail(pod, fmt.Sprintf("its proxy ended after the upgrade, with exit status %d: %s", working.lastExitCode, working.message), p.now)
	case !m.unready.IsZero() && p.now.Sub(m.unready) >= unreadyLimit:
		p.fail(pod, fmt.Sprintf("it is unready for %s after the upgrade", unreadyLimit), p.now)
	}
}

// fail notes a failure, once a pod.
func (p *pass) fail(pod *Pod, reason string, at time.Time) {
	if p.forgiven(at) || slices.ContainsFunc(p.status.Failed, func(f PodReason) bool { return f.Pod == pod.Name }) || len(p.status.Failed) >= maxReasons {
		return
	}
	p.status.Failed = append(slices.Clone(p.status.Failed), PodReason{pod.Name, reason, metav1.NewTime(at.UTC().Truncate(time.Second))})
	p.event(pod, true, "UpgradeFailed", p.status.Image+": "+reason)
}

// gate is how many pods of this run may be begun by the steps of the canary, those that were begun included.
func (p *pass) gate() int {
	type gate struct {
		pods int
		wait time.Duration
		name string
	}
	gates := []gate{{1, p.bake, "bake"}}
	total := int(p.status.Pods.Total)
	for _, c := range p.canary {
		if n := part(c, total); n > gates[len(gates)-1].pods {
			gates = append(gates, gate{n, p.soak, "soak"})
		}
	}
	for _, g := range gates {
		if p.passed < g.pods {
			return g.pods
		}
		if int(p.status.GatePods) < g.pods || p.status.GateSince == nil {
			p.status.GatePods, p.status.GateSince = int32(g.pods), p.time()
			p.plan.Urgent = true
		}
		if end := p.status.GateSince.Add(g.wait); int(p.status.GatePods) == g.pods && p.now.Before(end) {
			if len(p.candidates) > 0 {
				p.status.Waiting = fmt.Sprintf("%s after %d pods, until %s", g.name, g.pods, end.UTC().Format(time.RFC3339))
			}
			return p.passed
		}
	}
	return total
}

// admit begins as many candidates as may be begun; left is how many still wait for their turn.
func (p *pass) admit(limit int) (left int) {
	left = len(p.candidates)
	switch {
	case p.Upgrade.Spec.Paused, len(p.status.Failed) >= p.failures:
		return left
	}
	free := min(limit-p.passed-p.begun, part(p.unavailable, p.all[""])-p.disturbed[""])
	if free <= 0 && left > 0 && p.status.Waiting == "" && limit > p.passed+p.begun && len(p.flying) == 0 {
		p.status.Waiting = fmt.Sprintf("%d pods are unready, as many as maxUnavailable allows", p.disturbed[""])
	}
	for _, pod := range p.candidates {
		if free <= 0 {
			return left
		}
		m := p.of(pod)
		switch reason, wait := p.blocked(pod); {
		case reason != "":
			p.hold(pod, m, reason)
			left--
		case wait:
		default:
			if why := p.begin(pod, m); why != "" {
				p.hold(pod, m, why)
				left--
				continue
			}
			free--
			p.flying = append(p.flying, pod)
			p.disturb(pod)
		}
	}
	return left
}

// blocked is why a pod cannot be begun besides its own state; wait is that its owner has enough of them at work.
func (p *pass) blocked(pod *Pod) (reason string, wait bool) {
	if pod.owner != "" {
		if limit, now := part(p.unavailable, p.all[pod.owner]), p.disturbed[pod.owner]; now >= limit {
			return "", true
		}
	}
	if p.Upgrade.Spec.IgnorePDB {
		return "", false
	}
	for _, b := range p.Budgets {
		if !b.Selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		flying := 0
		for _, f := range p.flying {
			if b.Selector.Matches(labels.Set(f.Labels)) {
				flying++
			}
		}
		switch {
		case b.Allowed == 0:
			return "held by PDB " + b.Name + ", which allows no disruption", false
		case flying >= b.Allowed:
			return "", true
		}
	}
	return "", false
}

// conclude says in which phase all this is. left are the pods that wait for their turn.
func (p *pass) conclude(left int) {
	was := p.status.Phase
	c, s := &p.status.Pods, &p.status
	atWork := c.InFlight > 0 || c.Draining > 0 || p.unsettled
	switch {
	case p.Upgrade.Spec.Paused:
		s.Phase = Paused
	case len(s.Failed) >= p.failures && (left > 0 || atWork || p.waits || s.Phase == Stopped):
		s.Phase = Stopped
	case left > 0 || atWork || p.waits:
		s.Phase = Running
	default:
		s.Phase = Done
	}
	s.ObservedGeneration = p.Upgrade.Generation
	over := (s.Phase == Done || s.Phase == Stopped) && !atWork
	switch {
	case !over:
		s.Finished = nil
	case s.Finished == nil:
		s.Finished = p.time()
	}
	if s.Phase == was {
		return
	}
	p.plan.Urgent = true
	switch s.Phase {
	case Done:
		p.event(nil, c.Failed+c.Held > 0, "Done", fmt.Sprintf("%d of %d pods run %s; %d failed, %d were left out", c.Done, c.Total, s.Image, c.Failed, c.Held))
	case Stopped:
		p.event(nil, true, "Stopped", fmt.Sprintf("%d pods failed, the last of them %s: %s", len(s.Failed), s.Failed[len(s.Failed)-1].Pod, s.Failed[len(s.Failed)-1].Reason))
	case Paused:
		p.event(nil, false, "Paused", "as "+who(&p.Upgrade.Spec)+" asked")
	case Running:
		if was == Paused {
			p.event(nil, false, "Resumed", "as "+who(&p.Upgrade.Spec)+" asked")
		}
	}
}

func sortedKeys(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }
