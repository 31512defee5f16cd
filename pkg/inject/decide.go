// Package inject owns the decision whether a pod is injected, and the patch that does it. Both are pure: what they depend on
// is given to them.
package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// Policy is what decides about pods besides the pods themselves.
type Policy struct {
	profile.Injection // resolved: every field is set
	// Tags are what istio.io/rev may say besides our revision.
	Tags []string
	// Namespace is the injector's own.
	Namespace string
}

// Namespace is what is known of a pod's namespace.
type Namespace struct {
	Name                string
	Labels, Annotations map[string]string
}

// Verdict is a decision and the rule that made it.
type Verdict struct {
	Inject bool
	// Rule is stable: metrics and tests go by it.
	Rule string
	// Overridden are the rules after it that say the opposite, policy-on and policy-off aside.
	Overridden []string
	Warnings   []string
}

// Labels and annotations that decide.
const (
	LabelInject    = "sidecar.istio.io/inject" // also as an annotation
	LabelInjection = "istio-injection"         // of a namespace
	LabelRevision  = "istio.io/rev"            // of a namespace or a pod

	AnnotationTemplates = "inject.istio.io/templates"
	mirror              = "kubernetes.io/config.mirror"
	AnnotationStatus    = "sidecar.istio.io/status"
)

// SystemNamespaces are never injected: the cluster needs them before it has a mesh.
var SystemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// rule is one line of the table: the first that applies decides.
type rule struct {
	name    string
	inject  bool
	applies bool
}

// Decide says whether a pod is injected.
func Decide(policy Policy, namespace Namespace, pod *corev1.Pod) Verdict {
	d := decision{policy, namespace, pod, unset, nil}
	d.value = d.podSays()
	rules := append(d.exemptions(), d.choices()...)
	at := slices.IndexFunc(rules, func(r rule) bool { return r.applies }) // the last one always does
	v := Verdict{Inject: rules[at].inject, Rule: rules[at].name, Warnings: d.warnings}
	for _, r := range rules[at+1:] {
		if r.applies && r.inject != v.Inject && !strings.HasPrefix(r.name, "policy-") {
			v.Overridden = append(v.Overridden, r.name)
		}
	}
	return v
}

type decision struct {
	policy    Policy
	namespace Namespace
	pod       *corev1.Pod
	value     answer
	warnings  []string
}

// answer is what the pod says of itself.
type answer int

const (
	unset answer = iota
	yes
	no
)

// exemptions are the rules that hold whatever the policy is.
func (d *decision) exemptions() []rule {
	rules := []rule{
		{name: "paused", applies: is(d.policy.Paused)},
		{name: "other-revision", applies: d.otherRevision()},
		{name: "host-network", applies: d.pod.Spec.HostNetwork},
		{name: "system-namespace", applies: slices.Contains(SystemNamespaces, d.namespace.Name)},
		{name: "own-namespace", applies: d.namespace.Name != "" && d.namespace.Name == d.policy.Namespace},
		{name: "mirror-pod", applies: has(d.pod.Annotations, mirror)},
		{name: "windows", applies: d.pod.Spec.OS != nil && d.pod.Spec.OS.Name == corev1.Windows || d.pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows)},
		{name: "other-template", applies: d.otherTemplate()},
		{name: "foreign-agent", applies: d.foreignAgent()},
	}
	return rules
}

// choices are the rules by which users choose; the last one always applies.
func (d *decision) choices() []rule {
	rules := []rule{
		{name: "namespace-disabled", applies: d.namespace.Labels[LabelInjection] == "disabled"},
		{name: "namespace-not-selected", applies: !d.gateOpen()},
		{name: "pod-says-no", applies: d.value == no},
		{name: "pod-says-yes", inject: true, applies: d.value == yes},
	}
	for i := range d.policy.NeverInjectSelector {
		rules = append(rules, rule{fmt.Sprintf("never-selector[%d]", i), false, d.matches(&d.policy.NeverInjectSelector[i])})
	}
	for i := range d.policy.AlwaysInjectSelector {
		rules = append(rules, rule{fmt.Sprintf("always-selector[%d]", i), true, d.matches(&d.policy.AlwaysInjectSelector[i])})
	}
	if is(d.policy.AutoInjectByAnnotation) {
		return append(rules, rule{"policy-on", true, true})
	}
	return append(rules, rule{"policy-off", false, true})
}

