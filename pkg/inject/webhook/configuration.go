package webhook

import (
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"understudy.mesh/pkg/inject"
)

// Name is that of the Service, the Deployment and the MutatingWebhookConfiguration.
const Name = "sidecar-injector"

const (
	// timeoutSeconds is how long the API server waits for an answer, which takes a millisecond: it is for a replica that is lost.
	timeoutSeconds = 5
	servicePort    = 443
)

// istioNamespace has istiod, which is to start whether the injector runs or not.
const istioNamespace = "istio-system"

// Options is what the entries of the configuration depend on.
type Options struct {
	// Namespace is the injector's own.
	Namespace string
	// Revisions are the values of istio.io/rev that are ours.
	Revisions []string
	// AllNamespaces: pods of namespaces without a label are injected too.
	AllNamespaces bool
	// OnlyAsked: no pod is injected that does not ask for it by label or annotation.
	OnlyAsked bool
	// Paused: the API server asks about nothing.
	Paused bool
	// Default: the namespace label istio-injection is ours.
	Default bool
	// CABundle is whom the API server trusts; nil: somebody else says so.
	CABundle []byte
}

// entry is what one webhook of the configuration adds to what all have in common.
type entry struct {
	name               string
	namespaces, labels []metav1.LabelSelectorRequirement
	conditions         []admissionregistrationv1.MatchCondition
}

// Webhooks are the entries of the configuration. Each pod that could be injected matches exactly one of them, and of others as few
// as selectors can tell: while no injector answers, what matches cannot be created.
func Webhooks(o Options) []admissionregistrationv1.MutatingWebhook {
	webhooks := []admissionregistrationv1.MutatingWebhook{}
	if o.Paused {
		return webhooks
	}
	for _, e := range o.entries() {
		webhooks = append(webhooks, o.webhook(e))
	}
	return webhooks
}

// entries are Istio's, and one for namespaces whose istio-injection says neither enabled nor disabled. Its value decides before the
// revision does, and a selector has no "or".
func (o Options) entries() []entry {
	entries := []entry{
		{name: "rev.namespace", namespaces: requirements(in(inject.LabelRevision, o.Revisions...), absent(inject.LabelInjection))},
		{name: "rev.object", namespaces: requirements(absent(inject.LabelRevision), absent(inject.LabelInjection)), labels: requirements(in(inject.LabelRevision, o.Revisions...))},
	}
	if !o.Default {
		return entries
	}
	unlabelled := requirements(absent(inject.LabelInjection), absent(inject.LabelRevision))
	entries = append(entries,
		entry{name: "namespace", namespaces: requirements(in(inject.LabelInjection, "enabled"))},
		entry{
			name: "object", namespaces: unlabelled, labels: requirements(present(inject.LabelInject), absent(inject.LabelRevision)),
			conditions: conditions("label-says-yes", labelSaysYes),
		})
	if !o.AllNamespaces {
		return entries
	}
	return append(entries,
		entry{
			name: "auto", namespaces: unlabelled, labels: requirements(absent(inject.LabelRevision)),
			conditions: conditions("label-does-not-say-yes", "!("+labelSaysYes+")"),
		},
		entry{name: "other", namespaces: requirements(present(inject.LabelInjection), notIn(inject.LabelInjection, "enabled", "disabled"))})
}

func (o Options) webhook(e entry) admissionregistrationv1.MutatingWebhook {
	excluded := append(slices.Clone(inject.SystemNamespaces), istioNamespace, o.Namespace)
	service := &admissionregistrationv1.ServiceReference{Namespace: o.Namespace, Name: Name, Path: new(Path), Port: new(int32(servicePort))}
	return admissionregistrationv1.MutatingWebhook{
		Name:         e.name + "." + Name + ".understudy.mesh",
		ClientConfig: admissionregistrationv1.WebhookClientConfig{Service: service, CABundle: o.CABundle},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule: admissionregistrationv1.Rule{
				APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: new(admissionregistrationv1.NamespacedScope),
			},
		}},
		FailurePolicy:           new(admissionregistrationv1.Fail),
		MatchPolicy:             new(admissionregistrationv1.Equivalent),
		NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: append(e.namespaces[:len(e.namespaces):len(e.namespaces)], notIn(corev1.LabelMetadataName, excluded...))},
		ObjectSelector:          &metav1.LabelSelector{MatchExpressions: append(e.labels[:len(e.labels):len(e.labels)], notIn(inject.LabelInject, "false"))},
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          new(int32(timeoutSeconds)),
		AdmissionReviewVersions: []string{"v1"},
		ReinvocationPolicy:      new(admissionregistrationv1.IfNeededReinvocationPolicy),
		MatchConditions:         append(o.common(), e.conditions...),
	}
}

