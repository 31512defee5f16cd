package pods

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/load"
)

// Names of the pods that are made of README's.
const (
	app   = "sleep"
	proxy = "istio-proxy"
)

// hosts are of the world outside; each has a VIP.
const hosts = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.world.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo.world.test]
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  resolution: DNS
`

// mesh is the configuration of the pods here, besides README's.
var mesh = `
apiVersion: v1
kind: ConfigMap
metadata: {name: mesh}
data:
  world.yaml: |` + strings.ReplaceAll(hosts, "\n", "\n    ") + "\n"

// client is a pod without a proxy, from which others are asked. The kubelet never evicts it.
const client = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  priorityClassName: system-node-critical
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`

// fromClient is a load from there.
var fromClient = cluster.FromPod("client", "client")

// serves makes README's application one that serves: HTTP on 8080, an echo on 9000. Its first act is a request of its own,
// whose answer it keeps.
const serves = `
spec:
  containers:
  - name: sleep
    command: [sh, -c, "curl -sS http://shop.world.test/ >/tmp/first 2>&1; exec understudy-load serve -name app -http :8080 -echo :9000"]
`

// firstPod is README's pod, to the letter but for its name and what the patches say (kubectl's strategic ones).
func firstPod(t *testing.T, ns *cluster.Namespace, name string, patches ...string) string {
	t.Helper()
	manifests := readmeBlocks(t, "A first pod", "yaml")
	_, pod, found := strings.Cut(manifests[0], "\n---\n")
	if !found {
		t.Fatalf("README's first pod has no ConfigMap before it:\n%s", manifests[0])
	}
	file := filepath.Join(t.TempDir(), "pod.yaml")
	for _, patch := range append(patches, "metadata: {name: "+name+"}") {
		writeFile(t, file, pod)
		pod = ns.Kubectl(t, "patch", "--local", "--filename", file, "--patch", patch, "--output", "yaml")
	}
	return pod
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// object is a part of a manifest.
type object = map[string]any

// edit changes a manifest in a way that no patch can.
func edit(t *testing.T, manifest string, change func(object)) string {
	t.Helper()
	var o object
	if err := yaml.Unmarshal([]byte(manifest), &o); err != nil {
		t.Fatalf("read a manifest: %v", err)
	}
	change(o)
	text, err := yaml.Marshal(o)
	if err != nil {
		t.Fatalf("write a manifest: %v", err)
	}
	return string(text)
}

// nativeSidecar moves the proxy of a pod to the init containers, after istio-init, to be there as long as the pod is.
func nativeSidecar(t *testing.T, pod string) string {
	t.Helper()
	return edit(t, pod, func(o object) {
		spec := o["spec"].(object)
		containers := spec["containers"].([]any)
		first := containers[0].(object)
		if first["name"] != proxy {
			t.Fatalf("the first container is %v", first["name"])
		}
		first["restartPolicy"] = "Always"
		spec["initContainers"] = append(spec["initContainers"].([]any), first)
		spec["containers"] = containers[1:]
	})
}

// workload puts a pod into a workload as its template; labels are the pod's.
func workload(t *testing.T, head, pod string, labels object) string {
	t.Helper()
	var spec any
	edit(t, pod, func(o object) { spec = o["spec"] })
	return edit(t, head, func(o object) {
		o["spec"].(object)["template"] = object{"metadata": object{"labels": labels}, "spec": spec}
	})
}

// join makes one file of several manifests.
func join(manifests ...string) string { return strings.Join(manifests, "\n---\n") }

// enough is so many requests of each flow that a test may say that traffic works, not that one request did.
const enough = 100

// awaitRequests returns when each flow of a load has so many more answers than it has now.
func awaitRequests(t *testing.T, l *cluster.Load, n uint64) {
	t.Helper()
	l.Await(t, podLimit, n)
}

// mustServe ends a load, in which no request may have failed.
func mustServe(t *testing.T, what string, l *cluster.Load) load.Report {
	t.Helper()
	report := l.Stop(t)
	t.Logf("%s:\n%v", what, report)
	if report.Failures() > 0 {
		t.Errorf("%s: %d requests failed", what, report.Failures())
	}
	return report
}

// outbound is what the application of a pod asks of the world, by name and so by VIP.
func outbound() []load.Flow {
	return []load.Flow{
		{Name: "out: http", Kind: load.HTTP1New, Target: "http://shop.world.test/", Want: "server=world", Rate: 25},
		{Name: "out: tcp", Kind: load.TCPStream, Target: "echo.world.test:9000", Rate: 25, Life: load.Duration(time.Second)},
		{Name: "out: passed through", Kind: load.HTTP1New, Target: "http://" + cluster.WorldAddress + "/", Want: "server=world", Rate: 25},
		{Name: "dns", Kind: load.DNSUDP, Names: []string{"shop.world.test", "echo.world.test"}, Want: "240.240.", Rate: 25},
	}
}

// mustStay demands that no container of a pod was started again since it was looked at.
func mustStay(t *testing.T, before, after cluster.Pod) {
	t.Helper()
	for name, c := range before.Containers {
		if now := after.Containers[name]; now.ID != c.ID || now.Restarts != c.Restarts {
			t.Errorf("container %s of %s was started again: %v, before it %v", name, after.Name, now.State, now.Last)
		}
	}
}
