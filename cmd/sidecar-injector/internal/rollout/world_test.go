package rollout

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"understudy.mesh/pkg/contract"
)

const (
	oldImage, newImage, emptyImage, badImage = "proxy:v1", "proxy:v2", "empty:v1", "proxy:bad"
	silentImage                              = badImage + "-silent" // of which the kubelet does not say why it cannot be started
	slotA, slotB                             = contract.ProxyContainer, contract.SecondContainer
)

// node plays the API server, the kubelets and the agents of some pods, on a clock of its own.
type node struct {
	t       testing.TB
	now     time.Time
	pods    map[string]*fakePod
	views   []*Pod
	stale   bool // views are to be listed anew
	engine  *Engine
	upgrade *SidecarUpgrade
	budgets []Budget

	writes, asks int
	events       []string
	// refuse lets a write fail; drain is how long old generations have connections; noRoom that no node has room.
	refuse      func(Write) bool
	pull, drain time.Duration
	noRoom      bool
	maxFlying   int
	unreadyEver int
	names       []string
	// requests are what the generation of a version has answered; nil: agents do not tell.
	requests func(p *fakePod, version int64) contract.Requests
}

// fakePod is a pod with its kubelet and its agents.
type fakePod struct {
	*corev1.Pod
	view *Pod
	// due is when a slot runs the image that it has; kills what happens then.
	due     map[string]time.Time
	serving string    // the slot that serves
	drained time.Time // until when the other one drains
	version int64     // of the generation that serves
	old     int64     // of the one before
	starts  map[string]time.Time
}

func newNode(t testing.TB, n int, change ...func(int, *corev1.Pod)) *node {
	f := &node{
		t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), pods: map[string]*fakePod{}, engine: New(), pull: 3 * time.Second, drain: time.Minute, stale: true,
		upgrade: &SidecarUpgrade{Spec: Spec{Image: newImage, Bake: &metav1.Duration{}, Soak: &metav1.Duration{}, RequestedBy: "alice"}},
	}
	for i := range n {
		p := fleetPod(i)
		for _, c := range change {
			c(i, p)
		}
		f.pods[p.Name] = &fakePod{Pod: p, due: map[string]time.Time{}, serving: slotA, version: 1, starts: map[string]time.Time{}}
	}
	return f
}

// fleetPod is the ith of a fleet whose Deployments have 100 pods.
func fleetPod(i int) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("pod-%05d", i), Namespace: "shop", UID: types.UID(strconv.Itoa(i)), ResourceVersion: "1", Labels: map[string]string{"app": fmt.Sprintf("app-%d", i/100)},
			Annotations: map[string]string{
				contract.VersionAnnotation + slotA: "1", contract.VersionAltAnnotation + slotA: "0",
				contract.VersionAnnotation + slotB: "0", contract.VersionAltAnnotation + slotB: "1",
			},
			OwnerReferences: []metav1.OwnerReference{{UID: types.UID(fmt.Sprintf("owner-%d", i/100)), Controller: new(true)}},
		},
		Spec:   corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}, {Name: slotA, Image: oldImage}, {Name: slotB, Image: emptyImage}}},
		Status: corev1.PodStatus{PodIP: "10.0.0.1", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Ready: true, Started: new(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		})
	}
	return p
}

func (f *node) status(p *fakePod, slot string) *corev1.ContainerStatus {
	return &p.Status.ContainerStatuses[slices.IndexFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == slot })]
}

func (p *fakePod) image(slot string) string {
	return p.Spec.Containers[slices.IndexFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == slot })].Image
}

func (p *fakePod) changed() {
	n, _ := strconv.Atoi(p.ResourceVersion)
	p.ResourceVersion, p.view = strconv.Itoa(n+1), nil
}

// tick is a second of the kubelets and agents.
func (f *node) tick() {
	f.now = f.now.Add(time.Second)
	for _, p := range f.pods {
		for slot, at := range p.due {
			if !f.now.Before(at) {
				delete(p.due, slot)
				f.runs(p, slot)
			}
		}
		if len(p.due) > 0 || p.view == nil {
			f.stale = true
		}
	}
}

// runs is that the kubelet has started what a slot is to run.
func (f *node) runs(p *fakePod, slot string) {
	s, image := f.status(p, slot), p.image(slot)
	defer p.changed()
	ready := corev1.ConditionTrue
	switch {
	case strings.HasPrefix(image, badImage):
		s.Ready, s.State = false, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}}
		if image == silentImage {
			s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
		}
		ready = corev1.ConditionFalse
	default:
		s.Ready, s.Started, s.State = true, new(true), corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		s.RestartCount++
		version, _ := strconv.ParseInt(p.Annotations[contract.VersionAnnotation+slot], 10, 64)
		if version > p.version {
			p.old, p.version, p.serving, p.drained = p.version, version, slot, f.now.Add(f.drain)
		}
	}
	p.Status.Conditions[0].Status = ready
	if ready == corev1.ConditionFalse {
		f.unreadyEver++
	}
}

