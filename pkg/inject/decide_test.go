package inject

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/profile"
)

// row is one of the manual's table: which boxes are ticked, and what becomes of pods inside the gate: y, n, or - where the
// row has no selectors.
type row struct {
	boxes                               string
	gate                                string // which namespaces: not-disabled or enabled
	yes, no, never, always, nothingSaid byte
}

// oracle is the table as users have it.
var oracle = []row{
	{"A", "not-disabled", 'y', 'n', '-', '-', 'n'},
	{"AC", "not-disabled", 'y', 'n', 'n', 'y', 'n'},
	{"B", "enabled", 'y', 'n', '-', '-', 'y'},
	{"BC", "enabled", 'y', 'n', 'n', 'y', 'y'},
	{"AB", "not-disabled", 'y', 'n', '-', '-', 'y'},
	{"ABC", "not-disabled", 'y', 'n', 'n', 'y', 'y'},
	{"C", "enabled", 'y', 'n', 'n', 'y', 'n'},
	{"", "enabled", 'y', 'n', '-', '-', 'n'},
}

func policyOf(boxes string) Policy {
	p := Policy{Namespace: "understudy-system", Tags: []string{"prod"}}
	p.EnableNamespacesByDefault = new(strings.Contains(boxes, "A"))
	p.AutoInjectByAnnotation = new(strings.Contains(boxes, "B"))
	if strings.Contains(boxes, "C") {
		exists := func(key string) metav1.LabelSelector {
			return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpExists}}}
		}
		p.NeverInjectSelector = []metav1.LabelSelector{exists("other"), exists("never")}
		p.AlwaysInjectSelector = []metav1.LabelSelector{exists("always")}
	}
	return p
}

// admits says by the oracle whether a namespace's label opens the gate.
func (r row) admits(label string) bool {
	if r.gate == "enabled" {
		return label == "enabled"
	}
	return label != "disabled"
}

// wants says by the oracle what becomes of a pod, and by which kind of rule.
func (r row) wants(namespace, label, annotation string, never, always bool) (inject bool, rule string) {
	said := label
	if label == "absent" {
		said = annotation
	}
	said = strings.ToLower(strings.TrimSpace(said))
	opens := r.admits(namespace) || namespace == "absent" && strings.TrimSpace(strings.ToLower(label)) == "true"
	selectors := strings.Contains(r.boxes, "C")
	switch {
	case namespace == "disabled":
		return false, "namespace-disabled"
	case !opens:
		return false, "namespace-not-selected"
	case said == "false":
		return r.no == 'y', "pod-says-no"
	case said == "true":
		return r.yes == 'y', "pod-says-yes"
	case never && selectors:
		return r.never == 'y', "never-selector[1]"
	case always && selectors:
		return r.always == 'y', "always-selector[0]"
	}
	if strings.Contains(r.boxes, "B") {
		return r.nothingSaid == 'y', "policy-on"
	}
	return r.nothingSaid == 'y', "policy-off"
}

// Every row, with every label of the namespace, everything that a pod may say, and every selector that may match.
func TestDecideIsTheManualsTable(t *testing.T) {
	values := []string{"absent", "true", "false", "true ", " False", "TRUE", "yes", ""}
	both := []bool{false, true}
	n := 0
	for _, r := range oracle {
		for _, namespace := range []string{"absent", "enabled", "disabled", "other", "Enabled", ""} {
			for _, label := range values {
				for _, annotation := range values {
					for _, never := range both {
						for _, always := range both {
							n++
							pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{}}}
							set(pod.Labels, LabelInject, label)
							set(pod.Annotations, LabelInject, annotation)
							if never {
								pod.Labels["never"] = "x"
							}
							if always {
								pod.Labels["always"] = ""
							}
							ns := Namespace{Name: "shop", Labels: map[string]string{}}
							set(ns.Labels, LabelInjection, namespace)
							want, rule := r.wants(namespace, label, annotation, never, always)
							if v := Decide(policyOf(r.boxes), ns, pod); v.Inject != want || v.Rule != rule {
								t.Fatalf("boxes %q, namespace %q, label %q, annotation %q, never %v, always %v: %v, want %v by %s",
									r.boxes, namespace, label, annotation, never, always, v, want, rule)
							}
						}
					}
				}
			}
		}
	}
	if n != 8*6*8*8*4 {
		t.Errorf("%d cases", n)
	}
}

func set(m map[string]string, key, value string) {
	if value != "absent" {
		m[key] = value
	}
}

