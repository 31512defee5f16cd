package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

const (
	accountMount = "/var/run/secrets/kubernetes.io/serviceaccount"
	overrides    = "proxy.istio.io/overrides"
)

// profile makes a namespace's SidecarProfile, of a spec as JSON, and returns when it is in force.
func (w *world) profile(t *testing.T, namespace, spec string) {
	t.Helper()
	w.Kubectl(t, fmt.Sprintf(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default", "namespace": %q}, "spec": %s}`, namespace, spec), "apply", "-f", "-")
	w.condition(t, namespace, "InForce", "True", "")
}

// TestWebhookAdmission is the injector among those that change pods besides it, or judge them: the API server's own plugins, which run before
// it and once more after it, another webhook, and other managers of its configuration. What is wrong is refused, with a reason.
func TestWebhookAdmission(t *testing.T) {
	w := newWorld(t)
	port := freeport.Get(t)
	i := w.start(t, buildInjector(t), port, "--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port), "--linger", "0s")
	w.configuration(t, 4)
	enabled := w.namespace(t, "istio-injection=enabled")
	w.mended(t, enabled, "the first pod")
	t.Run("LimitRanger", func(t *testing.T) { w.limitRanger(t) })
	t.Run("ServiceAccount", func(t *testing.T) { w.serviceAccount(t) })
	t.Run("PodSecurity", func(t *testing.T) { w.podSecurity(t) })
	t.Run("another webhook", func(t *testing.T) { w.anotherWebhook(t, i) })
	t.Run("wrong profiles", func(t *testing.T) { w.wrongProfiles(t) })
	t.Run("wrong pods", func(t *testing.T) { w.wrongPods(t, enabled) })
	t.Run("other managers", func(t *testing.T) { w.otherManagers(t) })
}

// proxyOf adds a container istio-proxy of the user's, with image "auto" and what change makes of it.
func proxyOf(change func(*corev1.Container)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := corev1.Container{Name: contract.ProxyContainer, Image: "auto"}
		if change != nil {
			change(&c)
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
}

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// resources says what a container asks for, to compare and to show.
func resources(c *corev1.Container) string {
	if c == nil {
		return "no container"
	}
	r := c.Resources
	return fmt.Sprintf("%s/%s to %s/%s", r.Requests.Cpu(), r.Requests.Memory(), r.Limits.Cpu(), r.Limits.Memory())
}

// limitRanger: a LimitRange fills in what the application leaves out, and no default of it passes for what a user wants of the proxy.
func (w *world) limitRanger(t *testing.T) {
	const defaults, ofLimitRange = "100m/128Mi to 2/1Gi", "200m/64Mi to 1/512Mi"
	range1 := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "defaults"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
		Type: corev1.LimitTypeContainer, DefaultRequest: list("200m", "64Mi"), Default: list("1", "512Mi"),
	}}}}
	classic, native := w.namespace(t, "istio-injection=enabled"), w.namespace(t, "istio-injection=enabled")
	w.profile(t, native, `{"proxy": {"native": "Always"}}`)
	for _, namespace := range []string{classic, native} {
		if _, err := w.client.CoreV1().LimitRanges(namespace).Create(t.Context(), range1, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, limit, "the LimitRange is gone by", func() error {
			made, err := w.try(namespace, pod())
			if err == nil && resources(made.container("app")) != ofLimitRange {
				err = errors.New(resources(made.container("app")))
			}
			return err
		})
	}
	initProxy := func(p *corev1.Pod) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: contract.ProxyContainer, Image: "auto", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)})
	}
	for _, tt := range []struct {
		name, namespace string
		pod             *corev1.Pod
		proxy, kept     string
	}{
		{"nothing said", classic, pod(), defaults, ""},
		{"nothing said, native", native, pod(), defaults, ""},
		{"a proxy of the user's that says nothing", classic, pod(proxyOf(nil)), defaults, ""},
		{"one that says nothing, native", native, pod(initProxy), defaults, ""},
		{"one with a variable", classic, pod(proxyOf(func(c *corev1.Container) { c.Env = []corev1.EnvVar{{Name: "X", Value: "1"}} })), defaults,
			`{"containers":[{"env":[{"name":"X","value":"1"}],"name":"istio-proxy"}]}`},
		{"one with a request", classic, pod(proxyOf(func(c *corev1.Container) {
			c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("300m")}
		})), "300m/128Mi to 2/1Gi", `{"containers":[{"name":"istio-proxy","resources":{"requests":{"cpu":"300m"}}}]}`},
		// One annotation replaces all of the mesh's, and then the LimitRange has its say.
		{"an annotation", classic, pod(annotation("sidecar.istio.io/proxyCPU", "150m"), annotation("sidecar.istio.io/proxyCPULimit", "1")), "150m/64Mi to 1/512Mi", ""},
	} {
		made, err := w.try(tt.namespace, tt.pod)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := resources(made.container(contract.ProxyContainer)); got != tt.proxy {
			t.Errorf("%s: the proxy has %s, want %s", tt.name, got, tt.proxy)
		}
		if got := made.pod.Annotations[overrides]; got != tt.kept {
			t.Errorf("%s: kept as the user's wish: %s, want %s", tt.name, got, tt.kept)
		}
		if got := resources(made.container("app")); got != ofLimitRange {
			t.Errorf("%s: the application has %s, want %s", tt.name, got, ofLimitRange)
		}
	}
}

