package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"understudy.mesh/tests/lab"
)

// crds makes the API server know OpenKruise's and Argo's kinds, by the CRDs of their modules.
func (w *world) crds(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "github.com/openkruise/kruise", "github.com/argoproj/argo-rollouts")
	cmd.Dir = filepath.Join(lab.RepoRoot(t), "tests/cluster/gomod/crds")
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	var files []string
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var module struct{ Path, Dir string }
		if err := d.Decode(&module); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(module.Path, "kruise") {
			for _, kind := range []string{"clonesets", "statefulsets", "daemonsets", "uniteddeployments", "sidecarsets"} {
				files = append(files, filepath.Join(module.Dir, "config/crd/bases/apps.kruise.io_"+kind+".yaml"))
			}
		} else {
			files = append(files, filepath.Join(module.Dir, "manifests/crds/rollout-crd.yaml"))
		}
	}
	for _, file := range files {
		w.Kubectl(t, "", "apply", "--server-side", "-f", file)
	}
	for _, resource := range []string{"clonesets.apps.kruise.io", "statefulsets.apps.kruise.io", "daemonsets.apps.kruise.io", "uniteddeployments.apps.kruise.io", "sidecarsets.apps.kruise.io", "rollouts.argoproj.io"} {
		lab.Eventually(t, limit, resource+" are known", func() error {
			_, err := w.TryKubectl("", "get", resource)
			return err
		})
	}
}

// TestSidecarSetIsKruises: the API server takes what sidecarset prints by OpenKruise's own CRD, every field of it.
func TestSidecarSetIsKruises(t *testing.T) {
	w := newWorld(t)
	w.crds(t)
	const profile = `{apiVersion: understudy.mesh/v1alpha1, kind: SidecarProfile, metadata: {name: default, namespace: understudy-system},
		spec: {preset: asm, proxy: {image: "proxy:1", concurrency: 2, imagePullSecrets: [s]}, hotUpgrade: {emptyImage: "empty:1"}}}`
	file := filepath.Join(t.TempDir(), "profile.yaml")
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := exec.Command(buildInjector(t), "sidecarset", "-n", "shop", "--workload", "web", "--settings", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range [][]string{{"create", "--dry-run=server", "--validate=strict"}, {"apply", "--server-side"}} {
		if out, err := w.TryKubectl(string(set), append(how, "-f", "-")...); err != nil || strings.Contains(out, "unknown field") {
			t.Errorf("%q: %v: %s\n%s", how, err, out, set)
		}
	}
	if out, err := w.TryKubectl(strings.Replace(string(set), "updateStrategy:", "strategy:", 1), "create", "--dry-run=server", "--validate=strict", "-f", "-"); err == nil {
		t.Errorf("the manual's strategy is taken as well, so nothing was checked: %s", out)
	}
}

// otherKind is a workload of OpenKruise or Argo with two pods, and whether these are evicted.
type otherKind struct {
	apiVersion, kind, name, spec string
	evicted                      bool
}

// maker is the workload whose own the pods are: of a UnitedDeployment that of its one subset.
func (k otherKind) maker() otherKind {
	if k.kind == "UnitedDeployment" {
		k.kind, k.name = "CloneSet", k.name+"-a"
	}
	return k
}

var otherKinds = []otherKind{
	{"apps.kruise.io/v1alpha1", "CloneSet", "clone", "", false},
	{"apps.kruise.io/v1alpha1", "CloneSet", "clone-in-place", `"updateStrategy": {"type": "InPlaceIfPossible"}, `, true},
	{"apps.kruise.io/v1beta1", "StatefulSet", "store", `"serviceName": "store", `, false},
	{"apps.kruise.io/v1beta1", "StatefulSet", "store-in-place", `"serviceName": "store", "updateStrategy": {"rollingUpdate": {"podUpdatePolicy": "InPlaceIfPossible"}}, `, true},
	{"apps.kruise.io/v1alpha1", "DaemonSet", "node", "", false},
	{"apps.kruise.io/v1alpha1", "UnitedDeployment", "united", "", false},
	{"apps.kruise.io/v1alpha1", "UnitedDeployment", "united-in-place", `"updateStrategy": {"type": "InPlaceIfPossible"}, `, true},
	{"argoproj.io/v1alpha1", "Rollout", "rollout", `"strategy": {"canary": {}}, `, false},
}

// TestRestartOfOtherKinds restarts workloads whose controllers are not here, with the rights of docs/inject.md and no more: the API server takes
// by their CRDs what the command writes, and the test does what the controllers would. A PodDisruptionBudget holds one of them for a while.
func TestRestartOfOtherKinds(t *testing.T) {
	w := newWorld(t)
	w.crds(t)
	f := &otherShop{world: w, t: t, program: buildInjector(t), namespace: w.namespace(t, "istio-injection=enabled")}
	f.rights(t)
	w.settings(t, `{"proxy": {"image": "proxy:v1"}}`)
	for _, k := range otherKinds {
		f.workload(k)
	}
	w.Kubectl(t, `{"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "held", "namespace": "`+f.namespace+`"}, "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "clone-in-place"}}}}`, "create", "-f", "-")
	if out := f.run(0, "--dry-run"); !strings.Contains(out, fmt.Sprintf("%d workloads: nothing to do", len(otherKinds))) {
		t.Fatalf("before any change:\n%s", out)
	}
	w.settings(t, `{"proxy": {"image": "proxy:v2"}}`)
	before := f.specs()
	var controllers sync.WaitGroup
	done := make(chan struct{})
	controllers.Go(func() { f.control(done) })
	out := f.run(0)
	close(done)
	controllers.Wait()
	t.Logf("%s", out)
	if !strings.Contains(out, "CloneSet.apps.kruise.io/clone-in-place: held: Cannot evict pod as it would violate the pod's disruption budget: The disruption budget held ") {
		t.Errorf("no word of the budget")
	}
	after := f.specs()
	for _, k := range otherKinds {
		if !regexp.MustCompile(k.kind + `\.[a-z.]+/` + k.name + `: restarted, 2 pods in \d+s \(2 of 2 pods: image proxy:v1 -> proxy:v2\)\n`).MatchString(out) {
			t.Errorf("%s %s is not restarted", k.kind, k.name)
		}
		if unchanged := after[k.name] == before[k.name]; unchanged != k.evicted {
			t.Errorf("%s %s was\n%s\nand is\n%s", k.kind, k.name, before[k.name], after[k.name])
		}
	}
	if out := f.run(0); !strings.Contains(out, fmt.Sprintf("%d workloads: nothing to do", len(otherKinds))) {
		t.Errorf("again:\n%s", out)
	}
}

// otherShop is a namespace with workloads of kinds that nobody controls but the test.
type otherShop struct {
	*world
	t                             *testing.T
	program, namespace, restarter string
}

// rights make an account with the rights of the paper.
func (f *otherShop) rights(t *testing.T) {
	t.Helper()
	paper, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "docs/inject.md"))
	if err != nil {
		t.Fatal(err)
	}
	roles := regexp.MustCompile("(?s)```yaml\n(apiVersion: rbac[^`]*)```").FindSubmatch(paper)
	if roles == nil {
		t.Fatal("docs/inject.md has no roles")
	}
	f.Kubectl(t, string(roles[1]), "apply", "-f", "-")
	f.Kubectl(t, "", "create", "serviceaccount", "restarter", "-n", f.namespace)
	who := "--serviceaccount=" + f.namespace + ":restarter"
	f.Kubectl(t, "", "create", "rolebinding", "restarter", "-n", f.namespace, "--clusterrole=sidecar-injector-restart", who)
	f.Kubectl(t, "", "create", "clusterrolebinding", "restarter", "--clusterrole=sidecar-injector-settings", who)
	f.restarter = f.AccountKubeconfig(t, f.namespace, "restarter")
}