func TestDecideInOrder(t *testing.T) {
	ours := `{"revision":"understudy","containers":["istio-proxy"]}`
	enabled := map[string]string{LabelInjection: "enabled"}
	type m = map[string]string
	tests := []struct {
		name   string
		boxes  string
		ns     Namespace
		pod    corev1.Pod
		rule   string
		inject bool
	}{
		{"another revision of the namespace", "B", Namespace{Labels: m{LabelRevision: "stable"}}, corev1.Pod{}, "other-revision", false},
		{"another revision, before host network", "B", Namespace{Labels: m{LabelRevision: "stable"}}, corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, "other-revision", false},
		{"another revision of the pod", "B", Namespace{Labels: enabled}, pod(m{LabelRevision: "stable"}, nil), "other-revision", false},
		{"an empty revision", "B", Namespace{Labels: m{LabelRevision: ""}}, corev1.Pod{}, "other-revision", false},
		{"istio-injection beats the namespace's revision", "B", Namespace{Labels: m{LabelRevision: "stable", LabelInjection: "enabled"}}, corev1.Pod{}, "policy-on", true},
		{"our revision opens the namespace", "B", Namespace{Labels: m{LabelRevision: "understudy"}}, corev1.Pod{}, "policy-on", true},
		{"a tag of ours opens the namespace", "B", Namespace{Labels: m{LabelRevision: "prod"}}, corev1.Pod{}, "policy-on", true},
		{"our revision does not beat a label without A", "B", Namespace{Labels: m{LabelRevision: "understudy", LabelInjection: "maybe"}}, corev1.Pod{}, "namespace-not-selected", false},
		{"the label opens a namespace without labels", "", Namespace{}, pod(m{LabelInject: "true"}, nil), "pod-says-yes", true},
		{"the annotation opens none", "", Namespace{}, pod(nil, m{LabelInject: "true"}), "namespace-not-selected", false},
		{"the label does not open a disabled one", "A", Namespace{Labels: m{LabelInjection: "disabled"}}, pod(m{LabelInject: "true"}, nil), "namespace-disabled", false},
		{"host network", "A", Namespace{}, corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, "host-network", false},
		{"a namespace of the system", "A", Namespace{Name: "kube-system"}, pod(m{LabelInject: "true"}, nil), "system-namespace", false},
		{"the injector's own", "A", Namespace{Name: "understudy-system"}, pod(m{LabelInject: "true"}, nil), "own-namespace", false},
		{"a mirror pod", "A", Namespace{}, pod(nil, m{"kubernetes.io/config.mirror": "x"}), "mirror-pod", false},
		{"Windows by os", "A", Namespace{}, corev1.Pod{Spec: corev1.PodSpec{OS: &corev1.PodOS{Name: corev1.Windows}}}, "windows", false},
		{"Windows by selector", "A", Namespace{}, corev1.Pod{Spec: corev1.PodSpec{NodeSelector: m{"kubernetes.io/os": "windows"}}}, "windows", false},
		{"a gateway", "AB", Namespace{}, pod(nil, m{"inject.istio.io/templates": "gateway"}), "other-template", false},
		{"one template more", "AB", Namespace{}, pod(nil, m{"inject.istio.io/templates": "sidecar, custom"}), "other-template", false},
		{"our template", "AB", Namespace{}, pod(nil, m{"inject.istio.io/templates": " sidecar"}), "policy-on", true},
		{"Istio's status", "AB", Namespace{}, pod(nil, m{"sidecar.istio.io/status": `{"revision":"default"}`}), "foreign-agent", false},
		{"no status at all", "AB", Namespace{}, pod(nil, m{"sidecar.istio.io/status": `injected`}), "foreign-agent", false},
		{"our status, with our containers", "AB", Namespace{}, with(pod(nil, m{"sidecar.istio.io/status": ours}), "istio-proxy", "istio-proxy-2", "istio-init"), "policy-on", true},
		{"istio-init without a status", "AB", Namespace{}, with(corev1.Pod{}, "istio-proxy", "", "istio-init"), "foreign-agent", false},
		{"the slots of another", "AB", Namespace{}, with(corev1.Pod{}, "istio-proxy-1", "istio-proxy-2", ""), "foreign-agent", false},
		{"a slot of ours without our status", "AB", Namespace{}, with(corev1.Pod{}, "app", "istio-proxy-2", ""), "foreign-agent", false},
		{"Linkerd", "AB", Namespace{}, with(corev1.Pod{}, "linkerd-proxy", "", ""), "foreign-agent", false},
		{"a lone istio-proxy", "AB", Namespace{}, with(corev1.Pod{}, "istio-proxy", "", ""), "policy-on", true},
		{"host network before the label", "AB", Namespace{Labels: m{LabelInjection: "disabled"}}, corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, "host-network", false},
	}
	for _, tt := range tests {
		v := Decide(policyOf(tt.boxes), tt.ns, &tt.pod)
		if v.Rule != tt.rule || v.Inject != tt.inject {
			t.Errorf("%s: %+v, want %v by %s", tt.name, v, tt.inject, tt.rule)
		}
		if (tt.rule == "other-template") != (len(v.Warnings) == 1) {
			t.Errorf("%s: warnings %q", tt.name, v.Warnings)
		}
	}
	paused := policyOf("AB")
	paused.Paused = new(true)
	if v := Decide(paused, Namespace{}, &corev1.Pod{}); v.Inject || v.Rule != "paused" {
		t.Errorf("paused: %+v", v)
	}
}

