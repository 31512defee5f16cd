// Package rollout owns the decision of an upgrade in place: what is to be done next with the pods of a namespace, so that each gets
// another image of the proxy in its idle slot, hands over, and none is unready for it. It asks and writes nothing by itself: it is told
// what is, and what time it is, and says what to do. What it knows is in a SidecarUpgrade and in an annotation of each pod, so that
// another process can go on.
//
// The markers (+kubebuilder) and comments of SidecarUpgrade become deploy/chart/crds: make crd.
// +groupName=understudy.mesh
// +versionName=v1alpha1
package rollout

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// What a SidecarUpgrade is called by the API server.
const (
	Kind     = "SidecarUpgrade"
	Resource = "sidecarupgrades"
)

// SidecarUpgrade is an upgrade of the proxies of its namespace in place: the pods that have two slots get another image, one after
// another, without a restart. The object named default counts.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=su
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="want the name default: the one object of a namespace that counts"
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Done",type=integer,JSONPath=`.status.pods.done`
// +kubebuilder:printcolumn:name="Total",type=integer,JSONPath=`.status.pods.total`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.pods.failed`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SidecarUpgrade struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What is asked for.
	Spec Spec `json:"spec"`
	// What became of it.
	Status Status `json:"status,omitempty"`
}

// Spec is what is asked for.
// +kubebuilder:validation:XValidation:rule="!has(self.allowedImages) || self.image in self.allowedImages",message="the image is not in allowedImages"
type Spec struct {
	// The proxy's image that the pods are to run.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9][a-zA-Z0-9._\-/:@+]*$`
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image"`
	// Which pods of the namespace. Default: all that have two slots.
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// How many pods may be in the middle of a hand-over or unready at once, of the namespace and of each owner: a number or a part,
	// rounded up, at least one. Default: 2%.
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:Pattern=`^([1-9][0-9]{0,5}|(100|[1-9]?[0-9])%)$`
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
	// With so many failed pods no further one is begun. Default: 1.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	MaxFailures *int32 `json:"maxFailures,omitempty"`
	// How long a pod whose new proxy serves is watched before it counts: it must stay ready, and have no clearly higher share of
	// 5xx than the old one. Default: 10s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('1h')",message="want 0s to 1h"
	Observe *metav1.Duration `json:"observe,omitempty"`
	// After how many upgraded pods there is a pause: numbers or parts, rounded up. Default: 1, 1%, 10%.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	Canary []intstr.IntOrString `json:"canary,omitempty"`
	// How long the pause after the first pod is. Default: 30m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="want 0s to 720h"
	Bake *metav1.Duration `json:"bake,omitempty"`
	// How long the pause after every other step of canary is. Default: 5m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="want 0s to 720h"
	Soak *metav1.Duration `json:"soak,omitempty"`
	// How long a pod may take from its new image to a new proxy that serves; then it has failed. Default: 10m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10s') && duration(self) <= duration('24h')",message="want 10s to 24h"
	Deadline *metav1.Duration `json:"deadline,omitempty"`
	// No pod is begun; what was begun is finished.
	Paused bool `json:"paused,omitempty"`
	// PodDisruptionBudgets do not count.
	IgnorePDB bool `json:"ignorePDB,omitempty"`
	// A pod is begun as well when the kubelet will let its slot wait, and the pod is unready meanwhile: the third switch within ten minutes.
	Force bool `json:"force,omitempty"`
	// The images that the slots may get, the empty image among them: what the upgrader's account may write is bound by this list.
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	AllowedImages []string `json:"allowedImages,omitempty"`
	// The upgrader's account may write images by tag; otherwise by digest alone.
	AllowTags bool `json:"allowTags,omitempty"`
	// When it was asked for. A later time asks anew, also for the same image.
	RequestedAt *metav1.Time `json:"requestedAt,omitempty"`
	// When it was told to go on; failures before that do not count any more.
	ResumedAt *metav1.Time `json:"resumedAt,omitempty"`
	// Who asked.
	// +kubebuilder:validation:MaxLength=256
	RequestedBy string `json:"requestedBy,omitempty"`
}

// Phase is where an upgrade is.
type Phase string

// The phases.
const (
	Running Phase = "Running" // pods are begun as budgets and canary steps allow
	Paused  Phase = "Paused"  // as it was asked for
	Stopped Phase = "Stopped" // by failures
	Done    Phase = "Done"    // nothing is left to do
)