// write is the API server's part.
func (f *node) write(w Write) {
	f.writes++
	p := f.pods[w.Pod.Name]
	if p == nil || f.refuse != nil && f.refuse(w) {
		return
	}
	var sent patch
	if err := json.Unmarshal(w.Patch, &sent); err != nil || sent.Metadata.ResourceVersion != p.ResourceVersion {
		f.t.Fatalf("%s: %s: the patch is of version %s, the pod of %s: %v", w.Pod.Name, w.What, sent.Metadata.ResourceVersion, p.ResourceVersion, err)
	}
	if f.noRoom && w.Resize && strings.Contains(string(w.Patch), `"1Gi"`) {
		p.Status.Conditions = append(p.Status.Conditions[:1], corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: "Deferred", Message: "node full"})
	}
	before, _ := json.Marshal(p.Pod)
	merged, err := strategicpatch.StrategicMergePatch(before, w.Patch, &corev1.Pod{})
	if err != nil {
		f.t.Fatal(err)
	}
	was := p.Pod
	p.Pod = &corev1.Pod{}
	if err := json.Unmarshal(merged, p.Pod); err != nil {
		f.t.Fatal(err)
	}
	for i, c := range p.Spec.Containers {
		switch {
		case c.Image != was.Spec.Containers[i].Image:
			f.started(p, c)
		case w.Resize && !f.noRoom:
			f.status(p, c.Name).Resources = &corev1.ResourceRequirements{Requests: c.Resources.Requests}
		}
	}
	p.changed()
	f.stale = true
}

// started is that a slot was given another image: what ran ends, and the kubelet remembers.
func (f *node) started(p *fakePod, c corev1.Container) {
	key := c.Name + "/" + c.Image + "/" + c.Resources.Requests.Memory().String()
	if last, ok := p.starts[key]; ok && f.now.Sub(last) < kubeletRemembers && !f.upgrade.Spec.Force {
		f.t.Errorf("%s %s: %s starts for the second time within %s: its pod would be unready", f.now.Format(time.TimeOnly), p.Name, key, f.now.Sub(last))
	}
	p.starts[key] = f.now
	p.due[c.Name] = f.now.Add(f.pull)
	if c.Name == p.serving && c.Image == emptyImage {
		if f.now.Before(p.drained) {
			f.t.Errorf("%s: %s is stopped, and its successor still drains", p.Name, c.Name)
		}
		p.version, p.serving = p.old, map[string]string{slotA: slotB, slotB: slotA}[c.Name]
	} else if c.Image == emptyImage && p.image(p.serving) == emptyImage {
		f.t.Errorf("%s: no slot has a proxy", p.Name)
	} else if c.Image == emptyImage && f.now.Before(p.drained) {
		f.t.Errorf("%s: %s is stopped while it drains", p.Name, c.Name)
	}
}

// word is what the agent of a pod says.
func (f *node) word(p *fakePod) *Word {
	w := &Word{HandoffDir: "/etc/asm/uds", At: f.now, Generations: []Generation{{Role: roleServing, Version: strconv.FormatInt(p.version, 10)}}}
	if p.version > 1 {
		role := roleStandby
		if f.now.Before(p.drained) {
			role = "draining"
		}
		w.Generations = append(w.Generations, Generation{Role: role, Version: strconv.FormatInt(p.old, 10)})
	}
	if f.requests != nil {
		for i := range w.Generations {
			version, _ := strconv.ParseInt(w.Generations[i].Version, 10, 64)
			w.Generations[i].Requests = new(f.requests(p, version))
		}
	}
	return w
}

func (f *node) world() World {
	if f.stale {
		f.views = f.views[:0]
		if len(f.names) != len(f.pods) {
			f.names = slices.Sorted(maps.Keys(f.pods))
		}
		for _, name := range f.names {
			p := f.pods[name]
			if p.view == nil {
				p.view = View(p.Pod)
			}
			f.views = append(f.views, p.view)
		}
		f.stale = false
	}
	return World{Upgrade: f.upgrade, Pods: f.views, Budgets: f.budgets}
}

// step is a step of the engine, and what it says done.
func (f *node) step() Plan {
	plan := f.engine.Step(f.now, f.world())
	f.upgrade.Status = plan.Status
	for _, e := range plan.Events {
		f.events = append(f.events, e.Reason+": "+e.Message)
	}
	for _, p := range plan.Ask {
		f.asks++
		if fake := f.pods[p.Name]; fake != nil {
			f.engine.Hear(p.UID, f.word(fake))
		}
	}
	for _, w := range plan.Writes {
		f.write(w)
	}
	f.maxFlying = max(f.maxFlying, int(plan.Status.Pods.InFlight))
	return plan
}

// run goes on until the upgrade is over.
func (f *node) run(limit time.Duration) (took time.Duration) {
	f.t.Helper()
	began := f.now
	for f.now.Sub(began) < limit {
		f.step()
		if s := f.upgrade.Status; s.Finished != nil {
			return f.now.Sub(began)
		}
		f.tick()
	}
	f.t.Fatalf("not over after %s: %+v", limit, f.upgrade.Status)
	return 0
}

// images demands what the slots of every pod have.
func (f *node) images(working, idle string) {
	f.t.Helper()
	for name, p := range f.pods {
		p.view = View(p.Pod)
		if w, i := p.view.Images(); w != working || i != idle || !p.view.settled() || !p.view.ready {
			f.t.Errorf("%s: %s and %s, settled %v, ready %v, want %s and %s", name, w, i, p.view.settled(), p.view.ready, working, idle)
		}
	}
}

// ask makes the next request of the same upgrade.
func (f *node) ask(image string) {
	f.upgrade.Spec.Image = image
	f.upgrade.Spec.RequestedAt = &metav1.Time{Time: f.now}
}

// served is for how long the generation has that serves.
func (f *node) served(p *fakePod) time.Duration { return f.now.Sub(p.drained.Add(-f.drain)) }

func quantity(text string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(text)}
}

// small gives the idle slot small requests.
func small(_ int, p *corev1.Pod) {
	p.Spec.Containers[1].Resources.Requests, p.Spec.Containers[2].Resources.Requests = quantity("1Gi"), quantity("16Mi")
}

func pdb(name, app string, allowed int) Budget {
	return Budget{name, labels.SelectorFromSet(labels.Set{"app": app}), allowed}
}
