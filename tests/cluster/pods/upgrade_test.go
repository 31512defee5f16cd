package pods

import (
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
)

// The Envoys of the images, as upgrade-status calls them.
const (
	newerEnvoy = "1.40.0"
	olderEnvoy = "1.39.3"
)

// TestHotUpgrade upgrades the pod of manifests/ and rolls it back, as OpenKruise does it, under load of every kind.
func TestHotUpgrade(t *testing.T) {
	ns := shared.Namespace(t, "upgrade")
	applyMesh(t, ns)
	p := newTwoSlots(t, ns, "nginx", podOptions{})
	p.mustServeAlone(t, newerEnvoy)
	before := p.containers(t)
	load := p.startTraffic(t, toServices(t, ns)...)

	p.upgrade(t, cluster.ProxyV2)
	p.mustServeAlone(t, olderEnvoy)
	p.mustAnswerInBothSlots(t)
	p.upgrade(t, cluster.ProxyV1)
	p.mustServeAlone(t, newerEnvoy)
	p.mustAnswerInBothSlots(t)
	mustShow(t, ns, p.name, slots[p.serving], "Last upgrade", "the generation before has drained")

	load.mustNotFail(t)
	p.mustAlwaysBeReady(t)
	for _, text := range p.warnings(t) {
		t.Errorf("an event warns: %s", text)
	}
	for name, c := range p.containers(t) {
		isSlot := name == slots[0] || name == slots[1]
		switch last := c.Last; {
		case !isSlot && c.ID != before[name].ID:
			t.Errorf("container %s was started again: %v", name, last)
		case isSlot && (c.Restarts != 2 || last.ExitCode != 0 || last.Message != ""):
			t.Errorf("container %s was started %d times, the last life but one ended with %v, %q", name, 1+c.Restarts, last, last.Message)
		}
	}
}

func (p *twoSlots) containers(t *testing.T) map[string]cluster.Container {
	t.Helper()
	return p.ns.Pod(t, p.name).Containers
}

// mustAnswerInBothSlots asks both slots as kubectl, istioctl and people do who know nothing of slots.
func (p *twoSlots) mustAnswerInBothSlots(t *testing.T) {
	t.Helper()
	for _, slot := range slots {
		if out := p.ns.Exec(t, p.name, slot, "pilot-agent", "request", "GET", "/stats"); !strings.Contains(out, "\nserver.uptime:") {
			t.Errorf("pilot-agent request GET /stats in %s: %.200q", slot, out)
		}
	}
	_, err := p.ns.TryExec(p.name, slots[p.work()], "pilot-agent", "upgrade-status")
	want := "kubectl exec " + p.name + " -n " + p.ns.Name + " -c " + slots[p.serving] + " -- pilot-agent upgrade-status"
	if status := cluster.ExitStatus(err); status != 1 || !strings.Contains(err.Error(), want) {
		t.Errorf("upgrade-status in the empty slot: want exit status 1 and %q, got %d, %v", want, status, err)
	}
}
