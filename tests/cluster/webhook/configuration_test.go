package webhook

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// configuration is the API server's, once it has n entries.
func (w *world) configuration(t *testing.T, n int) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	var c *admissionregistrationv1.MutatingWebhookConfiguration
	lab.Eventually(t, limit, fmt.Sprintf("the webhook has %d entries", n), func() (err error) {
		c, err = w.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "sidecar-injector", metav1.GetOptions{})
		if err == nil && len(c.Webhooks) != n {
			err = fmt.Errorf("it has %d", len(c.Webhooks))
		}
		return err
	})
	return c
}

// What a pod is like that none of the conditions may fail on, or let through.
var (
	hostNetwork = func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	windows     = func(p *corev1.Pod) {
		p.Spec.OS = &corev1.PodOS{Name: corev1.Windows}
		p.Spec.SecurityContext, p.Spec.Containers[0].SecurityContext = nil, nil // it has none of Linux's
	}
	onWindows = func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "windows"} }
	onLinux   = func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }
	// mirrored is what a kubelet makes of a file.
	mirrored = func(p *corev1.Pod) {
		p.Spec.NodeName = "node"
		metav1.SetMetaDataAnnotation(&p.ObjectMeta, corev1.MirrorPodAnnotationKey, "hash")
	}
)

// systemPods are what a cluster needs before it has a mesh: its DNS, its network, istiod, and the injector itself.
func systemPods(t *testing.T, w *world) map[string]*corev1.Pod {
	t.Helper()
	d, err := w.client.AppsV1().Deployments(own).Get(t.Context(), "sidecar-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	template := d.Spec.Template
	template.Spec.ServiceAccountName = "" // it need not be there for this
	return map[string]*corev1.Pod{
		"kube-system/coredns":              pod(label("k8s-app", "kube-dns")),
		"kube-public/any":                  pod(),
		"kube-node-lease/any":              pod(),
		"local-path-storage/provisioner":   pod(label("app", "local-path-provisioner")),
		"istio-system/istiod":              pod(label("app", "istiod"), label("istio.io/rev", "default")),
		"istio-system/istio-cni-node":      pod(label("k8s-app", "istio-cni-node"), hostNetwork),
		"kube-flannel/kube-flannel":        pod(label("app", "flannel"), hostNetwork),
		own + "/sidecar-injector":          {ObjectMeta: metav1.ObjectMeta{GenerateName: "sidecar-injector-", Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec},
		own + "/what-does-not-say-no":      pod(),
		own + "/what-says-yes":             pod(label(inject.LabelInject, "true")),
		"kube-system/what-says-yes":        pod(label(inject.LabelInject, "true")),
		"istio-system/what-says-yes":       pod(label(inject.LabelInject, "true")),
		"local-path-storage/what-says-yes": pod(label(inject.LabelInject, "true")),
	}
}

// TestWebhook is the API server with an injector: whom it asks about, by selectors and conditions; and with none that lives: what
// can be created all the same.
func TestWebhook(t *testing.T) {
	w := newWorld(t)
	program, port := buildInjector(t), freeport.Get(t)
	arguments := []string{"--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port), "--linger", "0s"}
	i := w.start(t, program, port, arguments...)
	w.configuration(t, 4)
	for _, name := range []string{"istio-system", "local-path-storage", "kube-flannel"} {
		w.named(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	enabled, plain := w.namespace(t, "istio-injection=enabled"), w.namespace(t)
	ours, others := w.namespace(t, "istio.io/rev=understudy"), w.namespace(t, "istio.io/rev=canary")
	disabled, odd := w.namespace(t, "istio-injection=disabled"), w.namespace(t, "istio-injection=maybe")
	lab.Eventually(t, limit, "a pod is injected", func() error {
		if injected, err := w.create(enabled, pod()); err != nil || !injected {
			return fmt.Errorf("injected: %v, %w", injected, err)
		}
		return nil
	})

	yes, no := label("sidecar.istio.io/inject", "true"), label("sidecar.istio.io/inject", "False")
	type test struct {
		name, namespace string
		pod             *corev1.Pod
		injected        bool
		asked           bool // the API server asks
	}
	check := func(tests []test) {
		t.Helper()
		for _, tt := range tests {
			if injected, err := w.create(tt.namespace, tt.pod); err != nil || injected != tt.injected {
				t.Errorf("%s: injected %v, %v; want %v", tt.name, injected, err, tt.injected)
			}
		}
	}
	tests := []test{
		{"enabled", enabled, pod(), true, true},
		{"enabled, on Linux", enabled, pod(onLinux), true, true},
		{"enabled, the label says no", enabled, pod(no), false, false},
		{"enabled, the annotation says no", enabled, pod(annotation("sidecar.istio.io/inject", " false ")), false, false},
		{"enabled, label before annotation", enabled, pod(yes, annotation("sidecar.istio.io/inject", "false")), true, true},
		{"enabled, host network", enabled, pod(hostNetwork), false, false},
		{"enabled, Windows", enabled, pod(windows), false, false},
		{"enabled, a node of Windows", enabled, pod(onWindows), false, false},
		{"enabled, of a kubelet's file", enabled, pod(mirrored), false, false},
		{"enabled, another revision's pod", enabled, pod(label("istio.io/rev", "canary")), false, false},
		{"enabled, our revision's pod", enabled, pod(label("istio.io/rev", "understudy")), true, true},
		{"no label", plain, pod(), false, false},
		{"no label, the pod says yes", plain, pod(yes), true, true},
		{"no label, the pod says True", plain, pod(label("sidecar.istio.io/inject", "True")), true, true},
		{"no label, the annotation says yes", plain, pod(annotation("sidecar.istio.io/inject", "true")), false, false},
		{"no label, our revision's pod says yes", plain, pod(yes, label("istio.io/rev", "understudy")), true, true},
		{"our revision", ours, pod(), true, true},
		{"another revision", others, pod(yes), false, false},
		{"disabled", disabled, pod(yes), false, false},
		{"maybe", odd, pod(yes), false, false},
	}
	check(tests)

	// With all namespaces, and nobody who answers: what is asked about cannot be created, everything else can.
	w.settings(t, `{"proxy": {"image": "proxy:v1"}, "injection": {"enableNamespacesByDefault": true}}`)
	w.configuration(t, 6)
	all := []test{{"no label, all namespaces", plain, pod(), true, true}, {"maybe, all namespaces", odd, pod(), true, true}}
	lab.Eventually(t, limit, "all namespaces are injected", func() error {
		if injected, err := w.create(plain, pod()); err != nil || !injected {
			return fmt.Errorf("injected: %v, %w", injected, err)
		}
		return nil
	})
	check(all)
	_ = i.stop(syscall.SIGKILL)
	for name, p := range systemPods(t, w) {
		namespace, _, _ := strings.Cut(name, "/")
		if injected, err := w.create(namespace, p); err != nil || injected {
			t.Errorf("%s: with all replicas dead: injected %v, %v", name, injected, err)
		}
	}
	for _, tt := range append(tests[:11:11], all...) { // what the policy does not change
		_, err := w.create(tt.namespace, tt.pod)
		if asked := err != nil; asked != tt.asked {
			t.Errorf("%s: with all replicas dead: %v, want asked %v", tt.name, err, tt.asked)
		} else if asked && !strings.Contains(err.Error(), "failed calling webhook") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// Paused, the API server asks nobody, whether or not somebody lives.
	w.start(t, program, port, arguments...)
	w.settings(t, `{"injection": {"paused": true}}`)
	w.configuration(t, 0)
	if injected, err := w.create(enabled, pod()); err != nil || injected {
		t.Errorf("paused: injected %v, %v", injected, err)
	}
}
