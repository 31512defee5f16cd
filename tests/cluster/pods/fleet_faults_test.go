package pods

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// fleetLimit is how long a few pods may take to be upgraded one after another, on a machine that does something else besides.
const fleetLimit = 15 * time.Minute

// command is one of `sidecar-injector upgrade` that runs beside the test.
type command struct {
	*fleet
	process *exec.Cmd
	said    lockedBuffer
}

// lockedBuffer is what a process says, which is read while it does.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// begin starts an upgrade.
func (f *fleet) begin(arguments ...string) *command {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), fleetLimit)
	c := &command{fleet: f, process: f.upgradeCommand(ctx, arguments...)}
	c.process.Stdout, c.process.Stderr = &c.said, &c.said
	if err := c.process.Start(); err != nil {
		cancel()
		f.Fatal(err)
	}
	f.Cleanup(func() {
		cancel()
		if c.process.ProcessState == nil {
			_ = c.process.Wait()
		}
	})
	return c
}

// must waits for its end, and demands an exit status and a text of what it said.
func (c *command) must(want int, text string) {
	c.Helper()
	status := cluster.ExitStatus(c.process.Wait())
	c.Logf("sidecar-injector %s:\n%s", strings.Join(c.process.Args, " "), &c.said)
	if status != want || !strings.Contains(c.said.String(), text) {
		c.Errorf("exit status %d, want %d and %q", status, want, text)
	}
}

// inFlight waits for a pod, other than some, with a slot that has got an image and whose hook waits, and returns it with the slot.
func (f *fleet) inFlight(image string, besides ...string) (pod, slot string) {
	f.Helper()
	lab.Eventually(f.T, podLimit, "a pod has got "+image, func() error {
		for _, p := range f.ns.Pods(f.T, "app=sleep") {
			if p.Deleting || strings.Contains(strings.Join(besides, " "), p.Name) {
				continue
			}
			images := f.ns.Kubectl(f.T, "get", "pod", p.Name, "-o", `jsonpath={range .spec['initContainers','containers'][*]}{.name} {.image}{"\n"}{end}`)
			for line := range strings.Lines(images) {
				if name, of, _ := strings.Cut(strings.TrimSpace(line), " "); of == image {
					if _, err := f.ns.TryExec(p.Name, name, "sh", "-c", hookAsks); err != nil {
						return err
					}
					pod, slot = p.Name, name
					return nil
				}
			}
		}
		return fmt.Errorf("none has")
	})
	return pod, slot
}

// open lets the Envoy of a gated image start in a pod.
func (f *fleet) open(pod string) {
	f.Helper()
	lab.Eventually(f.T, podLimit, "the gate of "+pod+" opens", func() error {
		_, err := f.ns.TryExec(pod, "istio-proxy", "sh", "-c", ":>"+gate)
		return err
	})
}

// TestLongFleetOfTwenty is an upgrade of twenty pods under load, the way back, and an image that nobody has: no request fails, no
// pod is unready but the one that was to pull what there is not.
func TestLongFleetOfTwenty(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	const pods = 20
	profile := strings.Replace(fleetProfile, "proxy: {", "proxy: {resources: {requests: {cpu: 20m, memory: 64Mi}}, ", 1)
	f := newFleet(t, "twenty", profile, pods)
	some := []string{"--bake=0s", "--soak=0s", "--observe=2s", "--max-unavailable=20%"}
	all := fmt.Sprintf("%d of %d pods run ", pods, pods)
	f.must(0, "Done: "+all+cluster.ProxyV2, append([]string{"--image", cluster.ProxyV2}, some...)...)
	f.mustRun(cluster.ProxyV2)
	f.must(0, "Done: "+all+cluster.ProxyDev, "--undo")
	f.mustRun(cluster.ProxyDev)
	f.mustStayReady()
	f.watch = f.ns.Watch(t)
	const missing = "understudy/proxy:nobody-has-it"
	f.must(1, fmt.Sprintf("Stopped: 0 of %d pods run ", pods)+missing, append([]string{"--image", missing}, some...)...)
	if u := f.object(); len(u.Status.Failed) != 1 {
		t.Errorf("failed: %+v, want one pod", u.Status.Failed)
	}
	unready := 0
	for _, p := range f.ns.Pods(t, "app=sleep") {
		if len(f.watch.Unready(p.Name)) > 0 {
			unready++
		}
	}
	if unready > 1 {
		t.Errorf("%d pods were unready for an image that one was given", unready)
	}
	f.mustRun(cluster.ProxyDev)
	f.watch = f.ns.Watch(t)
	f.mustNotFail()
}