func pod(labels, annotations map[string]string) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}}
}

// with adds containers to a pod, "" aside: two to its containers, the last to its init containers.
func with(p corev1.Pod, first, second, initial string) corev1.Pod {
	for _, name := range []string{first, second} {
		if name != "" {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name})
		}
	}
	if initial != "" {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: initial})
	}
	return p
}

func TestDecideNamesWhatItOverrides(t *testing.T) {
	enabled := Namespace{Name: "shop", Labels: map[string]string{LabelInjection: "enabled"}}
	tests := []struct {
		pod  corev1.Pod
		ns   Namespace
		rule string
		over []string
	}{
		{pod(map[string]string{LabelInject: "true", "never": ""}, nil), enabled, "pod-says-yes", []string{"never-selector[1]"}},
		{pod(map[string]string{LabelInject: "false", "always": ""}, nil), enabled, "pod-says-no", []string{"always-selector[0]"}},
		{pod(map[string]string{"never": "", "other": "", "always": ""}, nil), enabled, "never-selector[0]", []string{"always-selector[0]"}},
		{pod(map[string]string{"always": ""}, map[string]string{LabelInject: "true"}), Namespace{}, "namespace-not-selected", []string{"pod-says-yes", "always-selector[0]"}},
		{pod(nil, nil), enabled, "policy-on", nil},
	}
	for _, tt := range tests {
		if v := Decide(policyOf("BC"), tt.ns, &tt.pod); v.Rule != tt.rule || !slices.Equal(v.Overridden, tt.over) {
			t.Errorf("%v: %+v, want %s over %q", tt.pod.ObjectMeta, v, tt.rule, tt.over)
		}
	}
}

// The first scenario of the manual's chapter 2. Its JSON is lost in the manual; its text says what it does: pods with the label
// notinjectapp are not injected in a namespace that is enabled. And the second one: an annotation says yes, with the
// blank that the manual's screen has.
func TestScenariosOfTheManual(t *testing.T) {
	p, err := profile.Decode([]byte(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default"}, "spec": {
		"injection": {"neverInjectSelector": [{"matchExpressions": [{"key": "notinjectapp", "operator": "Exists"}]}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	first := Policy{Injection: *profile.Resolve(profile.Layer{Source: profile.SourceMesh, Spec: &p.Spec}).Injection}
	test1 := Namespace{Name: "test1", Labels: map[string]string{LabelInjection: "enabled"}}
	plain := pod(map[string]string{"app": "details", "version": "v1"}, nil)
	labelled := pod(map[string]string{"app": "details", "version": "v1", "notinjectapp": "details"}, nil)
	annotated := pod(nil, map[string]string{LabelInject: "false"})
	second := Policy{Injection: *profile.Resolve().Injection}
	reviews := pod(nil, map[string]string{LabelInject: "true "})
	for i, tt := range []struct {
		policy Policy
		pod    corev1.Pod
		want   string
	}{
		{first, plain, "true policy-on"}, {first, labelled, "false never-selector[0]"}, {second, annotated, "false pod-says-no"},
		{second, reviews, "true pod-says-yes"},
	} {
		v := Decide(tt.policy, test1, &tt.pod)
		if got := fmt.Sprint(v.Inject, " ", v.Rule); got != tt.want || len(v.Warnings) != 0 {
			t.Errorf("case %d: %+v, want %s", i, v, tt.want)
		}
	}
}

func TestOtherWordsAreUnsetAndWarnedOf(t *testing.T) {
	p := pod(map[string]string{LabelInject: "yes"}, map[string]string{LabelInject: "false"})
	v := Decide(policyOf("AB"), Namespace{}, &p)
	want := `label sidecar.istio.io/inject: "yes" counts as not set: want "true" or "false"`
	if v.Rule != "policy-on" || !slices.Equal(v.Warnings, []string{want}) {
		t.Errorf("%+v", v)
	}
}
