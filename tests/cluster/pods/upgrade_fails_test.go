package pods

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
)

// withoutHotRestart is an Envoy as it is where it was built without: it takes the flags, and says so when it is asked.
const withoutHotRestart = "#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && { echo disabled >&2; exit; }\nexec " + cluster.OlderEnvoy + " \"$@\" --disable-hot-restart\n"

// TestBrokenNewcomers upgrades one pod of two to images whose Envoy can never take over: their slot ends with the reason,
// where kubectl shows it; nobody notices; and the next image that is right is upgraded to.
func TestBrokenNewcomers(t *testing.T) {
	ns := shared.Namespace(t, "broken")
	applyMesh(t, ns)
	newTwoSlots(t, ns, "nginx-other", podOptions{})
	p := newTwoSlots(t, ns, "nginx", podOptions{})
	before := p.containers(t)
	load := p.startTraffic(t, toServices(t, ns)...)
	for _, broken := range []struct{ name, envoy, reason string }{
		{"text", "no program\n", "cannot take over from .*: exec format error"},
		{"no-hot-restart", withoutHotRestart, "cannot take over from .*: this Envoy takes no part in hot restarts"},
		{"dies", "#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && exec " + cluster.OlderEnvoy + " \"$@\"\nexit 3\n", "cannot take over from .*: Envoy ended 5 times before it ever served"},
	} {
		p.begin(t, withEnvoy(t, broken.name, broken.envoy))
		reason := regexp.MustCompile(broken.reason)
		p.awaitSlot(t, p.work(), "ends with the reason", func(c cluster.Container) bool {
			life := c.State
			if life.Terminated == "" {
				life = c.Last
			}
			return life.ExitCode == 1 && !c.Ready && reason.MatchString(life.Message)
		})
		if shown := p.ns.Kubectl(t, "describe", "pod", p.name); !regexp.MustCompile(`(?m)^\s+Message:\s+.*` + broken.reason).MatchString(shown) {
			t.Errorf("%s: kubectl describe pod does not say why:\n%s", broken.name, shown)
		}
		if !contains(p.warnings(t), "FailedPostStartHook: ") {
			t.Errorf("%s: no event says that the hook failed: %q", broken.name, p.warnings(t))
		}
	}
	p.mustBeAsBefore(t, before)
	p.upgrade(t, cluster.ProxyV2)
	p.mustServeAlone(t, olderEnvoy)
	load.mustNotFail(t)
}

func contains(texts []string, part string) bool {
	return strings.Contains(strings.Join(texts, "\n"), part)
}

// mustBeAsBefore demands that the slot that serves and the application have not been touched.
func (p *twoSlots) mustBeAsBefore(t *testing.T, before map[string]cluster.Container) {
	t.Helper()
	now := p.containers(t)
	for _, name := range []string{slots[p.serving], application} {
		if c := now[name]; c.ID != before[name].ID || !c.Ready {
			t.Errorf("container %s is another than before: %v, ready %v, before it %v", name, c.State, c.Ready, c.Last)
		}
	}
}

// TestImageThatCannotBePulled tries both ways out: an image that can be pulled, and the empty image again.
func TestImageThatCannotBePulled(t *testing.T) {
	ns := shared.Namespace(t, "unpullable")
	applyMesh(t, ns)
	newTwoSlots(t, ns, "nginx-other", podOptions{})
	p := newTwoSlots(t, ns, "nginx", podOptions{})
	before := p.containers(t)
	load := p.startTraffic(t, toServices(t, ns)...)

	cannotBePulled := func(image string) {
		p.begin(t, image)
		p.awaitSlot(t, p.work(), "cannot be pulled", func(c cluster.Container) bool { return c.State.Waiting == "ImagePullBackOff" })
		if pod := ns.Pod(t, p.name); pod.Ready {
			t.Error("docs/upgrade.md says that the pod is not ready; it is")
		}
		p.mustBeAsBefore(t, before)
	}
	cannotBePulled("understudy/proxy:none")
	ns.Kubectl(t, "set", "image", "pod/"+p.name, slots[p.work()]+"="+cluster.Empty)
	p.await(t, p.work(), cluster.Empty)
	ns.Wait(t, stepLimit, "condition=Ready", "pod/"+p.name)
	p.mustBeAsBefore(t, before)

	cannotBePulled("understudy/proxy:nor-this")
	p.upgrade(t, cluster.ProxyV2)
	ns.Wait(t, stepLimit, "condition=Ready", "pod/"+p.name)
	p.mustServeAlone(t, olderEnvoy)
	load.mustNotFail(t)
}

// TestLongThirdUpgrade is what docs/upgrade.md says of more than two switches in ten minutes, with the back-off that kubelets
// have: a slot waits that gets an image which it had, and the pod is not ready meanwhile. It serves whoever connects.
func TestLongThirdUpgrade(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	ns := shared.Namespace(t, "third")
	applyMesh(t, ns)
	p := newTwoSlots(t, ns, "nginx", podOptions{})
	load := p.startTraffic(t)
	p.upgrade(t, cluster.ProxyV2)
	p.upgrade(t, cluster.ProxyV1)
	p.mustAlwaysBeReady(t)
	image := cluster.ProxyV2
	for n := 3; !p.beginAndSeeWhetherItWaits(t, image); n++ {
		if n == maxSwitches {
			t.Fatalf("no slot waited in %d upgrades", n)
		}
		p.finish(t, image)
		image = map[string]string{cluster.ProxyV1: cluster.ProxyV2, cluster.ProxyV2: cluster.ProxyV1}[image]
	}
	if ns.Pod(t, p.name).Ready {
		t.Error("the pod is ready while a slot waits")
	}
	p.finish(t, image)
	load.mustNotFail(t)
}

// maxSwitches is the upgrade in quick succession at which a slot waits at the latest: the third, or the fourth if no container of
// the pod has ended before.
const maxSwitches = 4

// beginAndSeeWhetherItWaits is begin, and returns once the slot runs the image or (true) is in the kubelet's back-off.
func (p *twoSlots) beginAndSeeWhetherItWaits(t *testing.T, image string) (waits bool) {
	t.Helper()
	p.begin(t, image)
	p.awaitSlot(t, p.work(), "runs or waits", func(c cluster.Container) bool {
		waits = c.State.Waiting == "CrashLoopBackOff" && c.Last.ExitCode == 0
		return waits || c.Ready && strings.HasSuffix(c.Image, image)
	})
	t.Logf("%s %s waits: %v", time.Now().Format(clock), slots[p.work()], waits)
	return waits
}
