package restart

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
)

// way is how a workload is made to have new pods.
type way string

const (
	byTemplate  way = "a new " + restartedAt + " in its template"
	byRestartAt way = "a new spec.restartAt"
	byEviction  way = "its pods evicted one by one"
	byWaiting   way = "nothing but to wait: its pods are being replaced already"
)

// restartedAt is kubectl's annotation, which other tools know as well.
const restartedAt = "kubectl.kubernetes.io/restartedAt"

// plan is what is to be done to one workload.
type plan struct {
	owner  *cluster.Owner
	old    map[types.UID]bool // the pods that are to go
	stale  int                // how many of them differ
	reason string             // why
	way    way
	keep   int    // how many old pods its strategy keeps
	keeps  string // the field that says so
	skip   string // why it is left alone; "": it is not
}

// workload is what of an owner says how it gets new pods.
type workload struct {
	Metadata struct {
		Generation      int64 `json:"generation"`
		OwnerReferences []struct{ Kind, Name string }
		ManagedFields   []struct {
			Manager string     `json:"manager"`
			Time    *time.Time `json:"time"`
		} `json:"managedFields"`
	} `json:"metadata"`
	Spec   spec `json:"spec"`
	Status struct {
		ObservedGeneration     any        `json:"observedGeneration"` // a number; a Rollout's is a text
		Replicas               int        `json:"replicas"`
		UpdatedReplicas        int        `json:"updatedReplicas"`
		DesiredNumberScheduled int        `json:"desiredNumberScheduled"`
		UpdatedNumberScheduled int        `json:"updatedNumberScheduled"`
		RestartedAt            *time.Time `json:"restartedAt"`
		Conditions             []struct{ Type, Status, Reason, Message string }
	} `json:"status"`
}

type spec struct {
	Replicas  *int       `json:"replicas"`
	Paused    bool       `json:"paused"`
	RestartAt *time.Time `json:"restartAt"`
	Template  struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	} `json:"template"`
	UpdateStrategy struct {
		Type          string              `json:"type"`
		Partition     *intstr.IntOrString `json:"partition"`
		Paused        bool                `json:"paused"`
		RollingUpdate struct {
			Partition         *intstr.IntOrString `json:"partition"`
			Paused            bool                `json:"paused"`
			PodUpdatePolicy   string              `json:"podUpdatePolicy"`
			RollingUpdateType string              `json:"rollingUpdateType"`
		} `json:"rollingUpdate"`
		// ManualUpdate is a UnitedDeployment's: how many pods of each subset stay as they are.
		ManualUpdate struct {
			Partitions map[string]int `json:"partitions"`
		} `json:"manualUpdate"`
	} `json:"updateStrategy"`
}

func read(owner *cluster.Owner) (*workload, error) {
	w := new(workload)
	err := json.Unmarshal(owner.Text, w)
	if err == nil && owner.Kind == "UnitedDeployment" {
		err = w.ofSubsets(owner.Text)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", owner.Kind, owner.Namespace, owner.Name, err)
	}
	return w, nil
}

