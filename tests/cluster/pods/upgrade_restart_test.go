package pods

import (
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// TestKubeletRestartInUpgrade: the kubelet does not run a postStart hook again, and reports a container as ready that it finds. So
// a newcomer ends whose hook was cut off, and the next one has a hook again.
func TestKubeletRestartInUpgrade(t *testing.T) {
	u := beginGatedUpgrade(t)
	if err := shared.Stop(t.Context(), cluster.Kubelet, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	u.awaitEnd(t)
	if err := shared.Start(t.Context(), cluster.Kubelet); err != nil {
		t.Fatal(err)
	}
	u.pod.awaitGenerations(t, "handing-off", "starting")
	for _, seen := range u.pod.watch.Pod(u.pod.name) {
		if c := seen.Containers[slots[u.pod.work()]]; c.Ready && strings.HasSuffix(c.Image, u.image) {
			t.Errorf("%s the newcomer is reported as ready, and cannot serve", seen.At.Format(clock))
		}
	}
	u.complete(t)
}

// TestContainerdRestartInUpgrade: without containerd the hook fails, and the newcomer is started again.
func TestContainerdRestartInUpgrade(t *testing.T) {
	u := beginGatedUpgrade(t)
	if err := shared.Restart(t.Context(), cluster.Containerd); err != nil {
		t.Fatal(err)
	}
	u.awaitEnd(t)
	u.pod.awaitGenerations(t, "handing-off", "starting")
	u.complete(t)
}

// gatedUpgrade is an upgrade of one pod of two, under load, whose newcomer cannot serve before the gate is open.
type gatedUpgrade struct {
	pod       *twoSlots
	image     string
	before    map[string]cluster.Container
	newcomers []string // their containers
	load      traffic
}

func beginGatedUpgrade(t *testing.T) *gatedUpgrade {
	t.Helper()
	ns := shared.Namespace(t, "restart")
	applyMesh(t, ns)
	newTwoSlots(t, ns, "nginx-other", podOptions{})
	u := &gatedUpgrade{pod: newTwoSlots(t, ns, "nginx", podOptions{}), image: scripted(t, "gated", gated)}
	u.before = u.pod.containers(t)
	u.load = u.pod.startTraffic(t, toServices(t, ns)...)
	u.pod.beginGated(t, u.image)
	u.awaitHook(t)
	u.newcomers = shared.ContainersOf(t, u.image)
	return u
}

// hookAsks succeeds in a container in which a postStart hook has asked its agent.
const hookAsks = `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline | grep -qE '^(/usr/local/bin/)?pilot-agent wait' && ls -l $p/fd | grep -q socket: && exit; done 2>/dev/null; exit 1`

// awaitHook waits until the newcomer's postStart hook has asked its agent for the first time. A kubelet that ends before that
// leaves a newcomer that nobody ever waited for, as is one of a pod without a hook.
func (u *gatedUpgrade) awaitHook(t *testing.T) {
	t.Helper()
	lab.Eventually(t, stepLimit, "the hook waits", func() error {
		_, err := u.pod.ns.TryExec(u.pod.name, slots[u.pod.work()], "sh", "-c", hookAsks)
		return err
	})
}

// awaitEnd waits until the newcomer has ended that there was at first.
func (u *gatedUpgrade) awaitEnd(t *testing.T) {
	t.Helper()
	for _, id := range u.newcomers {
		shared.AwaitEnd(t, stepLimit, id)
	}
}

// complete opens the gate: the slot that serves has not been touched until then, and the upgrade succeeds.
func (u *gatedUpgrade) complete(t *testing.T) {
	t.Helper()
	u.pod.mustBeAsBefore(t, u.before)
	u.pod.openGate(t)
	u.pod.finish(t, u.image)
	u.pod.mustServeAlone(t, olderEnvoy)
	u.load.mustNotFail(t)
}