// What selectors cannot say, in CEL. Nothing here can fail, whatever a pod has: a condition that fails refuses the pod.
const (
	hasLabel      = "has(object.metadata.labels) && '" + inject.LabelInject + "' in object.metadata.labels"
	hasAnnotation = "has(object.metadata.annotations) && '" + inject.LabelInject + "' in object.metadata.annotations"
	labelSaysYes  = hasLabel + " && object.metadata.labels['" + inject.LabelInject + "'].lowerAscii() == 'true'"
	saysNo        = "((" + hasLabel + ") ? object.metadata.labels['" + inject.LabelInject + "'].lowerAscii() == 'false'" +
		" : (" + hasAnnotation + " && object.metadata.annotations['" + inject.LabelInject + "'].trim().lowerAscii() == 'false'))"
	hostNetwork = "has(object.spec) && has(object.spec.hostNetwork) && object.spec.hostNetwork"
	mirror      = "has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations"
	windows     = "has(object.spec) && (has(object.spec.os) && has(object.spec.os.name) && object.spec.os.name == 'windows'" +
		" || has(object.spec.nodeSelector) && 'kubernetes.io/os' in object.spec.nodeSelector && object.spec.nodeSelector['kubernetes.io/os'] == 'windows')"
	hasRevision = "has(object.metadata.labels) && '" + inject.LabelRevision + "' in object.metadata.labels"
)

// common are the conditions of all entries.
func (o Options) common() []admissionregistrationv1.MatchCondition {
	ours := fmt.Sprintf("object.metadata.labels['%s'] in ['%s']", inject.LabelRevision, strings.Join(o.Revisions, "', '"))
	all := conditions(
		"does-not-say-no", "!"+saysNo,
		"not-host-network", "!("+hostNetwork+")",
		"not-mirror", "!("+mirror+")",
		"not-windows", "!("+windows+")",
		"not-another-revision", "!("+hasRevision+") || "+ours,
	)
	if o.OnlyAsked {
		all = append(all, conditions("asks", "("+hasLabel+") || ("+hasAnnotation+")")...)
	}
	return all
}

// conditions are pairs of a name and an expression.
func conditions(pairs ...string) []admissionregistrationv1.MatchCondition {
	var all []admissionregistrationv1.MatchCondition
	for pair := range slices.Chunk(pairs, 2) {
		all = append(all, admissionregistrationv1.MatchCondition{Name: pair[0], Expression: pair[1]})
	}
	return all
}

func requirements(all ...metav1.LabelSelectorRequirement) []metav1.LabelSelectorRequirement {
	return all
}

func in(key string, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}
}

func notIn(key string, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: values}
}

func present(key string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpExists}
}

func absent(key string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}
}

// ClaimsDefault is the name of a webhook of a configuration by which another injector takes the pods of namespaces with
// istio-injection=enabled; "" is none. One that speaks of the label and matches nothing (Istio's way to let go of it) has no claim.
func ClaimsDefault(c *admissionregistrationv1.MutatingWebhookConfiguration) string {
	enabled := labels.Set{inject.LabelInjection: "enabled", corev1.LabelMetadataName: "any"}
	for _, w := range c.Webhooks {
		if w.NamespaceSelector == nil || !asksAboutPods(w) || !mentions(w.NamespaceSelector, inject.LabelInjection) {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(w.NamespaceSelector); err == nil && selector.Matches(enabled) {
			return w.Name
		}
	}
	return ""
}

// mentions reports whether a selector asks for a label: one that leaves out what has it asks for everything else.
func mentions(s *metav1.LabelSelector, key string) bool {
	if _, ok := s.MatchLabels[key]; ok {
		return true
	}
	return slices.ContainsFunc(s.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool {
		return r.Key == key && (r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpExists)
	})
}

func asksAboutPods(w admissionregistrationv1.MutatingWebhook) bool {
	return slices.ContainsFunc(w.Rules, func(r admissionregistrationv1.RuleWithOperations) bool {
		created := slices.Contains(r.Operations, admissionregistrationv1.Create) || slices.Contains(r.Operations, admissionregistrationv1.OperationAll)
		return created && (slices.Contains(r.Resources, "pods") || slices.Contains(r.Resources, "*"))
	})
}
