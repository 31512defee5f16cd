package pods

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// eats is an application that serves until it is told to eat, and then eats until the kernel ends it.
const eats = `
spec:
  containers:
  - name: sleep
    command: [sh, -c, "understudy-load serve -name app -http :8080 & until [ -e /tmp/eat ]; do sleep 0.2; done; x=12345678; while :; do x=$x$x; done"]
    resources: {limits: {memory: 64Mi}}
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

// TestApplicationIsOutOfMemory has the kernel end an application: the kubelet starts it again, and the proxy beside it goes
// on as it was.
func TestApplicationIsOutOfMemory(t *testing.T) {
	ns := shared.Namespace(t, "oom")
	ns.Apply(t, join(mesh, firstPod(t, ns, app, eats)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	before := ns.Pod(t, app)
	// In the container's network and files, and not among its processes.
	out := ns.Load(t, cluster.FromPod(app, app), outbound()...)
	ns.Exec(t, app, app, "sh", "-c", ": >/tmp/eat")
	after := awaitRestart(t, ns, app)
	if last := after.Containers[app].Last; last.String() != "OOMKilled (exit 137)" {
		t.Errorf("the application's last state: %v", last)
	}
	mustStay(t, only(before, proxy), after)
	mustServeAgain(t, ns, after)
	mustServe(t, "outbound meanwhile", out)
}

// killEnvoy is a command of the proxy's container that ends Envoy at once.
const killEnvoy = `for p in /proc/[0-9]*; do read -r name <$p/comm && [ "$name" = envoy ] && kill -9 "${p#/proc/}" && exit; done 2>/dev/null; exit 1`

// TestEnvoyIsKilled ends Envoy as the kernel does one that is out of memory: the agent starts another one, the container
// stays, and no connection is refused meanwhile: those that Envoy had are cut, new ones wait.
func TestEnvoyIsKilled(t *testing.T) {
	ns := shared.Namespace(t, "envoy-killed")
	ns.Apply(t, join(mesh, firstPod(t, ns, app, serves)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	before := ns.Pod(t, app)
	l := ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.HTTP1New, Target: "http://" + before.IP + ":8080/", Want: "server=app", Rate: 50})
	awaitRequests(t, l, enough)
	ns.Exec(t, app, proxy, "sh", "-c", killEnvoy)
	lab.Eventually(t, podLimit, "the metric counts another Envoy", func() error {
		metrics := ns.Exec(t, app, proxy, "curl", "-sS", "http://127.0.0.1:15020/stats/prometheus")
		if !regexp.MustCompile(`(?m)^istio_agent_envoy_restarts_total 1$`).MatchString(metrics) {
			return fmt.Errorf("%v", regexp.MustCompile(`(?m)^istio_agent_envoy_restarts_total.*$`).FindString(metrics))
		}
		return nil
	})
	awaitRequests(t, l, enough)
	report := l.Stop(t)
	t.Logf("Envoy is killed:\n%v", report)
	for class, n := range report.Total().Failed {
		// What Envoy was at work on: a request of each worker of the load at most, and of those it had accepted.
		if cut := class == load.Reset || class == load.EOF; !cut || n > 8 {
			t.Errorf("%d requests failed: %s", n, class)
		}
	}
	after := ns.Pod(t, app)
	mustStay(t, before, after)
	mustServeAgain(t, ns, after)
}

// TestAgentIsKilled ends the agent, and its Envoy with it: the kubelet starts the container again, which has the VIPs that it
// had, and the application beside it goes on.
func TestAgentIsKilled(t *testing.T) {
	ns := shared.Namespace(t, "agent-killed")
	ns.Apply(t, join(mesh, firstPod(t, ns, app, serves)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	before, vips := ns.Pod(t, app), vipsOf(t, ns)
	if err := syscall.Kill(ns.Process(t, app, proxy), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	after := awaitRestart(t, ns, proxy)
	if last := after.Containers[proxy].Last; last.ExitCode != 137 {
		t.Errorf("the proxy's last state: %v", last)
	}
	mustStay(t, only(before, app), after)
	mustServeAgain(t, ns, after)
	if now := vipsOf(t, ns); now != vips {
		t.Errorf("the VIPs are\n%s\nand were\n%s", now, vips)
	}
}

// TestTooLittleMemory gives the proxy less than Envoy needs to start: the agent ends with Envoy's status and says why where
// kubectl shows it, as docs/operate.md has it.
func TestTooLittleMemory(t *testing.T) {
	ns := shared.Namespace(t, "too-little")
	ns.Apply(t, join(mesh, firstPod(t, ns, app, serves, "spec: {containers: [{name: istio-proxy, resources: {limits: {memory: 24Mi}}}]}")))
	var last cluster.State
	// Now and then it is the agent that the kernel picks, who then says nothing.
	lab.Eventually(t, podLimit, "the agent ends with a reason", func() error {
		c := ns.Pod(t, app).Containers[proxy]
		if last = c.Last; last.Message == "" {
			return fmt.Errorf("%v, before it %v", c.State, last)
		}
		return nil
	})
	if last.ExitCode != 128+int(syscall.SIGKILL) || !strings.Contains(last.Message, "out of memory?") {
		t.Errorf("the last state: %v: %q", last, last.Message)
	}
	t.Logf("%v: %s", last, last.Message)
	if ns.Pod(t, app).Ready {
		t.Error("the pod is ready")
	}
}

// awaitRestart returns when a container has been started again and the pod is ready.
func awaitRestart(t *testing.T, ns *cluster.Namespace, container string) (after cluster.Pod) {
	t.Helper()
	lab.Eventually(t, podLimit, container+" is started again", func() error {
		after = ns.Pod(t, app)
		if c := after.Containers[container]; c.Restarts != 1 || !c.State.Running || !after.Ready {
			return fmt.Errorf("%v after %d restarts, pod ready: %v", c.State, c.Restarts, after.Ready)
		}
		return nil
	})
	return after
}

// only is a pod as if it had one container.
func only(pod cluster.Pod, container string) cluster.Pod {
	pod.Containers = map[string]cluster.Container{container: pod.Containers[container]}
	return pod
}

// mustServeAgain demands that the pod serves and asks as if nothing had been.
func mustServeAgain(t *testing.T, ns *cluster.Namespace, pod cluster.Pod) {
	t.Helper()
	inbound := ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.HTTP1New, Target: "http://" + pod.IP + ":8080/", Want: "server=app", Rate: 50})
	out := ns.Load(t, cluster.FromPod(app, app), outbound()...)
	awaitRequests(t, inbound, enough)
	awaitRequests(t, out, enough)
	mustServe(t, "inbound afterwards", inbound)
	mustServe(t, "outbound afterwards", out)
}

// vipsOf is which host has which VIP.
func vipsOf(t *testing.T, ns *cluster.Namespace) string {
	t.Helper()
	lines := regexp.MustCompile(`(?m)^\S+ +240\.240\.\d+\.\d+`).FindAllString(ns.Exec(t, app, proxy, "pilot-agent", "dns", "vips"), -1)
	if len(lines) != 2 {
		t.Fatalf("VIPs, want two: %q", lines)
	}
	return strings.Join(lines, "\n")
}
