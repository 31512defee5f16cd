package rollout

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/contract"
)

// stateAnnotation is where a pod has what the engine must not forget of it.
const stateAnnotation = "upgrade.understudy.mesh/state"

// Pod is what the engine knows of a pod. It is small: there are twenty thousand of them.
type Pod struct {
	// ObjectMeta is the pod's, less what nobody here reads.
	metav1.ObjectMeta
	// IP and StatusPort are where its agent answers.
	IP         string
	StatusPort int
	// ready is its condition, by which Services send to it.
	ready bool
	// Outdated is the setting that only a new pod would get; "" if there is none besides the image.
	Outdated string

	owner  string // the controller's uid
	list   string // the field of the spec that has the slots
	slots  [2]slot
	record record
	broken error // of the record
	resize resizing
}

// slot is one of the two containers in which generations take turns.
type slot struct {
	name, image  string
	version      int64 // 0: it is idle
	requests     requests
	actual       *requests // what the kubelet has given it; nil: it does not say
	ready        bool
	restarts     int32
	running      bool
	waiting      string // the reason
	message      string // with waiting or with the end of a life
	ended        bool   // the present life has
	cutOff       bool   // its last life ended because its kubelet did
	lastExitCode int32
}

// resizing is what the kubelet says of new requests that it has not given yet.
type resizing struct{ reason, message string }

// Slotted reports whether a pod has our two slots.
func (p *Pod) Slotted() bool { return p.slots[0].name != "" && p.slots[1].name != "" }

// Injected is the image that the pod was created with, as far as the engine has kept it.
func (p *Pod) Injected() string {
	working, _ := p.roles()
	return cmp.Or(p.record.Injected, working.image)
}

// SlotNames are the containers of the two slots: the one that serves, or that is to, and the other.
func (p *Pod) SlotNames() (working, idle string) {
	w, i := p.roles()
	return w.name, i.name
}

// Images are those of the two slots: the one that serves, or that is to, and the other.
func (p *Pod) Images() (working, idle string) {
	w, i := p.roles()
	return w.image, i.image
}

// roles are the slots by their versions: the higher one works.
func (p *Pod) roles() (working, idle *slot) {
	if p.slots[1].version > p.slots[0].version {
		return &p.slots[1], &p.slots[0]
	}
	return &p.slots[0], &p.slots[1]
}

// settled reports whether one slot works and the other is idle.
func (p *Pod) settled() bool {
	w, i := p.roles()
	return w.version > 0 && i.version == 0
}

func (p *Pod) slot(name string) *slot {
	if p.slots[1].name == name {
		return &p.slots[1]
	}
	return &p.slots[0]
}

func (p *Pod) other(name string) *slot {
	if p.slots[1].name == name {
		return &p.slots[0]
	}
	return &p.slots[1]
}

// View is what the engine keeps of a pod.
func View(p *corev1.Pod) *Pod {
	v := &Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
			DeletionTimestamp: p.DeletionTimestamp, Labels: p.Labels, CreationTimestamp: p.CreationTimestamp,
		},
		IP: p.Status.PodIP, StatusPort: contract.StatusPort,
	}
	if c := metav1.GetControllerOf(p); c != nil {
		v.owner = string(c.UID)
	}
	v.findSlots(p)
	v.condition(p)
	if text, ok := p.Annotations[stateAnnotation]; ok {
		v.record, v.broken = parseRecord(text)
	}
	return v
}

func (p *Pod) findSlots(of *corev1.Pod) {
	for _, in := range []struct {
		list       string
		containers []corev1.Container
		statuses   []corev1.ContainerStatus
	}{{"containers", of.Spec.Containers, of.Status.ContainerStatuses}, {"initContainers", of.Spec.InitContainers, of.Status.InitContainerStatuses}} {
		for i := range in.containers {
			c := &in.containers[i]
			at := slices.Index([]string{contract.ProxyContainer, contract.SecondContainer}, c.Name)
			if at < 0 {
				continue
			}
			p.list = in.list
			p.slots[at] = slot{name: c.Name, image: c.Image, requests: requestsOf(c.Resources.Requests)}
			s := &p.slots[at]
			s.version, _ = strconv.ParseInt(of.Annotations[contract.VersionAnnotation+c.Name], 10, 64)
			if n := slices.IndexFunc(in.statuses, func(s corev1.ContainerStatus) bool { return s.Name == c.Name }); n >= 0 {
				s.status(&in.statuses[n])
			}
			if port := statusPort(c.Args); port > 0 {
				p.StatusPort = port
			}
		}
	}
}

// statusPort is that of a proxy's arguments; 0 if they do not say.
func statusPort(args []string) int {
	i := slices.Index(args, "--statusPort")
	if i < 0 || i+1 >= len(args) {
		return 0
	}
	n, _ := strconv.Atoi(args[i+1])
	return n
}

func (s *slot) status(from *corev1.ContainerStatus) {
	s.ready, s.restarts = from.Ready && (from.Started == nil || *from.Started), from.RestartCount
	if from.Resources != nil && from.Resources.Requests != nil {
		s.actual = new(requestsOf(from.Resources.Requests))
	}
	if last := from.LastTerminationState.Terminated; last != nil {
		s.lastExitCode, s.message, s.cutOff = last.ExitCode, cmp.Or(last.Message, last.Reason), strings.Contains(last.Message, contract.HookCutOff)
	}
	switch now := from.State; {
	case now.Running != nil:
		s.running = true
	case now.Waiting != nil:
		s.waiting, s.message = now.Waiting.Reason, cmp.Or(now.Waiting.Message, s.message)
	case now.Terminated != nil:
		s.ended, s.lastExitCode, s.message = true, now.Terminated.ExitCode, cmp.Or(now.Terminated.Message, now.Terminated.Reason)
		s.cutOff = strings.Contains(now.Terminated.Message, contract.HookCutOff)
	}
}

func (p *Pod) condition(of *corev1.Pod) {
	for _, c := range of.Status.Conditions {
		switch c.Type {
		case corev1.PodReady:
			p.ready = c.Status == corev1.ConditionTrue
		case corev1.PodResizePending:
			if c.Status == corev1.ConditionTrue {
				p.resize = resizing{c.Reason, c.Message}
			}
		}
	}
}

// patch is a strategic merge patch of the pod as it was seen, and of no later one.
type patch struct {
	Metadata metadataPatch  `json:"metadata"`
	Spec     map[string]any `json:"spec,omitempty"`
}

type metadataPatch struct {
	UID             string            `json:"uid"`
	ResourceVersion string            `json:"resourceVersion"`
	Annotations     map[string]string `json:"annotations,omitempty"`
}

func (p *Pod) patch(annotations map[string]string, containers ...map[string]any) []byte {
	out := patch{Metadata: metadataPatch{string(p.UID), p.ResourceVersion, annotations}}
	if len(containers) > 0 {
		out.Spec = map[string]any{p.list: containers}
	}
	text, err := json.Marshal(out)
	if err != nil { // strings and quantities can always be written
		panic(fmt.Sprintf("write the patch of pod %s: %v", p.Name, err))
	}
	return text
}