// Status is what became of an upgrade.
type Status struct {
	// The metadata.generation that this speaks of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Running, Paused, Stopped (by failures) or Done.
	Phase Phase `json:"phase,omitempty"`
	// Why nothing is begun at the moment.
	Waiting string `json:"waiting,omitempty"`
	// Counts the images that were asked for.
	Run int64 `json:"run,omitempty"`
	// The image of this run, and when it was asked for.
	Image       string       `json:"image,omitempty"`
	RequestedAt *metav1.Time `json:"requestedAt,omitempty"`
	// What most pods ran before: what an undo goes back to.
	PreviousImage string `json:"previousImage,omitempty"`
	// How many pods there are, by what is to be said of them.
	Pods Counts `json:"pods,omitempty"`
	// How many pods were done when the pause began that lasts or was last.
	GatePods int32 `json:"gatePods,omitempty"`
	// When that pause began.
	GateSince *metav1.Time `json:"gateSince,omitempty"`
	// The pods that failed, with the reason; at most a hundred.
	// +listType=atomic
	Failed []PodReason `json:"failed,omitempty"`
	// Pods that are left out or wait, with the reason; at most a hundred.
	// +listType=atomic
	Held []PodReason `json:"held,omitempty"`
	// When this run began and ended.
	Started  *metav1.Time `json:"started,omitempty"`
	Finished *metav1.Time `json:"finished,omitempty"`
	// The process that works on it.
	Engine string `json:"engine,omitempty"`
}

// Counts are numbers of pods with two slots.
type Counts struct {
	// All that are selected.
	Total int32 `json:"total"`
	// They run the image, alone.
	Done int32 `json:"done"`
	// The new proxy is on its way, or watched.
	InFlight int32 `json:"inFlight"`
	// The new proxy serves, the old one has connections left.
	Draining int32 `json:"draining"`
	// The old proxy serves, since the new one did not come up, or was worse.
	Failed int32 `json:"failed"`
	// They could not be begun so far, or not at all.
	Held int32 `json:"held"`
}

// PodReason is what is to be said of one pod.
type PodReason struct {
	Pod    string      `json:"pod"`
	Reason string      `json:"reason"`
	Since  metav1.Time `json:"since,omitzero"`
}

// The defaults of a Spec.
const (
	DefaultMaxUnavailable = "2%"
	DefaultMaxFailures    = 1
	DefaultObserve        = 10 * time.Second
	DefaultBake           = 30 * time.Minute
	DefaultSoak           = 5 * time.Minute
	DefaultDeadline       = 10 * time.Minute
)

// defaultCanary is after how many pods there is a pause.
func defaultCanary() []intstr.IntOrString {
	return []intstr.IntOrString{intstr.FromInt32(1), intstr.FromString("1%"), intstr.FromString("10%")}
}

// limits are a Spec's with the defaults in it.
type limits struct {
	unavailable                   intstr.IntOrString
	failures                      int
	observe, bake, soak, deadline time.Duration
	canary                        []intstr.IntOrString
}

func (s *Spec) limits() limits {
	duration := func(d *metav1.Duration, otherwise time.Duration) time.Duration {
		if d == nil {
			return otherwise
		}
		return d.Duration
	}
	l := limits{
		unavailable: intstr.FromString(DefaultMaxUnavailable), failures: DefaultMaxFailures, canary: s.Canary,
		observe: duration(s.Observe, DefaultObserve), bake: duration(s.Bake, DefaultBake), soak: duration(s.Soak, DefaultSoak),
		deadline: duration(s.Deadline, DefaultDeadline),
	}
	if s.MaxUnavailable != nil {
		l.unavailable = *s.MaxUnavailable
	}
	if s.MaxFailures != nil {
		l.failures = int(*s.MaxFailures)
	}
	if s.Canary == nil {
		l.canary = defaultCanary()
	}
	return l
}

// part is a number or a part of all, rounded up, at least one. What is neither was refused by the API server, and counts as one.
func part(of intstr.IntOrString, all int) int {
	n, err := intstr.GetScaledValueFromIntOrPercent(&of, all, true)
	if err != nil {
		return 1
	}
	return max(n, 1)
}
