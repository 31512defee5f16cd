package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/profile"
	"understudy.mesh/tests/policytable"
)

func policyOf(boxes string) Policy {
	p := Policy{Namespace: "understudy-system", Tags: []string{"prod"}}
	if err := json.Unmarshal([]byte(policytable.Row{Boxes: boxes}.Injection()), &p.Injection); err != nil {
		panic(err) // of a constant
	}
	return p
}

// Every row, with every label of the namespace, everything that a pod may say, and every selector that may match.
func TestDecideIsTheManualsTable(t *testing.T) {
	values := []string{policytable.Absent, "true", "false", "true ", " False", "TRUE", "yes", ""}
	n := 0
	for _, r := range policytable.Rows() {
		policytable.Every([]string{policytable.Absent, "enabled", "disabled", "other", "Enabled", ""}, values, values, func(p policytable.Pod) {
			n++
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{}}}
			set(pod.Labels, LabelInject, p.Label)
			set(pod.Annotations, LabelInject, p.Annotation)
			if p.Never {
				pod.Labels["never"] = "x"
			}
			if p.Always {
				pod.Labels["always"] = ""
			}
			ns := Namespace{Name: "shop", Labels: map[string]string{}}
			set(ns.Labels, LabelInjection, p.Namespace)
			want, rule := r.Wants(p)
			v := Decide(policyOf(r.Boxes), ns, pod)
			if v.Inject != want || v.Rule != rule || (len(v.Warnings) > 0) != p.Warned() {
				t.Fatalf("boxes %q, %+v: %+v, want %v by %s, warned %v", r.Boxes, p, v, want, rule, p.Warned())
			}
		})
	}
	if n != 8*6*8*8*4 {
		t.Errorf("%d cases", n)
	}
}

func set(m map[string]string, key, value string) {
	if value != policytable.Absent {
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
