package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/tests/lab"
)

// withVolume is the pod's volumes, one of them changed, or without it when change is nil.
func withVolume(name string, change func(*lab.Volume)) []lab.Volume {
	volumes := lab.Volumes()
	i := slices.IndexFunc(volumes, func(v lab.Volume) bool { return v.Name == name })
	if change == nil {
		return slices.Delete(volumes, i, i+1)
	}
	change(&volumes[i])
	return volumes
}

func private(v *lab.Volume)  { v.Private = true }
func readOnly(v *lab.Volume) { v.ReadOnly = true }

// ownEverythingElse shares nothing but the hand-off directory.
func ownEverythingElse() []lab.Volume {
	volumes := lab.Volumes()
	for i := range volumes {
		volumes[i].Private = volumes[i].Name != lab.HandoffVolume
	}
	return volumes
}

// TestUpgradeVolumes upgrades, and goes back, in pods whose slots share more or less than usual.
func TestUpgradeVolumes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		volumes []lab.Volume
		args    []string // of the second generation
	}{
		{name: "own shm", volumes: withVolume(lab.ShmVolume, private)},
		{name: "own proxy directory", volumes: withVolume(lab.ProxyVolume, private)},
		{name: "own data directory", volumes: withVolume(lab.DataVolume, private)},
		{name: "own everything else", volumes: ownEverythingElse()},
		{name: "hand-off directory with setgid", volumes: withVolume(lab.HandoffVolume, func(v *lab.Volume) { v.Mode = "2777" })},
		{name: "fewer workers", args: []string{"--concurrency", "1"}},
		{name: "more workers", args: []string{"--concurrency", "4"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newSlotPod(t, lab.SlotsOptions{Volumes: tc.volumes})
			p.start(t, 0, p.older, 1, 0)
			p.mustServe(t, 0, p.older)
			load := startLoad(t, p)
			p.slot(1).AddArgs(tc.args...)
			p.start(t, 1, p.newer, 2, 1)
			p.mustServe(t, 1, p.newer)
			p.waitRole(t, 0, roleStandby)
			p.slot(0).Stop(lab.Deadline)
			p.start(t, 0, p.older, 3, 2)
			p.mustServe(t, 0, p.older)
			load.check(t)
		})
	}
}

// TestUpgradeImpossible starts a second generation where there can be no hand-off, or perhaps none:
// the first one has to serve, and the second either takes over or says what is wrong, and where.
func TestUpgradeImpossible(t *testing.T) {
	for _, tc := range []struct {
		name    string
		volumes []lab.Volume
		words   []string // of the newcomer's complaints, when it does not take over
		// The hand-off directory is filled up before the first generation starts, or after.
		fill, fillLater bool
	}{
		{name: "no hand-off directory", volumes: withVolume(lab.HandoffVolume, nil), words: []string{"address already in use"}},
		{name: "not writable", volumes: withVolume(lab.HandoffVolume, func(v *lab.Volume) { v.Mode = "0755" }), words: []string{"/etc/asm/uds"}},
		{name: "somebody else's", volumes: withVolume(lab.HandoffVolume, func(v *lab.Volume) { v.Mode, v.UID = "0700", lab.AppUID }), words: []string{"/etc/asm/uds"}},
		{name: "a hand-off directory of its own", volumes: withVolume(lab.HandoffVolume, private), words: []string{"address already in use"}},
		{name: "read-only shm", volumes: withVolume(lab.ShmVolume, readOnly), words: []string{"/dev/shm"}},
		{name: "full", volumes: withVolume(lab.HandoffVolume, func(v *lab.Volume) { v.Size = "64k" }), words: []string{"/etc/asm/uds"}, fill: true},
		{name: "fills up", volumes: withVolume(lab.HandoffVolume, func(v *lab.Volume) { v.Size = "64k" }), words: []string{"/etc/asm/uds"}, fillLater: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newSlotPod(t, lab.SlotsOptions{Volumes: tc.volumes})
			if tc.fill {
				fillHandoff(t, p)
			}
			p.start(t, 0, p.older, 1, 0)
			p.waitReady(t)
			must(t, p.flows())
			load := startLoad(t, p)
			if tc.fillLater {
				fillHandoff(t, p)
			}
			p.start(t, 1, p.newer, 2, 1)
			lab.Eventually(t, settleWithin, "the newcomer takes over, or says what is wrong", func() error {
				_, self, err := p.upgradeStatus(1)
				if err == nil && self.Role != roleServing {
					err = fmt.Errorf("it is %s", self.Role)
				}
				if err == nil {
					return nil
				}
				if said := contains(complaints(p.slot(1).Log.String()), tc.words...); said != nil {
					return errors.Join(err, said)
				}
				return nil
			})
			if p.inRole(1, roleServing) == nil {
				p.mustServe(t, 1, p.newer)
			} else {
				code, was := p.slot(1).Stop(atOnce)
				t.Logf("the newcomer was still there: %v (exit status %d), and had said: %s", was, code, complaints(p.slot(1).Log.String()))
				must(t, errors.Join(p.ready(), p.flows()))
			}
			load.check(t)
		})
	}
}

// complaints are the lines of a log in which an agent says that something is wrong.
func complaints(log string) string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, "pilot-agent: ") || strings.Contains(line, "\twarn\t") || strings.Contains(line, "\terror\t") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// fillHandoff leaves no byte in the hand-off directory.
func fillHandoff(t *testing.T, p *slotPod) {
	t.Helper()
	f, err := os.Create(filepath.Join(p.slots.VolumePath(lab.HandoffVolume, 0), "filler"))
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}
