package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// TestChaosLeftovers has one take-over after the other fail, and looks for what they left behind:
// on disk, in shared memory, and in the agent that serves on.
func TestChaosLeftovers(t *testing.T) {
	t.Parallel()
	random, failures := chance(t), 10
	if rounds(t) >= soakRounds {
		failures = 40
	}
	p := newChaosPod(t)
	p.upgrade(t) // so that the generation that serves has once taken over itself
	p.vacate(t)
	before, descriptors, goroutines := p.portrait(t), p.descriptors(t), p.goroutines(t)
	for i := range failures {
		l := p.launch(t, 1-p.serving, p.other())
		// Before it accepts on anything, and so at the latest before it would be the one that serves.
		m := moment{after: time.Duration(random.Int64N(int64(warmUp)))}
		if i%2 == 0 {
			m = moment{line: []string{saysTakingOver, saysEnvoyStarted, saysLetGo}[random.IntN(3)]}
		}
		m.wait(t, l)
		l.slot.Kill()
	}
	p.settle(t)
	p.unchanged(t, before)
	lab.Eventually(t, lab.Deadline, "no descriptor and no goroutine is left", func() error {
		if now := p.descriptors(t); len(now) > len(descriptors) {
			return fmt.Errorf("%d descriptors, and before %d: %q, and before %q", len(now), len(descriptors), now, descriptors)
		}
		if now := p.goroutines(t); now > goroutines {
			return fmt.Errorf("%d goroutines, and before %d", now, goroutines)
		}
		return nil
	})
	p.upgrade(t)
	p.onlyOwnFiles(t)
}

// onlyOwnFiles demands that what is on disk belongs to generations that live.
func (p *chaosPod) onlyOwnFiles(t *testing.T) {
	t.Helper()
	all, self, err := p.upgradeStatus(p.serving)
	must(t, err)
	var places []string
	for _, g := range all.Generations {
		places = append(places, g.ID+".lock", g.ID+".sock")
	}
	handoff := fmt.Sprint("understudy-", lab.AgentUID)
	for _, want := range []struct {
		volume, dir string
		names       []string
	}{
		{lab.HandoffVolume, "", []string{handoff}},
		{lab.HandoffVolume, handoff, places},
		{lab.ProxyVolume, "", []string{"gen-" + self.ID}},
	} {
		slices.Sort(want.names)
		if got := list(t, p.slots.VolumePath(want.volume, 0)+"/"+want.dir); !slices.Equal(got, want.names) {
			t.Errorf("%s/%s has %q, want %q", want.volume, want.dir, got, want.names)
		}
	}
	if got := list(t, p.slots.VolumePath(lab.ShmVolume, 0)); len(got) != 1 {
		t.Errorf("/dev/shm has %q, and there is one Envoy", got)
	}
	// What the files make is written a second after it is in force, and may not be there yet.
	if got := list(t, p.slots.VolumePath(lab.DataVolume, 0)); !slices.Equal(got, []string{compiledFile, "vips.json"}) && !slices.Equal(got, []string{"vips.json"}) {
		t.Errorf("/var/lib/istio/data has %q, want the VIP file and what the files make", got)
	}
}

// compiledFile has what the files make.
const compiledFile = "compiled.pb"

// descriptors are those of the agent that serves, but for what the files make, which is read from where it was written last.
func (p *chaosPod) descriptors(t *testing.T) (open []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.slot(p.serving).Agent().PID())
	for _, fd := range list(t, dir) {
		target, err := os.Readlink(dir + "/" + fd)
		if err == nil && !strings.Contains(target, compiledFile) { // it is open still
			open = append(open, target)
		}
	}
	slices.Sort(open)
	return open
}

// goroutines are what the agent that serves counts, while it answers this question.
func (p *chaosPod) goroutines(t *testing.T) (n int) {
	t.Helper()
	_, metrics, err := p.Out.Get("http://" + lab.PodIP + ":15020/metrics")
	must(t, err)
	_, value, found := strings.Cut(metrics, "\nistio_agent_go_goroutines ")
	if _, err := fmt.Sscan(value, &n); !found || err != nil {
		t.Fatalf("no istio_agent_go_goroutines in the metrics: %v", err)
	}
	return n
}

// list names what is in a directory, sorted.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
