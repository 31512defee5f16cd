package pods

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// sleepApplication is the manual's of chapter 6, with an image that the node has.
const sleepApplication = `# Sleep service
apiVersion: v1
kind: Service
metadata:
  name: sleep
  labels:
    app: sleep
spec:
  ports:
  - port: 80
    name: http
  selector:
    app: sleep
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: sleep
spec:
  replicas: 1
  selector:
    matchLabels:
      app: sleep
  template:
    metadata:
      labels:
        app: sleep
    spec:
      containers:
      - name: sleep
        image: ` + cluster.Curl + `
        command: ["/bin/sleep", "3650d"]
        imagePullPolicy: IfNotPresent
`

// injectorProfile has the manual's settings: the DNS proxy, which ASM's console turns on by one switch.
const injectorProfile = `apiVersion: understudy.mesh/v1alpha1
kind: SidecarProfile
metadata: {name: default, namespace: understudy-system}
spec:
  proxy: {image: ` + cluster.ProxyDev + `}
  controlPlane: {mode: files, configMap: mesh}
  dns: {capture: true}
`

// injections are the places that a proxy has in a pod. In the last two the application serves, and the kubelet asks it.
var injections = []struct{ name, profile, application string }{
	{"classic", strings.Replace(injectorProfile, "proxy: {", "proxy: {holdApplicationUntilProxyStarts: true, ", 1), sleepApplication},
	{"native", strings.Replace(injectorProfile, "proxy: {", "proxy: {native: Always, ", 1), servingApplication},
	{"hot", injectorProfile + "  hotUpgrade: {emptyImage: " + cluster.Empty + ", standbyRequests: Same}\n", servingApplication},
}

// servingApplication has a probe of each kind that an agent carries out, but for that of gRPC.
var servingApplication = strings.Replace(sleepApplication, `        command: ["/bin/sleep", "3650d"]
`, `        command: [understudy-load, serve, -name, app, -http, ":8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
`, 1)

// restrictedPod meets Pod Security restricted. It is admitted only: no istio-cni is on the node.
const restrictedPod = `apiVersion: v1
kind: Pod
metadata: {name: restricted}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: sleep
    image: ` + cluster.Curl + `
    command: [sleep, infinity]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

// TestInjectedPod is the manual's chapter 6 with what sidecar-injector makes of its application, by chapter 3's command: it gets
// a VIP for the ServiceEntry's host, and reaches that. Its hooks do not fail. With
// istio-cni in the place of istio-init, a pod is admitted where Pod Security is restricted.
func TestInjectedPod(t *testing.T) {
	ns := shared.Namespace(t, "injected")
	mesh, _, _ := strings.Cut(readmeBlocks(t, "A first pod", "yaml")[0], "\n---\n")
	ns.Apply(t, mesh)
	for _, i := range injections {
		named := strings.NewReplacer("name: sleep", "name: "+i.name, "app: sleep", "app: "+i.name).Replace(i.application)
		ns.Apply(t, injectFile(t, ns, i.profile, named))
	}
	for _, i := range injections {
		ns.Wait(t, podLimit, "condition=Available", "deployment/"+i.name)
		pod := ns.Pods(t, "app="+i.name)[0]
		for container, c := range pod.Containers {
			if c.Restarts > 0 {
				t.Errorf("%s: container %s was started %d times: %v, before it %v", i.name, container, 1+c.Restarts, c.State, c.Last)
			}
		}
		out := ns.Exec(t, pod.Name, i.name, "curl", "-sS", "-w", "remote=%{remote_ip}\n", "https://aliyun.com")
		if !regexp.MustCompile(`(?m)^server=world$`).MatchString(out) || !regexp.MustCompile(`remote=240\.240\.\d+\.\d+`).MatchString(out) {
			t.Errorf("%s: https://aliyun.com:\n%s", i.name, out)
		}
	}
	ns.Kubectl(t, "label", "namespace", ns.Name, "pod-security.kubernetes.io/enforce=restricted")
	ns.Apply(t, injectFile(t, ns, strings.Replace(injectorProfile, "  dns:", "  init: {cni: true}\n  dns:", 1), restrictedPod))
	ns.Kubectl(t, "delete", "deployments", "--all", "--cascade=orphan")
	ns.Kubectl(t, "delete", "replicasets", "--all", "--cascade=orphan")
	ns.Kubectl(t, "delete", "pods", "--all", "--grace-period=15", "--wait=false") // the manual's sleep waits for no signal
	ns.Wait(t, podLimit, "delete", "pods", "--all")
	if events := ns.Kubectl(t, "get", "events", "--field-selector=type=Warning", "--output=custom-columns=:.involvedObject.name,:.reason,:.message", "--no-headers"); strings.Contains(events, "Hook") {
		t.Errorf("hooks failed:\n%s", events)
	}
}

// injectFile is what sidecar-injector makes of an application's file, in the manner of the manual: kubectl apply -f <(...).
func injectFile(t *testing.T, ns *cluster.Namespace, profile, application string) string {
	t.Helper()
	dir := t.TempDir()
	linkInjector(t, dir)
	writeFile(t, filepath.Join(dir, "profile.yaml"), profile)
	writeFile(t, filepath.Join(dir, "sleep.yaml"), application)
	injector := exec.CommandContext(t.Context(), "bash", "-euc", "cat <(./sidecar-injector inject --offline -n "+ns.Name+" --settings profile.yaml -f <(cat sleep.yaml))")
	injector.Dir = dir
	var stderr strings.Builder
	injector.Stderr = &stderr
	out, err := injector.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	return string(out)
}

// linkInjector puts the sidecar-injector of make build into a directory.
func linkInjector(t *testing.T, dir string) {
	t.Helper()
	built := filepath.Join(lab.RepoRoot(t), "bin", "sidecar-injector")
	_, err := os.Stat(built)
	if err == nil {
		err = os.Symlink(built, filepath.Join(dir, "sidecar-injector"))
	}
	if err != nil {
		t.Fatalf("%v (make build)", err)
	}
}
