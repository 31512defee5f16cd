package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"understudy.mesh/pkg/profile"
)

var profiles = schema.GroupVersionResource{Group: profile.Group, Version: profile.Version, Resource: "sidecarprofiles"}

// wrongSpecs are those that the API server itself refuses, by field, with what it says of them. Each rule of the kind's definition has one.
var wrongSpecs = []struct{ field, spec, message string }{
	{"spec.capture.excludeInboundPorts", `{"capture": {"excludeInboundPorts": [0]}}`, "want ports from 1 to 65535"},
	{"spec.capture.excludeOutboundIPRanges", `{"capture": {"excludeOutboundIPRanges": ["*"]}}`, "want CIDRs, such as 10.0.0.0/8"},
	{"spec.capture.excludeOutboundPorts", `{"capture": {"excludeOutboundPorts": [65536]}}`, "want ports from 1 to 65535"},
	{"spec.capture.includeInboundPorts", `{"capture": {"includeInboundPorts": [-1]}}`, "want ports from 1 to 65535"},
	{"spec.capture.includeInboundPorts", `{"capture": {"includeInboundPorts": ["*", 80]}}`, "want '*' alone, or ports"},
	{"spec.capture.includeOutboundIPRanges", `{"capture": {"includeOutboundIPRanges": ["*", "10.0.0.0/8"]}}`, "want CIDRs, or '*' alone"},
	{"spec.capture.includeOutboundIPRanges", `{"capture": {"includeOutboundIPRanges": ["10.0.0.1"]}}`, "want CIDRs, or '*' alone"},
	{"spec.capture.includeOutboundPorts", `{"capture": {"includeOutboundPorts": [70000]}}`, "want ports from 1 to 65535"},
	{"spec.hotUpgrade.upgradeDrainDuration", `{"hotUpgrade": {"upgradeDrainDuration": "721h"}}`, "want whole seconds from 0s to 720h"},
	{"spec.init.resources", `{"init": {"resources": {"limits": {"memory": "50"}}}}`, "memory below 4Mi: the unit is missing (1025 is bytes; 1025Mi?)"},
	{"spec.init.resources", `{"init": {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "916m"}}}}`, "the request of cpu is above its limit"},
	{"spec.init.resources", `{"init": {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "512Mi"}}}}`, "the request of memory is above its limit"},
	{"spec.injection.alwaysInjectSelector", `{"injection": {"alwaysInjectSelector": [{}]}}`, "an empty selector matches every pod: want matchLabels or matchExpressions"},
	{"spec.injection.neverInjectSelector", `{"injection": {"neverInjectSelector": [{"matchLabels": {}}]}}`, "an empty selector matches every pod: want matchLabels or matchExpressions"},
	{"spec.proxy.env", `{"proxy": {"env": {"PROXY_CONFIG": "{}"}}}`, "the injector sets this variable: for DNS use spec.dns, for a ProxyConfig proxy.config"},
	{"spec.proxy.resources", `{"proxy": {"resources": {"limits": {"memory": 1025}}}}`, "memory below 4Mi: the unit is missing (1025 is bytes; 1025Mi?)"},
	{"spec.proxy.resources", `{"proxy": {"resources": {"requests": {"cpu": "3"}, "limits": {"cpu": 2}}}}`, "the request of cpu is above its limit"},
	{"spec.proxy.resources", `{"proxy": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}}`, "the request of memory is above its limit"},
	{"spec.proxy.statusPort", `{"proxy": {"statusPort": 15006}}`, "the agent or Envoy has this port: want another, 15020 or 15021"},
	{"spec.proxy.terminationDrainDuration", `{"proxy": {"terminationDrainDuration": "1500ms"}}`, "want whole seconds from 0s to 1h"},
	{"spec.proxy.terminationDrainDuration", `{"proxy": {"terminationDrainDuration": "61m"}}`, "want whole seconds from 0s to 1h"},
	// What is no rule in CEL.
	{"spec.proxy.native", `{"proxy": {"native": "sometimes"}}`, `supported values: "Auto", "Always", "Never"`},
	{"spec.injector.replicaCount", `{"injector": {"replicaCount": 51}}`, "should be less than or equal to 50"},
	{"spec.capture.mode", `{"capture": {"mode": "redirect"}}`, `supported values: "REDIRECT", "TPROXY", "NONE"`},
	{"spec.dns.capture", `{"dns": {"capture": "true"}}`, `must be of type boolean: "string"`},
	{"spec.proxy.terminationDrainDuration", `{"proxy": {"terminationDrainDuration": 10}}`, `must be of type string: "integer"`},
	{"spec.proxy.nonsense", `{"proxy": {"nonsense": 1}}`, "unknown field"},
}

// rules are those of a schema in CEL, each with its field.
func rules(field string, s any) (all []string) {
	object, _ := s.(map[string]any)
	list, _ := object["x-kubernetes-validations"].([]any)
	for _, rule := range list {
		all = append(all, field+": "+rule.(map[string]any)["message"].(string))
	}
	properties, _ := object["properties"].(map[string]any)
	for name, property := range properties {
		all = append(all, rules(strings.TrimPrefix(field+"."+name, "."), property)...)
	}
	return all
}

