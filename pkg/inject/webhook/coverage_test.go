package webhook

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"
)

// inWords are the conditions as Go has them; that the API server's CEL says the same, the tests with a real one see.
var inWords = map[string]func(*corev1.Pod) bool{
	"does-not-say-no":        func(p *corev1.Pod) bool { return says(p) != "false" },
	"not-host-network":       func(p *corev1.Pod) bool { return !p.Spec.HostNetwork },
	"not-mirror":             func(*corev1.Pod) bool { return true },
	"not-windows":            func(*corev1.Pod) bool { return true },
	"not-another-revision":   func(p *corev1.Pod) bool { r, ok := p.Labels[inject.LabelRevision]; return !ok || r == "understudy" },
	"asks":                   func(p *corev1.Pod) bool { return says(p) != "" },
	"label-says-yes":         func(p *corev1.Pod) bool { return strings.ToLower(p.Labels[inject.LabelInject]) == "true" },
	"label-does-not-say-yes": func(p *corev1.Pod) bool { return strings.ToLower(p.Labels[inject.LabelInject]) != "true" },
}

// says is what a pod says of itself, by label or else by annotation.
func says(p *corev1.Pod) string {
	value, ok := p.Labels[inject.LabelInject]
	if !ok {
		value = p.Annotations[inject.LabelInject]
	}
	return strings.ToLower(strings.TrimSpace(value))
}

// set is labels without those that are "".
func set(pairs ...string) map[string]string {
	all := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			all[pairs[i]] = pairs[i+1]
		}
	}
	return all
}

// asked is how many entries ask about a pod.
func asked(t *testing.T, o Options, namespace map[string]string, p *corev1.Pod) (n int) {
	t.Helper()
	for _, w := range Webhooks(o) {
		matches := true
		for _, s := range []struct {
			selector *metav1.LabelSelector
			of       map[string]string
		}{{w.NamespaceSelector, namespace}, {w.ObjectSelector, p.Labels}} {
			selector, err := metav1.LabelSelectorAsSelector(s.selector)
			if err != nil {
				t.Fatal(err)
			}
			matches = matches && selector.Matches(labels.Set(s.of))
		}
		for _, c := range w.MatchConditions {
			holds, known := inWords[c.Name]
			if !known {
				t.Fatalf("condition %s: say here what it means", c.Name)
			}
			matches = matches && holds(p)
		}
		if matches {
			n++
		}
	}
	return n
}

// TestWhatIsInjectedIsAskedAboutOnce goes through policies, namespaces and pods: a pod that Decide would inject and the API server does
// not ask about would be left alone in silence, and one that two entries ask about is injected by chance of their order.
func TestWhatIsInjectedIsAskedAboutOnce(t *testing.T) {
	injected, total := 0, 0
	for _, boxes := range [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} {
		for _, always := range [][]metav1.LabelSelector{{}, {{MatchLabels: map[string]string{"app": "a"}}}} {
			policy := inject.Policy{Namespace: "own", Injection: profile.Injection{
				EnableNamespacesByDefault: &boxes[0], AutoInjectByAnnotation: &boxes[1], AlwaysInjectSelector: always,
			}}
			o := Options{Namespace: "own", Revisions: []string{"understudy"}, Default: true, AllNamespaces: boxes[0], OnlyAsked: !boxes[1] && len(always) == 0}
			everyPod(func(namespace map[string]string, p *corev1.Pod) {
				total++
				n := asked(t, o, namespace, p)
				verdict := inject.Decide(policy, inject.Namespace{Name: "shop", Labels: namespace}, p)
				if verdict.Inject {
					injected++
				}
				if n > 1 || verdict.Inject && n != 1 {
					t.Errorf("boxes %v, always %v, namespace %v, pod %v, annotations %v: %s, and %d entries ask", boxes, always, namespace, p.Labels, p.Annotations, verdict.Rule, n)
				}
			})
		}
	}
	if injected < total/20 || injected > total/2 {
		t.Errorf("of %d pods %d are injected: the cases no longer show anything", total, injected)
	}
	t.Logf("%d of %d pods are injected", injected, total)
}

// everyPod calls f for each combination of what a namespace and a pod can say.
func everyPod(f func(namespace map[string]string, p *corev1.Pod)) {
	for _, injection := range []string{"", "enabled", "disabled", "maybe"} {
		for _, revision := range []string{"", "understudy", "canary"} {
			for _, label := range []string{"", "true", "True", "false", "FALSE", "maybe"} {
				for _, annotation := range []string{"", " true", "false"} {
					for _, own := range []string{"", "understudy", "canary"} {
						for _, app := range []string{"", "a"} {
							f(set(inject.LabelInjection, injection, inject.LabelRevision, revision, corev1.LabelMetadataName, "shop"), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
								Labels: set(inject.LabelInject, label, inject.LabelRevision, own, "app", app), Annotations: set(inject.LabelInject, annotation),
							}})
						}
					}
				}
			}
		}
	}
}