// TestLongFleetFaults is an upgrade of three pods in a cluster in which things happen: a PodDisruptionBudget that allows nothing until it is gone, a
// kubelet that is started anew while a newcomer's hook waits, and an eviction of the pod that is under way. No request fails.
func TestLongFleetFaults(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, "fleet-faults", fleetProfile, 3)
	image := scripted(t, "fleet-gated", gated)
	f.ns.Apply(t, "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: all}, spec: {minAvailable: 3, selector: {matchLabels: {app: sleep}}}}")
	f.ns.Wait(t, podLimit, "jsonpath={.status.currentHealthy}=3", "pdb/all")
	c := f.begin("--image", image, "--bake=0s", "--soak=0s", "--observe=2s", "--max-unavailable=1")
	lab.Eventually(t, podLimit, "the pods are held by the budget", func() error {
		held := f.ns.Kubectl(t, "get", "sidecarupgrade", "-o", "jsonpath={.items[*].status.held[*].reason}")
		if n := strings.Count(held, "held by PDB all, which allows no disruption"); n != 3 {
			return fmt.Errorf("%d are: %s", n, held)
		}
		return nil
	})
	f.mustRun(cluster.ProxyDev)
	f.ns.Kubectl(t, "delete", "pdb", "all")

	first, slot := f.inFlight(image)
	before := f.ns.Pod(t, first).Containers
	if err := shared.Restart(t.Context(), cluster.Kubelet); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, podLimit, "the newcomer whose hook was cut off has a successor", func() error {
		if now := f.ns.Pod(t, first).Containers[slot]; now.Restarts <= before[slot].Restarts {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	f.open(first)

	second, _ := f.inFlight(image, first)
	if err := evict(t, f.ns, second); err != nil {
		t.Fatal(err)
	}
	opened := map[string]bool{first: true}
	lab.Eventually(t, fleetLimit, "every other pod is upgraded", func() error {
		for _, p := range f.ns.Pods(t, "app=sleep") {
			if !p.Deleting && p.Ready && !opened[p.Name] {
				f.open(p.Name)
				opened[p.Name] = true
			}
		}
		if u := f.object(); u.Status.Phase == "Running" || u.Status.Phase == "" {
			return fmt.Errorf("%+v", u.Status)
		}
		return nil
	})
	c.must(0, "Done: 3 of 3 pods run "+image)
	f.mustRun(image)
	f.mustAnswer()
}

// TestLongAbortAfterUpgrade: an image whose proxy never serves, right after an upgrade. The kubelet does not let the slot wait for the empty image, which
// it had a moment ago.
func TestLongAbortAfterUpgrade(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, "abort", fleetProfile, 2) // the other one answers while the bad one is unready
	f.must(0, "Done: 2 of 2 pods run "+cluster.ProxyV2, append([]string{"--image", cluster.ProxyV2}, quick...)...)
	image := scripted(t, "abort-gated", gated)
	f.must(1, "its new proxy does not serve after 10s", append([]string{"--image", image, "--deadline=10s"}, quick...)...)
	f.mustRun(cluster.ProxyV2)
	f.mustAnswer()
	if events := f.ns.Kubectl(t, "get", "events", "--field-selector", "reason=BackOff", "-o", "jsonpath={.items[*].message}"); strings.Contains(events, "restarting failed container") {
		t.Errorf("the kubelet let a slot wait: %s", events)
	}
}

// TestLongFleetWithoutRoom: a node without room for a second proxy. The pod is held, as it was, and is upgraded once there is room.
func TestLongFleetWithoutRoom(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, "no-room", fleetProfile, 1)
	milli := f.leaveRoom(50)
	f.ns.Apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: filler}, spec: {terminationGracePeriodSeconds: 1, containers: [
		{name: sleep, image: %s, imagePullPolicy: IfNotPresent, command: [sleep, infinity], resources: {requests: {cpu: %dm}}}]}}`, cluster.Curl, milli))
	f.ns.Wait(t, podLimit, "condition=Ready", "pod/filler")
	f.must(1, "no room on node", append([]string{"--image", cluster.ProxyV2}, quick...)...)
	name := f.ns.Pods(t, "app=sleep")[0].Name
	requests := f.ns.Kubectl(t, "get", "pod", name, "-o", "jsonpath={.spec.initContainers[?(@.name=='istio-proxy-2')].resources.requests.cpu}")
	if requests != "10m" {
		t.Errorf("the idle slot requests %s, not 10m as before", requests)
	}
	f.ns.Kubectl(t, "delete", "pod", "filler")
	f.must(0, "Done: 1 of 1 pods run "+cluster.ProxyV2, "--resume")
	f.mustRun(cluster.ProxyV2)
	f.mustNotFail()
}

// leaveRoom is how many thousandths of a CPU somebody has to request, that so many are left.
func (f *fleet) leaveRoom(left int) (milli int) {
	f.Helper()
	node := f.ns.Kubectl(f.T, "describe", "nodes")
	number := func(expression string) int {
		match := regexp.MustCompile(expression).FindStringSubmatch(node)
		if match == nil {
			f.Fatalf("no %s in\n%s", expression, node)
		}
		text, thousandths := strings.CutSuffix(match[1], "m")
		n, err := strconv.Atoi(text)
		if err != nil {
			f.Fatal(err)
		}
		if !thousandths {
			n *= 1000
		}
		return n
	}
	return number(`(?s)Allocatable:.*?cpu: +(\w+)`) - number(`(?s)Allocated resources:.*?cpu +(\w+)`) - left
}