// run runs restart, and returns what it says.
func (f *otherShop) run(status int, flags ...string) string {
	f.t.Helper()
	cmd := exec.Command(f.program, append([]string{"restart", "-n", f.namespace, "--kubeconfig", f.restarter, "--timeout", "1m", "--workloads", "9"}, flags...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, _ := cmd.Output()
	if cmd.ProcessState.ExitCode() != status || stderr.Len() > 0 {
		f.t.Errorf("%v: %v: %s\n%s", cmd, cmd.ProcessState, out, &stderr)
	}
	return string(out)
}

// resource is where the API server has a kind.
func (f *otherShop) resource(apiVersion, kind string) dynamic.ResourceInterface {
	gv, _ := schema.ParseGroupVersion(apiVersion)
	return f.dynamic.Resource(gv.WithResource(strings.ToLower(kind) + "s")).Namespace(f.namespace)
}

// workload makes one with two pods as the mesh's settings have them.
func (f *otherShop) workload(k otherKind) {
	f.t.Helper()
	replicas := `"replicas": 2, `
	if k.kind == "DaemonSet" {
		replicas = ""
	}
	selector := fmt.Sprintf(`"selector": {"matchLabels": {"app": %q}}`, k.name)
	spec := fmt.Sprintf(`%s%s, "template": {"metadata": {"labels": {"app": %q}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}`, k.spec, selector, k.name)
	if k.kind == "UnitedDeployment" {
		spec = fmt.Sprintf(`%s, "topology": {"subsets": [{"name": "a"}]}, "template": {"cloneSetTemplate": {"metadata": {"labels": {"app": %q}}, "spec": {%s}}}`, selector, k.name, spec)
	}
	f.object(k, replicas+spec, "")
	if m := k.maker(); m != k {
		f.object(m, replicas+fmt.Sprintf(`%s%s, "template": {"metadata": {"labels": {"app": %q}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}`, k.spec, selector, k.name),
			`, "ownerReferences": [`+f.reference(k)+`]`)
	}
	f.status(k, nil)
	for range 2 {
		f.pod(k)
	}
}

// object makes one of a kind with a spec, and with more metadata.
func (f *otherShop) object(k otherKind, spec, metadata string) {
	f.t.Helper()
	f.Kubectl(f.t, fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "metadata": {"name": %q, "namespace": %q%s}, "spec": {%s}}`, k.apiVersion, k.kind, k.name, f.namespace, metadata, spec),
		"create", "--validate=strict", "-f", "-")
}

// reference is how an object names the one that controls it.
func (f *otherShop) reference(k otherKind) string {
	f.t.Helper()
	return fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "name": %q, "uid": %q, "controller": true}`, k.apiVersion, k.kind, k.name, f.get(k).GetUID())
}

func (f *otherShop) get(k otherKind) *unstructured.Unstructured {
	f.t.Helper()
	o, err := f.resource(k.apiVersion, k.kind).Get(f.t.Context(), k.name, metav1.GetOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

// status writes what the workload's controller would say of two pods as they are to be.
func (f *otherShop) status(k otherKind, restartedAt any) {
	f.t.Helper()
	o := f.get(k)
	two := int64(2)
	status := map[string]any{"observedGeneration": o.GetGeneration(), "replicas": two, "readyReplicas": two, "availableReplicas": two, "updatedReplicas": two, "updatedReadyReplicas": two, "currentReplicas": two}
	switch k.kind {
	case "UnitedDeployment":
		status["currentRevision"] = "r"
	case "DaemonSet":
		status = map[string]any{"observedGeneration": o.GetGeneration(), "desiredNumberScheduled": two, "updatedNumberScheduled": two, "currentNumberScheduled": two, "numberReady": two, "numberMisscheduled": int64(0), "daemonSetHash": "h"}
	case "Rollout":
		status = map[string]any{"observedGeneration": fmt.Sprint(o.GetGeneration()), "replicas": two, "updatedReplicas": two}
		if restartedAt != nil {
			status["restartedAt"] = restartedAt
		}
	}
	o.Object["status"] = status
	if _, err := f.resource(k.apiVersion, k.kind).UpdateStatus(f.t.Context(), o, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		f.t.Errorf("the status of %s %s: %v", k.kind, k.name, err)
	}
}

// pod makes a ready pod of a workload, as the mesh's settings have it.
func (f *otherShop) pod(k otherKind) {
	f.t.Helper()
	text, _ := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{
		"generateName": k.maker().name + "-", "namespace": f.namespace, "labels": map[string]string{"app": k.name},
		"ownerReferences": []any{json.RawMessage(f.reference(k.maker()))},
	}, "spec": map[string]any{"containers": []any{map[string]any{"name": "app", "image": "app"}}}})
	cmd := exec.Command(f.program, "inject", "-f", "-", "--kubeconfig", f.Kubeconfig)
	cmd.Stdin = bytes.NewReader(text)
	injected, err := cmd.Output()
	if err != nil {
		f.t.Errorf("%v: %v", cmd, err)
		return
	}
	made := f.Kubectl(f.t, string(injected), "create", "-f", "-", "-o", "name")
	made = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(made), "pod/"))
	f.Kubectl(f.t, "", "patch", "pod", made, "-n", f.namespace, "--subresource=status", "--type=merge", "--patch", `{"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}`)
}