// podSays reads the label, or else the annotation. The label is there for the API server, whose selectors see no annotations.
func (d *decision) podSays() answer {
	value, kind := d.pod.Labels[LabelInject], "label"
	if !has(d.pod.Labels, LabelInject) {
		value, kind = d.pod.Annotations[LabelInject], "annotation"
		if !has(d.pod.Annotations, LabelInject) {
			return unset
		}
	}
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true":
		return yes
	case "false":
		return no
	}
	d.warn("%s %s: %q counts as not set: want \"true\" or \"false\"", kind, LabelInject, value)
	return unset
}

// otherRevision reports whether namespace or pod belong to another injector.
func (d *decision) otherRevision() bool {
	other := func(labels map[string]string) bool {
		return has(labels, LabelRevision) && !d.isOurs(labels[LabelRevision])
	}
	// As with Istio, istio-injection makes a namespace's revision void.
	return !has(d.namespace.Labels, LabelInjection) && other(d.namespace.Labels) || other(d.pod.Labels)
}

func (d *decision) isOurs(revision string) bool {
	return revision == contract.Revision || slices.Contains(d.policy.Tags, revision)
}

// gateOpen reports whether the namespace's pods are candidates.
func (d *decision) gateOpen() bool {
	value, labelled := d.namespace.Labels[LabelInjection]
	revision, revisioned := d.namespace.Labels[LabelRevision]
	switch {
	case is(d.policy.EnableNamespacesByDefault):
		return value != "disabled"
	case labelled:
		return value == "enabled"
	case revisioned:
		return d.isOurs(revision)
	}
	// The label only: the API server does not ask us for the sake of an annotation, and offline it is to be the same.
	return d.value == yes && has(d.pod.Labels, LabelInject)
}

// otherTemplate reports whether the pod asks for a template that we have not: a gateway that got a sidecar's capture would
// be an outage.
func (d *decision) otherTemplate() bool {
	for _, name := range strings.Split(d.pod.Annotations[AnnotationTemplates], ",") {
		if name = strings.TrimSpace(name); name != "" && name != "sidecar" {
			d.warn("annotation %s: %q: there is no template %q, only sidecar: the pod is not injected", AnnotationTemplates, d.pod.Annotations[AnnotationTemplates], name)
			return true
		}
	}
	return false
}

// foreignContainers are proxies of other meshes, and what Istio and ASM call theirs besides the name that a user may give to
// customise ours.
var foreignContainers = []string{"istio-proxy-1", "istio-proxy-2", "istio-init", "istio-validation",
	"linkerd-proxy", "linkerd-init", "kuma-sidecar", "kuma-init", "consul-dataplane", "consul-connect-envoy-sidecar", "consul-connect-inject-init"}

// foreignAgent reports whether another agent is in the pod already.
func (d *decision) foreignAgent() bool {
	if text, ok := d.pod.Annotations[AnnotationStatus]; ok {
		return !ownStatus(text)
	}
	foreign := func(c corev1.Container) bool { return slices.Contains(foreignContainers, c.Name) }
	return slices.ContainsFunc(d.pod.Spec.Containers, foreign) || slices.ContainsFunc(d.pod.Spec.InitContainers, foreign)
}

// ownStatus reports whether a status annotation is one of ours: it has our revision.
func ownStatus(text string) bool {
	var s struct {
		Revision string `json:"revision"`
	}
	return json.Unmarshal([]byte(text), &s) == nil && s.Revision == contract.Revision
}

// matches reports whether a selector selects the pod. An empty one would select all, and selects none.
func (d *decision) matches(s *metav1.LabelSelector) bool {
	if len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0 {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(d.pod.Labels)) // a wrong one was refused with its profile
}

func (d *decision) warn(format string, args ...any) {
	d.warnings = append(d.warnings, fmt.Sprintf(format, args...))
}

func has(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}

func is(b *bool) bool { return b != nil && *b }
