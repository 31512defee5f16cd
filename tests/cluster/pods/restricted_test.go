package pods

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// TestRestrictedNamespace is a namespace that Pod Security restricts: it refuses README's pod for what istio-init needs; it
// takes the proxy without that, and capture is made from the node, as docs/capture.md says.
func TestRestrictedNamespace(t *testing.T) {
	ns := shared.Namespace(t, "restricted")
	ns.Kubectl(t, "label", "namespace", ns.Name, "pod-security.kubernetes.io/enforce=restricted")
	const meets = `
spec:
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: sleep
    command: [understudy-load, serve, -name, app, -http, ":8080"]
    securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`
	pod := firstPod(t, ns, app, meets)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "pod.yaml"), pod)
	_, err := ns.Try("apply", "--filename", filepath.Join(dir, "pod.yaml"))
	if err == nil || !strings.Contains(err.Error(), `"istio-init"`) || !strings.Contains(err.Error(), "NET_ADMIN") || strings.Contains(err.Error(), proxy) {
		t.Errorf("README's pod: %v; want it refused for istio-init alone", err)
	}

	ns.Apply(t, join(mesh, edit(t, pod, func(o object) { delete(o["spec"].(object), "initContainers") })))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	before := ns.Pod(t, app)
	process := strconv.Itoa(ns.Process(t, app, proxy))
	command := blocksOf(t, "docs/capture.md", "Where Pod Security refuses the init container", "sh")[0]
	capture := exec.CommandContext(t.Context(), "bash", "-euc", strings.Replace(command, "PID", process, 1))
	capture.Env = append(os.Environ(), "PATH="+filepath.Join(lab.RepoRoot(t), "bin")+":"+os.Getenv("PATH"))
	out, err := capture.CombinedOutput()
	if err != nil {
		t.Fatalf("capture from the node: %v\n%s", err, out)
	}
	inbound := ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.HTTP1New, Target: "http://" + before.IP + ":8080" + load.ClientPath, Want: "client=127.0.0.6\n", Rate: 100})
	outside := ns.Load(t, cluster.FromPod(app, app), outbound()...)
	awaitRequests(t, inbound, enough)
	awaitRequests(t, outside, enough)
	mustServe(t, "inbound", inbound)
	mustServe(t, "outbound", outside)
	mustStay(t, before, ns.Pod(t, app))
}