// specs are those of the workloads.
func (f *otherShop) specs() map[string]string {
	found := map[string]string{}
	for _, k := range otherKinds {
		text, _ := json.Marshal(f.get(k).Object["spec"])
		found[k.name] = string(text)
	}
	return found
}

// control does what the controllers would, until done: pods that are missing are made, all of them anew once the workload says so, and the
// budget goes after a while.
func (f *otherShop) control(done <-chan struct{}) {
	restarted := map[string]bool{}
	budget := time.After(5 * time.Second)
	for {
		select {
		case <-done:
			return
		case <-budget:
			f.Kubectl(f.t, "", "delete", "pdb", "held", "-n", f.namespace)
		case <-time.After(200 * time.Millisecond):
		}
		for _, k := range otherKinds {
			o, err := f.resource(k.apiVersion, k.kind).Get(f.t.Context(), k.name, metav1.GetOptions{})
			if err != nil {
				f.t.Error(err)
				return
			}
			pods, err := f.client.CoreV1().Pods(f.namespace).List(f.t.Context(), metav1.ListOptions{LabelSelector: "app=" + k.name})
			if err != nil {
				f.t.Error(err)
				return
			}
			at, _, _ := unstructured.NestedString(o.Object, "spec", "template", "metadata", "annotations", "kubectl.kubernetes.io/restartedAt")
			switch k.kind {
			case "Rollout":
				at, _, _ = unstructured.NestedString(o.Object, "spec", "restartAt")
			case "UnitedDeployment":
				at, _, _ = unstructured.NestedString(o.Object, "spec", "template", "cloneSetTemplate", "spec", "template", "metadata", "annotations", "kubectl.kubernetes.io/restartedAt")
			}
			if at != "" && !restarted[k.name] {
				restarted[k.name] = true
				for _, pod := range pods.Items {
					f.Kubectl(f.t, "", "delete", "pod", pod.Name, "-n", f.namespace, "--grace-period=0", "--force")
				}
				pods.Items = nil
				f.status(k, at)
			}
			there := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
			for n := len(there); n < 2; n++ {
				f.pod(k)
			}
		}
	}
}
