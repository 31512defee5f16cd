package webhook

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"understudy.mesh/tests/lab"
)

const (
	byDigest = "registry.example.com/proxy@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	byTag    = "registry.example.com/proxy:v2"
)

// slotted gives a pod our two slots.
func slotted(p *corev1.Pod) {
	app := &p.Spec.Containers[0]
	app.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}
	for _, name := range []string{"istio-proxy", "istio-proxy-2"} {
		slot := *app.DeepCopy()
		slot.Name, slot.Image = name, "registry.example.com/proxy:v1"
		p.Spec.Containers = append(p.Spec.Containers, slot)
	}
	native := *app.DeepCopy()
	native.Name, native.RestartPolicy = "other-sidecar", new(corev1.ContainerRestartPolicyAlways)
	p.Spec.InitContainers = []corev1.Container{native}
	p.Name, p.GenerateName, p.Annotations, p.Labels = "web", "", map[string]string{"user": "said"}, map[string]string{"app": "web"}
}

// TestWebhookUpgrader: whoever has the token of the upgrader's account can give the slots images that the namespace's SidecarUpgrade
// allows, and change nothing else of a pod, nor what is allowed.
func TestWebhookUpgrader(t *testing.T) {
	w := newWorld(t)
	manifests, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "deploy/sidecar-upgrader.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.Kubectl(t, string(manifests), "apply", "-f", "-")
	config, err := clientcmd.BuildConfigFromFlags("", w.AccountKubeconfig(t, own, "sidecar-upgrader"))
	if err != nil {
		t.Fatal(err)
	}
	account, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	namespace, without := w.namespace(t, "understudy.mesh/upgrader=enabled"), w.namespace(t)
	for _, n := range []string{namespace, without} {
		if _, err := w.client.CoreV1().Pods(n).Create(t.Context(), pod(slotted), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	upgrade := func(tags bool) string {
		return fmt.Sprintf(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarUpgrade", "metadata": {"name": "default", "namespace": %q}, "spec": {"image": %q, "allowedImages": [%q, %q], "allowTags": %v}}`,
			namespace, byTag, byTag, byDigest, tags)
	}
	w.Kubectl(t, upgrade(false), "apply", "-f", "-")
	patch := func(client kubernetes.Interface, namespace, patch string, subresources ...string) error {
		_, err := client.CoreV1().Pods(namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, subresources...)
		return err
	}
	image := func(container, image string) string {
		return fmt.Sprintf(`{"spec": {"containers": [{"name": %q, "image": %q}]}}`, container, image)
	}
	// A policy is in force a moment after it was written.
	lab.Eventually(t, limit, "the policy is in force", func() error {
		if patch(account, namespace, image("app", byDigest)) == nil {
			return fmt.Errorf("the application may be given another image")
		}
		return patch(account, namespace, image("istio-proxy-2", byDigest))
	})
	requests := `{"spec": {"containers": [{"name": %q, "resources": {"requests": {"cpu": "100m"}}}]}}`
	cases := []struct {
		name, namespace, patch, subresource string
		denied                              string // "" is allowed
	}{
		{"an image that is allowed", namespace, image("istio-proxy", byDigest), "", ""},
		{"our annotations", namespace, `{"metadata": {"annotations": {"upgrade.understudy.mesh/state": "{}", "version.understudy.mesh/istio-proxy": "2"}}}`, "", ""},
		{"a tag", namespace, image("istio-proxy", byTag), "", "by digest unless"},
		{"another image", namespace, image("istio-proxy", strings.Replace(byDigest, "proxy", "miner", 1)), "", "images of spec.allowedImages"},
		{"the application's image", namespace, image("app", byDigest), "", "of the slots alone"},
		{"another sidecar's image", namespace, `{"spec": {"initContainers": [{"name": "other-sidecar", "image": "` + byDigest + `"}]}}`, "", "of the slots alone"},
		{"a namespace without the label", without, image("istio-proxy", byDigest), "", "only in namespaces with the label"},
		{"an annotation of somebody else's", namespace, `{"metadata": {"annotations": {"user": "says"}}}`, "", "its own annotations alone"},
		{"one annotation less", namespace, `{"metadata": {"annotations": {"user": null}}}`, "", "its own annotations alone"},
		{"a label", namespace, `{"metadata": {"labels": {"app": "other"}}}`, "", "nothing of a pod but"},
		{"a finalizer", namespace, `{"metadata": {"finalizers": ["a.example.com/b"]}}`, "", "nothing of a pod but"},
		{"a toleration", namespace, `{"spec": {"tolerations": [{"key": "a", "operator": "Exists"}]}}`, "", "nothing of a pod but"},
		{"a deadline", namespace, `{"spec": {"activeDeadlineSeconds": 1}}`, "", "nothing of a pod but"},
		{"a slot's requests", namespace, fmt.Sprintf(requests, "istio-proxy-2"), "resize", ""},
		{"the application's requests", namespace, fmt.Sprintf(requests, "app"), "resize", "of the slots alone"},
	}
	for _, tt := range cases {
		var subresources []string
		if tt.subresource != "" {
			subresources = []string{tt.subresource}
		}
		err := patch(account, tt.namespace, tt.patch, subresources...)
		if tt.denied == "" && err != nil || tt.denied != "" && (err == nil || !strings.Contains(err.Error(), tt.denied)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.denied)
		}
		if err := patch(w.client, tt.namespace, tt.patch, subresources...); err != nil {
			t.Errorf("%s: the administrator: %v", tt.name, err)
		}
	}
	for verb, arguments := range map[string][]string{
		"what is allowed": {"patch", "sidecarupgrades.understudy.mesh/default"}, "a pod": {"delete", "pods/web"}, "another Lease": {"update", "leases.coordination.k8s.io/other"},
		"a Secret": {"get", "secrets/a"}, "a profile": {"patch", "sidecarprofiles.understudy.mesh/default"}, "an eviction": {"create", "pods/eviction"},
	} {
		out, _ := w.TryKubectl("", append([]string{"auth", "can-i", "-n", namespace, "--as", "system:serviceaccount:" + own + ":sidecar-upgrader"}, arguments...)...)
		if strings.TrimSpace(out) == "yes" {
			t.Errorf("the account may write or read %s: %v", verb, arguments)
		}
	}
	w.Kubectl(t, upgrade(true), "apply", "-f", "-")
	lab.Eventually(t, limit, "a tag is allowed", func() error { return patch(account, namespace, image("istio-proxy", byTag)) })
	for name, text := range map[string]string{
		"an image beside the list": strings.Replace(upgrade(true), `"image": "`+byTag, `"image": "other`, 1), "another name": strings.Replace(upgrade(true), `"default"`, `"other"`, 1),
		"no image": strings.Replace(upgrade(true), byTag+`", "allowed`, `", "allowed`, 1), "a part": strings.Replace(upgrade(true), `"allowTags"`, `"maxUnavailable": "200%", "allowTags"`, 1),
		"a duration": strings.Replace(upgrade(true), `"allowTags"`, `"bake": "-1s", "allowTags"`, 1),
	} {
		if out, err := w.TryKubectl(text, "apply", "-f", "-"); err == nil {
			t.Errorf("%s is accepted: %s", name, out)
		}
	}
}