// serviceAccount: every container gets the account's mount once, the proxy too, and it passes for nobody's wish; the account's secrets for
// images stay beside ours.
func (w *world) serviceAccount(t *testing.T) {
	namespace := w.namespace(t, "istio-injection=enabled")
	w.profile(t, namespace, `{"proxy": {"imagePullSecrets": ["ours"]}}`)
	account, err := w.client.CoreV1().ServiceAccounts(namespace).Get(t.Context(), "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "accounts"}}
	if _, err := w.client.CoreV1().ServiceAccounts(namespace).Update(t.Context(), account, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	secrets := []corev1.LocalObjectReference{{Name: "accounts"}, {Name: "ours"}}
	lab.Eventually(t, limit, "a pod has the account's secret and ours", func() error {
		made, err := w.try(namespace, pod())
		if err == nil && !slices.Equal(made.pod.Spec.ImagePullSecrets, secrets) {
			err = fmt.Errorf("%v", made.pod.Spec.ImagePullSecrets)
		}
		return err
	})
	none := func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = new(false) }
	for _, tt := range []struct {
		name   string
		pod    *corev1.Pod
		mounts int
	}{
		{"nothing said", pod(), 1}, {"a proxy of the user's", pod(proxyOf(nil)), 1}, {"no mounts", pod(none), 0},
	} {
		made, err := w.try(namespace, tt.pod)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for _, name := range []string{"app", contract.ProxyContainer, "istio-init"} {
			mounts := slices.DeleteFunc(slices.Clone(made.container(name).VolumeMounts), func(m corev1.VolumeMount) bool { return m.MountPath != accountMount })
			if len(mounts) != tt.mounts {
				t.Errorf("%s: %s has the account's mount %d times, want %d", tt.name, name, len(mounts), tt.mounts)
			}
		}
		if kept, ok := made.pod.Annotations[overrides]; ok {
			t.Errorf("%s: kept as the user's wish: %s", tt.name, kept)
		}
	}
}

// podSecurity: where a namespace enforces a level, what is refused is said beforehand, by name; with istio-cni nothing is refused.
func (w *world) podSecurity(t *testing.T) {
	const enforce, warn = "pod-security.kubernetes.io/enforce=", "pod-security.kubernetes.io/warn="
	for _, tt := range []struct {
		name, label, profile string
		refused, warned      []string
	}{
		{"baseline", enforce + "baseline", `{}`, []string{`violates PodSecurity "baseline`, "istio-init", "NET_ADMIN"}, []string{"enforces Pod Security baseline, which refuses istio-init", "init.cni: true"}},
		{"restricted", enforce + "restricted", `{}`, []string{`violates PodSecurity "restricted`, "istio-init"}, []string{"enforces Pod Security restricted, which refuses istio-init"}},
		{"privileged", enforce + "privileged", `{}`, nil, nil},
		{"a warning only", warn + "restricted", `{}`, nil, []string{`would violate PodSecurity "restricted`}},
		{"TPROXY", enforce + "baseline", `{"capture": {"mode": "TPROXY"}, "init": {"cni": true}}`, []string{`violates PodSecurity "baseline`, "istio-proxy"}, []string{"refuses istio-proxy: TPROXY needs NET_ADMIN"}},
		{"no capture", enforce + "restricted", `{"capture": {"mode": "NONE"}}`, nil, nil},
		{"istio-cni", enforce + "restricted", `{"init": {"cni": true}}`, nil, nil},
		{"istio-cni, warnings", warn + "restricted", `{"init": {"cni": true}}`, nil, nil},
		{"istio-cni, native", enforce + "restricted", `{"init": {"cni": true}, "proxy": {"native": "Always"}}`, nil, nil},
		{"istio-cni, two slots", enforce + "restricted", `{"init": {"cni": true}, "hotUpgrade": {"emptyImage": "empty:v1", "standbyRequests": "Same"}}`, nil, nil},
	} {
		namespace := w.namespace(t, "istio-injection=enabled", tt.label)
		w.profile(t, namespace, tt.profile)
		made, err := w.try(namespace, pod())
		if (err != nil) != (tt.refused != nil) {
			t.Errorf("%s: %v, want it refused: %v", tt.name, err, tt.refused != nil)
		}
		if err == nil && !made.injected {
			t.Errorf("%s: not injected", tt.name)
		}
		for _, word := range tt.refused {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want %q in it", tt.name, err, word)
			}
		}
		// Two slots have the same port, one of which is open at a time.
		said := strings.Join(slices.DeleteFunc(made.warnings, func(text string) bool { return strings.Contains(text, "duplicate port") }), "\n")
		for _, word := range tt.warned {
			if !strings.Contains(said, word) {
				t.Errorf("%s: warnings %q, want %q among them", tt.name, said, word)
			}
		}
		if tt.warned == nil && said != "" {
			t.Errorf("%s: warnings %q", tt.name, said)
		}
	}
}

