package pods

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// web is the Service of the pods that a controller or an operator ends here, and what they have besides README's: an
// application that serves on for as long as the proxy lets traffic in, as every application behind a Service must.
const (
	webLabel   = "app=web"
	webService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
`
	webPatch = `
spec:
  containers:
  - name: sleep
    lifecycle: {preStop: {sleep: {seconds: 6}}}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    resources: {requests: {cpu: 10m, memory: 16Mi}}
`
)

// webPod is such a pod of its own.
func webPod(t *testing.T, ns *cluster.Namespace, name string, patches ...string) string {
	t.Helper()
	return firstPod(t, ns, name, append([]string{serves, webPatch, "metadata: {labels: {app: web}}"}, patches...)...)
}

// webDeployment is a Deployment of such pods behind the Service.
func webDeployment(t *testing.T, ns *cluster.Namespace, replicas int, patches ...string) string {
	t.Helper()
	head := fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: %d, selector: {matchLabels: {app: web}}}}", replicas)
	return workload(t, head, firstPod(t, ns, "web", append([]string{serves, webPatch}, patches...)...), object{"app": "web"})
}

// webLoad asks the Service from a pod and from the node.
func webLoad(t *testing.T, ns *cluster.Namespace) *cluster.Load {
	t.Helper()
	target := "http://web." + ns.Name + ".svc.cluster.local/"
	flows := []load.Flow{
		{Name: "service: new", Kind: load.HTTP1New, Target: target, Want: "server=app", Rate: 50},
		// A connection lasts no longer than the drain: what is kept is cut at its end.
		{Name: "service: kept", Kind: load.HTTP1Keep, Target: target, Want: "server=app", Rate: 25, Life: load.Duration(time.Second)},
	}
	awaitServices(t, ns, fromClient, flows...)
	return ns.Load(t, fromClient, flows...)
}

// startWeb brings the Service up under load.
func startWeb(t *testing.T, ns *cluster.Namespace, manifests ...string) (*cluster.Load, *cluster.Watch) {
	t.Helper()
	ns.Apply(t, join(append(manifests, mesh, client, webService)...))
	ns.Wait(t, podLimit, "condition=Ready", "pod/client")
	ns.Wait(t, podLimit, "condition=Available", "deployment/web")
	watch := ns.Watch(t)
	l := webLoad(t, ns)
	awaitRequests(t, l, enough)
	return l, watch
}

// podNames are those of the Service's pods that are not about to go.
func podNames(t *testing.T, ns *cluster.Namespace) []string {
	t.Helper()
	var names []string
	for _, pod := range ns.Pods(t, webLabel) {
		if !pod.Deleting && pod.Phase == "Running" {
			names = append(names, pod.Name)
		}
	}
	return names
}

// mustHaveGone waits until pods are gone, and demands that proxy and application ended with status 0.
func mustHaveGone(t *testing.T, ns *cluster.Namespace, watch *cluster.Watch, names ...string) {
	t.Helper()
	for _, name := range names {
		var history []cluster.PodAt
		lab.Eventually(t, podLimit, "pod "+name+" is gone", func() error {
			if history = watch.Pod(name); len(history) == 0 || !history[len(history)-1].Gone {
				return fmt.Errorf("it is still there")
			}
			return nil
		})
		last := history[len(history)-1]
		for _, container := range []string{proxy, app} {
			mustHaveEnded(t, last.Pod, container, 0)
		}
	}
}

// mustHaveEndpoints demands that the Service had so many ready endpoints at every moment since a time.
func mustHaveEndpoints(t *testing.T, watch *cluster.Watch, since time.Time, atLeast int) {
	t.Helper()
	for _, at := range watch.Endpoints("web") {
		if at.At.After(since) && len(at.Ready) < atLeast {
			t.Errorf("%v: %d ready endpoints, want %d; not ready %v", at.At, len(at.Ready), atLeast, at.Unready)
		}
	}
}

// evict asks the API for the end of a pod, as kubectl drain does.
func evict(t *testing.T, ns *cluster.Namespace, pod string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "eviction.json")
	text := fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`, pod, ns.Name)
	writeFile(t, file, text)
	_, err := ns.Try("create", "--raw", "/api/v1/namespaces/"+ns.Name+"/pods/"+pod+"/eviction", "--filename", file)
	return err
}

// TestRolloutRestart replaces the pods of a Deployment under load, as an operator does.
func TestRolloutRestart(t *testing.T) {
	ns := shared.Namespace(t, "rollout")
	l, watch := startWeb(t, ns, webDeployment(t, ns, 2))
	old, began := podNames(t, ns), time.Now()
	ns.Kubectl(t, "rollout", "restart", "deployment/web")
	ns.Kubectl(t, "rollout", "status", "deployment/web", "--timeout=1m")
	mustHaveGone(t, ns, watch, old...)
	awaitRequests(t, l, enough)
	mustServe(t, "rollout", l)
	mustHaveEndpoints(t, watch, began, 2)
	if now := podNames(t, ns); len(now) != 2 || slices.ContainsFunc(now, func(name string) bool { return slices.Contains(old, name) }) {
		t.Errorf("the pods are %v, before they were %v", now, old)
	}
}

// TestEviction evicts both pods of a Deployment under load, as kubectl drain does; the second only when its disruption
// budget lets it.
func TestEviction(t *testing.T) {
	ns := shared.Namespace(t, "eviction")
	budget := "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}}"
	l, watch := startWeb(t, ns, webDeployment(t, ns, 2), budget)
	old, began := podNames(t, ns), time.Now()
	if err := evict(t, ns, old[0]); err != nil {
		t.Fatal(err)
	}
	if err := evict(t, ns, old[1]); err == nil || !strings.Contains(err.Error(), "disruption budget") {
		t.Errorf("the eviction of the other pod at the same time: %v", err)
	}
	lab.Eventually(t, podLimit, "the budget lets the other pod go", func() error { return evict(t, ns, old[1]) })
	mustHaveGone(t, ns, watch, old...)
	ns.Wait(t, podLimit, "condition=Available", "deployment/web")
	awaitRequests(t, l, enough)
	mustServe(t, "eviction", l)
	mustHaveEndpoints(t, watch, began, 1)
}
