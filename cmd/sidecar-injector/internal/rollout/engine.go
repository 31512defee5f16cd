package rollout

import (
	"cmp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// World is what there is at one moment.
type World struct {
	// Upgrade is what is asked for, and what was written of it last.
	Upgrade *SidecarUpgrade
	// Pods are those of the namespace that have two slots.
	Pods []*Pod
	// Budgets are the namespace's PodDisruptionBudgets.
	Budgets []Budget
}

// Budget is a PodDisruptionBudget.
type Budget struct {
	Name     string
	Selector labels.Selector
	Allowed  int
}

// Write is a change of a pod, as it was seen: the API server refuses it if the pod has changed since.
type Write struct {
	Pod *Pod
	// Resize is that it goes by the subresource.
	Resize bool
	// Patch is a strategic merge patch.
	Patch []byte
	// What is what it does, for the log.
	What string
}

// Event is what a user should know.
type Event struct {
	Pod             *Pod // nil: it is about the whole upgrade
	Warning         bool
	Reason, Message string
}

// Plan is what is to be done.
type Plan struct {
	// Status is what is to be written of the upgrade, before anything else is done if Urgent.
	Status Status
	Urgent bool
	// Ask are the pods whose agents are to be asked.
	Ask    []*Pod
	Writes []Write
	Events []Event
}

// Engine decides. Besides what is written in pods and the upgrade it remembers what it would find out again.
type Engine struct {
	pods   map[types.UID]*memory
	passes int
}

// memory is what is known of a pod besides what it says.
type memory struct {
	word *Word
	// asked is when the agent was asked last, served since when the new proxy serves and the pod is ready.
	asked, served time.Time
	asking        bool  // it has not answered yet
	restarts      int32 // at served
	good          bool  // the new proxy was watched long enough
	// failing is why a pod is to go back once the old generation idles.
	failing string
	// pressed is since when the kubelet does not give the requests, stalled since when it does not start the image, lowering since when
	// its slot's requests are to be low again, held since when a pod cannot be begun, unready since when it is.
	pressed, stalled, lowering, held, unready time.Time
	pass                                      int
}

// New returns an engine that knows nothing yet.
func New() *Engine { return &Engine{pods: map[types.UID]*memory{}} }

const (
	// askEvery is how often a pod's agent is asked while its new proxy starts, askServing while that is watched and the old one drains.
	askEvery, askServing = 2 * time.Second, 5 * time.Second
	// freshWord is how old a word may be for a pod to be begun, or held, on it.
	freshWord = 30 * time.Second
	// roomLimit is how long a node may take to give a slot its requests.
	roomLimit = time.Minute
	// unreadyLimit is how long a pod that was upgraded may be unready in a pause before it counts as failed.
	unreadyLimit = 30 * time.Second
	// lowerLimit is how long the API server may take to lower the requests of a slot that is to go back.
	lowerLimit = 10 * time.Second
	// stallLimit is how long a slot may be ended and not started again.
	stallLimit = 20 * time.Second
	// heldLimit is how long pods that are held are waited for at least: longer than the kubelet remembers.
	heldLimit = 15 * time.Minute
	// askLimit is how long an agent may take to answer before it is asked again.
	askLimit = time.Minute
	// maxReasons is how many pods a status names.
	maxReasons = 100
)

// Hear takes what a pod's agent has said.
func (e *Engine) Hear(pod types.UID, word *Word) {
	if m := e.pods[pod]; m != nil {
		m.word, m.asking = word, false
	}
}

func (e *Engine) of(p *Pod) *memory {
	m := e.pods[p.UID]
	if m == nil {
		m = &memory{}
		e.pods[p.UID] = m
	}
	m.pass = e.passes
	return m
}

// class is what is to be said of a pod.
type class int

const (
	candidate class = iota
	done
	inFlight // begun, and not yet known to be good
	draining // known to be good, and not yet at its end
	failed
	held  // not now
	never // not at all
)

// pass is one look at everything.
type pass struct {
	*Engine
	World
	limits
	now      time.Time
	status   Status
	plan     Plan
	selector labels.Selector

	candidates []*Pod
	// disturbed and all are numbers of pods by owner; "" is the namespace.
	disturbed, all map[string]int
	flying         []*Pod // disturbed by us
	passed, begun  int    // of this run
	waits          bool   // something is held that may come free
	unsettled      bool   // a pod that failed is not back yet
}

// Step looks at everything and says what is to be done now. The same world at the same time is the same plan.
func (e *Engine) Step(now time.Time, w World) Plan {
	e.passes++
	p := &pass{
		Engine: e, World: w, limits: w.Upgrade.Spec.limits(), now: now, status: w.Upgrade.Status,
		disturbed: map[string]int{}, all: map[string]int{}, selector: labels.Everything(),
	}
	slices.SortFunc(p.Pods, func(a, b *Pod) int { return cmp.Compare(a.Name, b.Name) })
	p.open()
	p.status.Pods, p.status.Held, p.status.Waiting = Counts{}, nil, ""
	p.selects()
	for _, pod := range p.Pods {
		p.look(pod)
	}
	limit := p.gate()
	p.conclude(p.admit(limit))
	for uid, m := range e.pods {
		if m.pass != e.passes {
			delete(e.pods, uid)
		}
	}
	p.plan.Status = p.status
	return p.plan
}

// selects finds out which pods are meant. A selector that cannot be read means none, and is waited for to be mended.
func (p *pass) selects() {
	if p.Upgrade.Spec.Selector == nil {
		return
	}
	var err error
	if p.selector, err = metav1.LabelSelectorAsSelector(p.Upgrade.Spec.Selector); err != nil {
		p.selector, p.waits, p.status.Waiting = labels.Nothing(), true, "spec.selector: "+err.Error()
	}
}

// open begins a run if another image was asked for, or one anew.
func (p *pass) open() {
	spec := &p.Upgrade.Spec
	if p.status.Image == spec.Image && p.status.Run > 0 && same(p.status.RequestedAt, spec.RequestedAt) {
		p.forgive()
		return
	}
	previous := p.status.PreviousImage
	undo := p.status.Run > 0 && spec.Image == previous && p.status.Image != spec.Image
	if p.status.Image != spec.Image {
		previous = cmp.Or(p.mostCommon(spec.Image), p.status.Image)
	}
	p.status = Status{Run: p.status.Run + 1, Image: spec.Image, RequestedAt: spec.RequestedAt, PreviousImage: previous, Phase: Running, Started: p.time()}
	p.plan.Urgent = true
	reason := "Started"
	if undo {
		reason = "Undo"
	}
	p.event(nil, false, reason, "the pods get "+spec.Image+", as "+who(spec)+" asked")
}

// forgive lets the failures before spec.resumedAt count no more.
func (p *pass) forgive() {
	resumed := p.Upgrade.Spec.ResumedAt
	if resumed == nil {
		return
	}
	before := len(p.status.Failed)
	p.status.Failed = slices.DeleteFunc(slices.Clone(p.status.Failed), func(f PodReason) bool { return p.forgiven(f.Since.Time) })
	if before > len(p.status.Failed) {
		p.status.Finished = nil
		p.event(nil, false, "Resumed", "it goes on after failures, as "+who(&p.Upgrade.Spec)+" asked")
	}
}

// mostCommon is the image that most pods run besides one.
func (p *pass) mostCommon(besides string) (image string) {
	counts := map[string]int{}
	for _, pod := range p.Pods {
		if working, _ := pod.Images(); working != besides {
			counts[working]++
		}
	}
	for _, of := range sortedKeys(counts) {
		if image == "" || counts[of] > counts[image] {
			image = of
		}
	}
	return image
}

func (p *pass) time() *metav1.Time {
	t := metav1.NewTime(p.now.UTC().Truncate(time.Second))
	return &t
}

func (p *pass) event(pod *Pod, warning bool, reason, message string) {
	p.plan.Events = append(p.plan.Events, Event{pod, warning, reason, message})
}

func same(a, b *metav1.Time) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(b)
}

func who(s *Spec) string { return cmp.Or(s.RequestedBy, "somebody") }