// anotherWebhook is asked after ours, adds a container and changes ours, and we are asked again: what is new is taken up, and what the
// other has changed stays.
func (w *world) anotherWebhook(t *testing.T, i *injector) {
	other := w.startOther(t)
	for _, tt := range []struct{ name, profile, last string }{
		{"classic", `{}`, contract.ProxyContainer},
		{"native", `{"proxy": {"native": "Always"}}`, "late"},
		{"two slots", `{"hotUpgrade": {"emptyImage": "empty:v1", "standbyRequests": "Same"}}`, "late"},
	} {
		namespace := w.namespace(t, "istio-injection=enabled", otherLabel+"=yes")
		w.profile(t, namespace, tt.profile)
		var made answer
		lab.Eventually(t, limit, tt.name+": both webhooks are asked", func() (err error) {
			if made, err = w.try(namespace, pod()); err == nil && (!made.injected || made.container("late") == nil) {
				err = errors.New("not by both")
			}
			return err
		})
		asked := i.count(t, "sidecar_injection_requests_total")
		made, err := w.try(namespace, pod())
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if again := i.count(t, "sidecar_injection_requests_total") - asked; again < 2 {
			t.Errorf("%s: asked %d times: the second webhook's change is not seen", tt.name, again)
		}
		checkLate(t, tt.name, made)
		all := made.pod.Spec.Containers
		if all[len(all)-1].Name != tt.last {
			t.Errorf("%s: the last container is %s, want %s", tt.name, all[len(all)-1].Name, tt.last)
		}
	}
	if other.Load() == 0 {
		t.Error("the other webhook was not asked")
	}
}

// checkLate says what is wrong with a pod to which the other webhook has added its container.
func checkLate(t *testing.T, name string, made answer) {
	t.Helper()
	late, proxy := made.container("late"), made.container(contract.ProxyContainer)
	env := map[string]string{}
	for _, e := range proxy.Env {
		if _, twice := env[e.Name]; twice {
			t.Errorf("%s: env %s is there twice", name, e.Name)
		}
		env[e.Name] = e.Value
	}
	if apps := strings.Split(env["ISTIO_META_APP_CONTAINERS"], ","); !slices.Contains(apps, "app") || !slices.Contains(apps, "late") || len(apps) != 2 {
		t.Errorf("%s: ISTIO_META_APP_CONTAINERS %q", name, env["ISTIO_META_APP_CONTAINERS"])
	}
	var ports []corev1.ContainerPort
	if err := json.Unmarshal([]byte(env["ISTIO_META_POD_PORTS"]), &ports); err != nil || len(ports) != 1 || ports[0].ContainerPort != 9000 {
		t.Errorf("%s: ISTIO_META_POD_PORTS %q, %v", name, env["ISTIO_META_POD_PORTS"], err)
	}
	const path = "/app-health/late/readyz"
	if h := late.ReadinessProbe.HTTPGet; h.Path != path || h.Port.IntValue() != contract.StatusPort || !strings.Contains(env["ISTIO_KUBE_APP_PROBERS"], path) {
		t.Errorf("%s: the probe asks %s of %s, and the agent knows %s", name, h.Path, h.Port.String(), env["ISTIO_KUBE_APP_PROBERS"])
	}
	if env["SECOND"] != "1" || proxy.Resources.Limits.Cpu().String() != "500m" {
		t.Errorf("%s: the other's changes are lost: SECOND %q, CPU %s", name, env["SECOND"], proxy.Resources.Limits.Cpu())
	}
	for _, c := range slices.Concat(made.pod.Spec.Containers, made.pod.Spec.InitContainers) {
		seen := 0
		for _, d := range slices.Concat(made.pod.Spec.Containers, made.pod.Spec.InitContainers) {
			if c.Name == d.Name {
				seen++
			}
		}
		if seen != 1 {
			t.Errorf("%s: container %s is there %d times", name, c.Name, seen)
		}
	}
	if kept, ok := made.pod.Annotations[overrides]; ok {
		t.Errorf("%s: kept as the user's wish: %s", name, kept)
	}
}
