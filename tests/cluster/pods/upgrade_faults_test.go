package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// gate is a file that both slots see; gated is an Envoy that does not start before it is there.
const (
	gate  = "/etc/asm/uds/open"
	gated = "until [ -e " + gate + " ]; do sleep 0.1; done\nexec " + cluster.OlderEnvoy + " \"$@\"\n"
)

// beginGated begins an upgrade to an image whose Envoy waits for the gate, and returns when it waits.
func (p *twoSlots) beginGated(t *testing.T, image string) {
	t.Helper()
	p.begin(t, image)
	p.awaitGenerations(t, "handing-off", "starting")
}

// awaitGenerations waits until the generations of the pod have these roles, as the slot that serves has them: its own first.
func (p *twoSlots) awaitGenerations(t *testing.T, want ...string) {
	t.Helper()
	lab.Eventually(t, stepLimit, fmt.Sprintf("the generations are %v", want), func() error {
		status, err := p.tryStatus(p.serving) // a kubelet that has just begun knows no pod
		if err != nil {
			return err
		}
		var roles []string
		for _, g := range status.Generations {
			roles = append(roles, g.Role)
		}
		if strings.Join(roles, " ") != strings.Join(want, " ") {
			return fmt.Errorf("they are %v", roles)
		}
		return nil
	})
}

func (p *twoSlots) openGate(t *testing.T) {
	t.Helper()
	lab.Eventually(t, stepLimit, "the gate opens", func() error { // after a power loss there is no container at first
		_, err := p.ns.TryExec(p.name, slots[p.serving], "sh", "-c", ": >"+gate)
		return err
	})
	t.Logf("%s the gate is open", time.Now().Format(clock))
}

// TestPowerLossInHandOff: the node goes while a newcomer starts.
func TestPowerLossInHandOff(t *testing.T) {
	ns := shared.Namespace(t, "power-handoff")
	applyMesh(t, ns)
	p := newTwoSlots(t, ns, "nginx", podOptions{})
	vip := p.vip(t)
	image := scripted(t, "gated", gated)
	p.beginGated(t, image)
	before := p.losePower(t)
	p.openGate(t)
	p.awaitRestart(t, before)
	p.finish(t, image)
	p.mustBeWhole(t, vip, olderEnvoy)
}

// TestPowerLossInDrain: the node goes while the generation before still has connections.
func TestPowerLossInDrain(t *testing.T) {
	ns := shared.Namespace(t, "power-drain")
	applyMesh(t, ns)
	p := newTwoSlots(t, ns, "nginx", podOptions{})
	vip := p.vip(t)
	ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.TCPStream, Target: ns.Pod(t, p.name).IP + ":9000", Rate: 10})
	p.begin(t, cluster.ProxyV2)
	p.await(t, p.work(), cluster.ProxyV2)
	p.reset(t)
	p.awaitGenerations(t, "serving", "draining")
	before := p.losePower(t)
	p.awaitRestart(t, before)
	p.mustBeWhole(t, vip, olderEnvoy)
}

// losePower is a power loss, and returns the containers that there were. The kubelet then starts them anew in their order, each
// when the hook of the one before is done, and tells the API server when all are.
func (p *twoSlots) losePower(t *testing.T) (before map[string]cluster.Container) {
	t.Helper()
	before = p.containers(t)
	if err := shared.PowerLoss(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.watch = p.ns.Watch(t)
	return before
}

// awaitRestart waits until all containers are other ones, and ready.
func (p *twoSlots) awaitRestart(t *testing.T, before map[string]cluster.Container) {
	t.Helper()
	lab.Eventually(t, stepLimit, "all containers are started again", func() error {
		pod, err := p.now()
		if err != nil {
			return err
		}
		for _, name := range []string{slots[0], slots[1], application} {
			if c := pod.Containers[name]; !c.Ready || c.ID == before[name].ID {
				return fmt.Errorf("%s: %v, ready %v", name, c.State, c.Ready)
			}
		}
		return nil
	})
}

// vip is the address of the shop for the application.
func (p *twoSlots) vip(t *testing.T) string {
	t.Helper()
	for _, line := range strings.Split(p.ns.Exec(t, p.name, slots[p.serving], "pilot-agent", "dns", "lookup", shop), "\n") {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "240.240.") {
				return word
			}
		}
	}
	t.Fatalf("%s has no VIP", shop)
	return ""
}

// mustBeWhole demands that the pod is as any other: one generation serves, hosts have the VIPs that they had, no request
// fails, also while it is upgraded.
func (p *twoSlots) mustBeWhole(t *testing.T, vip, envoy string) {
	t.Helper()
	p.ns.Wait(t, stepLimit, "condition=Ready", "pod/"+p.name)
	p.mustServeAlone(t, envoy)
	if now := p.vip(t); now != vip {
		t.Errorf("%s had the VIP %s, and has %s", shop, vip, now)
	}
	load := p.startTraffic(t)
	p.upgrade(t, cluster.ProxyDev)
	p.mustServeAlone(t, newerEnvoy)
	load.mustNotFail(t)
}