// createProfile makes a profile, dry.
func (w *world) createProfile(t *testing.T, name, namespace, spec string) error {
	t.Helper()
	object := &unstructured.Unstructured{}
	text := fmt.Sprintf(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": %q}, "spec": %s}`, name, spec)
	if err := json.Unmarshal([]byte(text), &object.Object); err != nil {
		t.Fatal(err)
	}
	_, err := w.dynamic.Resource(profiles).Namespace(namespace).
		Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict})
	return err
}

// wrongProfiles: the API server refuses what is wrong, with the reason and the field.
func (w *world) wrongProfiles(t *testing.T) {
	namespace := w.namespace(t)
	tested := map[string]bool{}
	refused := func(err error, field, message string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, want %q", field, err, message)
		}
		tested[field+": "+message] = true
	}
	for _, p := range wrongSpecs {
		refused(w.createProfile(t, profile.Name, namespace, p.spec), p.field, p.message)
	}
	const other = "want the name default: the one object of a namespace that counts"
	refused(w.createProfile(t, "other", namespace, "{}"), "", other)
	if err := w.createProfile(t, profile.Name, namespace, `{"capture": {"includeInboundPorts": ["*"], "excludeOutboundPorts": ["80", 443]}, "proxy": {"resources": {"limits": {"memory": "4Mi"}}}}`); err != nil {
		t.Errorf("what is right: %v", err)
	}
	crd := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(w.Kubectl(t, "", "get", "customresourcedefinition", "sidecarprofiles.understudy.mesh", "-o", "json")), &crd.Object); err != nil {
		t.Fatal(err)
	}
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil || len(versions) != 1 {
		t.Fatalf("%d versions, %v", len(versions), err)
	}
	schemaOf, _, err := unstructured.NestedMap(versions[0].(map[string]any), "schema", "openAPIV3Schema")
	if err != nil {
		t.Fatal(err)
	}
	all := rules("", schemaOf)
	for _, rule := range all {
		if !tested[rule] {
			t.Errorf("no profile here is refused by the rule %q", rule)
		}
	}
	if len(all) < 20 {
		t.Errorf("only %d rules found: %q", len(all), slices.Sorted(maps.Keys(tested)))
	}
}

// wrongPods are created where every pod is injected: they are refused with a reason, or created with a warning.
func (w *world) wrongPods(t *testing.T, namespace string) {
	volume := func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "istio-envoy", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
	}
	manyLabels := func(p *corev1.Pod) {
		for n := range 5000 {
			metav1.SetMetaDataLabel(&p.ObjectMeta, fmt.Sprintf("example.com/label-%d", n), strings.Repeat("x", 63))
		}
	}
	for _, tt := range []struct {
		name   string
		pod    *corev1.Pod
		words  []string // of the reason, or of the warning
		passes bool
	}{
		{"memory without a unit", pod(annotation("sidecar.istio.io/proxyMemoryLimit", "1025")), []string{"sidecar.istio.io/proxyMemoryLimit", "1025Mi?"}, false},
		{"no quantity", pod(annotation("sidecar.istio.io/proxyCPU", "one")), []string{"sidecar.istio.io/proxyCPU", "one"}, false},
		{"no port", pod(annotation("traffic.sidecar.istio.io/excludeInboundPorts", "80,http")), []string{"excludeInboundPorts", "http"}, false},
		{"no CIDR", pod(annotation("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/33")), []string{"includeOutboundIPRanges", "10.0.0.0/33"}, false},
		{"another mode", pod(annotation("sidecar.istio.io/interceptionMode", "redirect")), []string{"sidecar.istio.io/interceptionMode", "redirect", "TPROXY"}, false},
		{"no ProxyConfig", pod(annotation("proxy.istio.io/config", "concurrency: many")), []string{"proxy.istio.io/config", "concurrency"}, false},
		{"more requested than allowed", pod(annotation("sidecar.istio.io/proxyCPU", "3"), annotation("sidecar.istio.io/proxyCPULimit", "2")), []string{"cpu", "3", "2"}, false},
		{"a volume of ours with another content", pod(volume), []string{"istio-envoy"}, false},
		{"a status of nobody's", pod(annotation("sidecar.istio.io/status", "{")), nil, true},
		{"neither true nor false", pod(label("sidecar.istio.io/inject", "yes")), []string{"sidecar.istio.io/inject", `"yes"`, "counts as not set"}, true},
		{"neither, by annotation", pod(annotation("sidecar.istio.io/inject", "ja")), []string{"sidecar.istio.io/inject", `"ja"`, "counts as not set"}, true},
		{"another template", pod(annotation("inject.istio.io/templates", "gateway")), []string{"gateway", "not injected"}, true},
		{"5,000 labels", pod(manyLabels), nil, true},
		{"what the API server refuses itself: a long label", pod(label("a", strings.Repeat("x", 64))), []string{"metadata.labels", "63"}, false},
		{"annotations beyond its bound", pod(annotation("a", strings.Repeat("x", 300<<10))), []string{"metadata.annotations", "262144"}, false},
	} {
		made, err := w.try(namespace, tt.pod)
		said := strings.Join(made.warnings, "\n")
		if err != nil {
			said = err.Error()
		}
		if (err == nil) != tt.passes {
			t.Errorf("%s: created: %v, want %v: %s", tt.name, err == nil, tt.passes, said)
		}
		for _, word := range tt.words {
			if !strings.Contains(said, word) {
				t.Errorf("%s: it says %q, want %q in it", tt.name, said, word)
			}
		}
		if strings.Contains(said, "failed calling webhook") {
			t.Errorf("%s: that is no answer: %s", tt.name, said)
		}
	}
}
