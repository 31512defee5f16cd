package explain

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/inject"
)

// change is one thing that somebody may do.
type change struct {
	what string
	do   func(p *inject.Policy, n *inject.Namespace, pod *corev1.Pod)
}

// flips are those changes after which the decision is the opposite. They are found by trying them: so they agree with the rules.
func flips(policy inject.Policy, namespace inject.Namespace, pod *corev1.Pod, injected bool) []string {
	var found []string
	for _, c := range changes(policy, pod) {
		p, n, changed := policy, namespace, pod.DeepCopy()
		n.Labels = maps.Clone(namespace.Labels)
		c.do(&p, &n, changed)
		if inject.Decide(p, n, changed).Inject != injected {
			found = append(found, c.what)
		}
	}
	return found
}

func changes(policy inject.Policy, pod *corev1.Pod) []change {
	all := []change{
		podLabel("true"), podLabel("false"),
		namespaceLabel("enabled"), namespaceLabel("disabled"),
		{"the namespace without the label " + inject.LabelRevision, func(_ *inject.Policy, n *inject.Namespace, _ *corev1.Pod) { delete(n.Labels, inject.LabelRevision) }},
		{"the pod without the label " + inject.LabelRevision, func(_ *inject.Policy, _ *inject.Namespace, p *corev1.Pod) { delete(p.Labels, inject.LabelRevision) }},
		{"the pod without hostNetwork", func(_ *inject.Policy, _ *inject.Namespace, p *corev1.Pod) { p.Spec.HostNetwork = false }},
		box("enableNamespacesByDefault", policy.EnableNamespacesByDefault, func(p *inject.Policy, v *bool) { p.EnableNamespacesByDefault = v }),
		box("autoInjectByAnnotation", policy.AutoInjectByAnnotation, func(p *inject.Policy, v *bool) { p.AutoInjectByAnnotation = v }),
		box("paused", policy.Paused, func(p *inject.Policy, v *bool) { p.Paused = v }),
	}
	for key := range maps.Keys(pod.Annotations) {
		if key == inject.AnnotationTemplates || key == inject.AnnotationStatus {
			all = append(all, change{"the pod without the annotation " + key, func(_ *inject.Policy, _ *inject.Namespace, p *corev1.Pod) { delete(p.Annotations, key) }})
		}
	}
	all = append(all, selectors("never", policy.NeverInjectSelector, func(p *inject.Policy) *[]metav1.LabelSelector { return &p.NeverInjectSelector })...)
	return append(all, selectors("always", policy.AlwaysInjectSelector, func(p *inject.Policy) *[]metav1.LabelSelector { return &p.AlwaysInjectSelector })...)
}

func podLabel(value string) change {
	return change{fmt.Sprintf("the pod's label %s=%s", inject.LabelInject, value), func(_ *inject.Policy, _ *inject.Namespace, p *corev1.Pod) {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[inject.LabelInject] = value
	}}
}

func namespaceLabel(value string) change {
	return change{fmt.Sprintf("the namespace's label %s=%s", inject.LabelInjection, value), func(_ *inject.Policy, n *inject.Namespace, _ *corev1.Pod) {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[inject.LabelInjection] = value
	}}
}

// box is a box of the policy, ticked if it is not and the other way round.
func box(name string, value *bool, set func(*inject.Policy, *bool)) change {
	opposite := value == nil || !*value
	return change{fmt.Sprintf("injection.%s: %t", name, opposite), func(p *inject.Policy, _ *inject.Namespace, _ *corev1.Pod) { set(p, &opposite) }}
}

// selectors is a policy without one selector.
func selectors(kind string, list []metav1.LabelSelector, of func(*inject.Policy) *[]metav1.LabelSelector) []change {
	var all []change
	for i := range list {
		all = append(all, change{fmt.Sprintf("injection.%sInjectSelector without [%d]", kind, i), func(p *inject.Policy, _ *inject.Namespace, _ *corev1.Pod) {
			*of(p) = slices.Delete(slices.Clone(list), i, i+1)
		}})
	}
	return all
}