// ofSubsets takes of a UnitedDeployment's template how its subsets' workloads get new pods.
func (w *workload) ofSubsets(text []byte) error {
	var united struct {
		Spec struct {
			Template map[string]struct {
				Spec spec `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(text, &united); err != nil {
		return err
	}
	whole := w.Spec
	for _, of := range united.Spec.Template { // the API server takes one alone
		w.Spec = of.Spec
	}
	w.Spec.Replicas, w.Spec.UpdateStrategy.ManualUpdate = whole.Replicas, whole.UpdateStrategy.ManualUpdate
	w.Spec.UpdateStrategy.Partition, w.Spec.UpdateStrategy.RollingUpdate.Partition = nil, nil // each subset gets its own
	return nil
}

// decide fills in how the workload gets new pods, or why it is left alone.
func (p *plan) decide() error {
	if p.owner.Kind == "Pod" {
		p.skip = "nobody makes it anew: delete it, and create it again"
		return nil
	}
	if p.owner.Kind == "Job" {
		p.skip = "a Job's pods are not replaced: they end with it"
		return nil
	}
	if !p.owner.Known() {
		p.skip = fmt.Sprintf("%s %s is not known here: restart it as its operator says", p.owner.APIVersion, p.owner.Kind)
		return nil
	}
	w, err := read(p.owner)
	if err != nil {
		return err
	}
	p.way = w.way(p.owner.Kind)
	if field := w.paused(); field != "" && p.way != byEviction {
		p.skip = "it is paused: " + field
		return nil
	}
	if p.way == byTemplate {
		p.keep, p.keeps = w.kept(p.owner)
	}
	if p.stale > 0 && p.stale <= p.keep {
		p.skip = p.keeps + " keeps them"
		return nil
	}
	if w.underWay(p) {
		p.way = byWaiting
	}
	return nil
}

func (w *workload) way(kind string) way {
	s := w.Spec.UpdateStrategy
	inPlace := strings.HasPrefix(s.Type, "InPlace") || strings.HasPrefix(s.RollingUpdate.PodUpdatePolicy, "InPlace") || strings.HasPrefix(s.RollingUpdate.RollingUpdateType, "InPlace")
	switch {
	case kind == "Rollout":
		return byRestartAt
	// Kruise gives an annotation to a pod in place, which then is the same pod.
	case kind == "ReplicaSet", kind == "ReplicationController", s.Type == "OnDelete", inPlace:
		return byEviction
	}
	return byTemplate
}

// paused is the field that says so.
func (w *workload) paused() string {
	switch {
	case w.Spec.Paused:
		return "spec.paused"
	case w.Spec.UpdateStrategy.Paused:
		return "spec.updateStrategy.paused"
	case w.Spec.UpdateStrategy.RollingUpdate.Paused:
		return "spec.updateStrategy.rollingUpdate.paused"
	}
	return ""
}

// kept is how many pods stay as they are whatever the template says.
func (w *workload) kept(owner *cluster.Owner) (pods int, field string) {
	s, field := w.Spec.UpdateStrategy, "spec.updateStrategy.rollingUpdate.partition"
	if subsets := s.ManualUpdate.Partitions; len(subsets) > 0 {
		for _, n := range subsets {
			pods += n
		}
		return min(pods, len(owner.Pods)), "spec.updateStrategy.manualUpdate.partitions"
	}
	partition := s.RollingUpdate.Partition
	if s.Partition != nil {
		partition, field = s.Partition, "spec.updateStrategy.partition"
	}
	if partition == nil {
		return 0, ""
	}
	if owner.Kind == "StatefulSet" && partition.Type == intstr.Int {
		for _, pod := range owner.Pods {
			ordinal, err := strconv.Atoi(pod.Name[strings.LastIndex(pod.Name, "-")+1:])
			if err == nil && ordinal < partition.IntValue() {
				pods++
			}
		}
		return pods, field
	}
	pods, err := intstr.GetScaledValueFromIntOrPercent(partition, len(owner.Pods), true)
	if err != nil {
		return 0, ""
	}
	return min(pods, len(owner.Pods)), field
}

// underWay reports whether the pods are being replaced by right ones already, as they are when this command was interrupted: the
// template is newer than every pod, or the newest pod does not differ.
func (w *workload) underWay(p *plan) bool {
	if p.way == byEviction || !w.progressing() {
		return false
	}
	var newest *corev1.Pod
	for _, pod := range p.owner.Pods {
		if newest == nil || newest.CreationTimestamp.Before(&pod.CreationTimestamp) {
			newest = pod
		}
	}
	return newest == nil || !p.old[newest.UID] || w.restarted(p.way).After(newest.CreationTimestamp.Time)
}

// restarted is when the workload was told last to have new pods.
func (w *workload) restarted(way way) time.Time {
	if way == byRestartAt {
		if w.Spec.RestartAt == nil {
			return time.Time{}
		}
		return *w.Spec.RestartAt
	}
	at, _ := time.Parse(time.RFC3339, w.Spec.Template.Metadata.Annotations[restartedAt]) // the zero time is long ago
	return at
}

// progressing reports whether pods are being replaced, as far as the status says.
func (w *workload) progressing() bool {
	s := w.Status
	if w.behind() {
		return true
	}
	if w.Spec.RestartAt != nil && (s.RestartedAt == nil || s.RestartedAt.Before(*w.Spec.RestartAt)) {
		return true
	}
	return s.UpdatedReplicas < s.Replicas || s.UpdatedNumberScheduled < s.DesiredNumberScheduled
}

// behind reports whether the controller has not seen the workload as it is.
func (w *workload) behind() bool {
	seen, ok := w.Status.ObservedGeneration.(float64)
	return ok && int64(seen) < w.Metadata.Generation
}

// desired is how many pods there are to be.
func (w *workload) desired(kind string) int {
	switch {
	case kind == "DaemonSet":
		return w.Status.DesiredNumberScheduled
	case w.Spec.Replicas != nil:
		return *w.Spec.Replicas
	}
	return 1
}

// stuck is why the workload's controller says that it goes no further; "" if it does not say so.
func (w *workload) stuck() string {
	for _, c := range w.Status.Conditions {
		if c.Type == "Progressing" && c.Status == "False" && c.Reason == "ProgressDeadlineExceeded" {
			return c.Message
		}
	}
	return ""
}

// refused is why its controller cannot make pods; "" if it does not say so.
func (w *workload) refused() string {
	for _, c := range w.Status.Conditions {
		if c.Type == "ReplicaFailure" && c.Status == "True" {
			return c.Message
		}
	}
	return ""
}
