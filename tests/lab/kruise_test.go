package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// bed is the stand-ins around containers that do nothing.
type bed struct {
	*lab.Lab
	slots            *lab.Slots
	kubelet          *lab.Kubelet
	kruise           *lab.Kruise
	old, next, empty lab.Image
}

func newBed(t *testing.T, o lab.KubeletOptions) *bed {
	t.Helper()
	b := &bed{Lab: lab.New(t)}
	b.slots = b.NewSlots(t, lab.SlotsOptions{})
	program := lab.StandbyBinary(t)
	b.old, b.next, b.empty = lab.Image{Name: "old", Agent: program}, lab.Image{Name: "next", Agent: program}, lab.Image{Name: "empty", Agent: program}
	b.kubelet = lab.NewKubelet(t, b.slots, o)
	b.kruise = lab.NewKruise(t, b.kubelet, b.old, b.empty)
	return b
}

// versions is "VERSION/ALT VERSION/ALT" as the containers that run have them.
func (b *bed) versions(t *testing.T) string {
	t.Helper()
	var all []string
	for _, s := range b.slots.List {
		got := s.Run(t, "sh", "-c", `tr '\0' '\n' </proc/1/environ`)
		env := map[string]string{}
		for line := range strings.Lines(got.Stdout) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			env[name] = value
		}
		all = append(all, env[lab.VersionEnv]+"/"+env[lab.VersionAltEnv])
	}
	return strings.Join(all, " ")
}

// TestKruise follows the numbers through two upgrades, as the comment on lab.Kruise gives them.
func TestKruise(t *testing.T) {
	b := newBed(t, lab.KubeletOptions{PostStart: []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait"}, PreStop: []string{"/bin/sh", "-c", "sleep 0.1"}})
	b.kruise.WaitUpgraded(t)
	if got, want := b.versions(t), "1/0 0/1"; got != want {
		t.Errorf("after injection: %s, want %s", got, want)
	}
	b.kruise.Upgrade(b.next)
	b.kruise.WaitUpgraded(t)
	r1 := b.kruise.Revision()
	if got, want := b.versions(t), fmt.Sprintf("0/%d %d/1", r1, r1); got != want {
		t.Errorf("after the first upgrade: %s, want %s", got, want)
	}
	b.kruise.Upgrade(b.old)
	b.kubelet.Log.WaitFor(t, fmt.Sprintf("istio-proxy-1: Started: old, VERSION=%d ALT=%d", r1+1, r1))
	b.kruise.WaitUpgraded(t)
	if got, want := b.versions(t), fmt.Sprintf("%d/%d 0/%d", r1+1, r1, r1+1); got != want {
		t.Errorf("after the second upgrade: %s, want %s", got, want)
	}
	b.kubelet.Crash(0) // after the reset, its next life reads ALT 0
	b.kubelet.Log.WaitFor(t, fmt.Sprintf("istio-proxy-1: Started: old, VERSION=%d ALT=0", r1+1))
	if got := b.kubelet.Pod().Annotations[lab.WorkingAnnotation]; got != `{"istio-proxy":"istio-proxy-1"}` {
		t.Errorf("the working container: %s", got)
	}
	if n := strings.Count(b.kubelet.Log.String(), "postStart done"); n < 6 {
		t.Errorf("%d postStart hooks ran, want those of both slots, twice, and of an upgrade, twice", n)
	}
}

// TestKubelet is what goes wrong: hooks that fail or hang, an image that cannot be pulled, a node
// that restarts.
func TestKubelet(t *testing.T) {
	hook := []string{"/bin/sh", "-c", "test -e /config/go && exec sleep $(cat /config/go)"}
	// A hook that fails at once may have its container stopped before that has a handler for SIGTERM, which PID 1 needs to get it.
	b := newBed(t, lab.KubeletOptions{PostStart: hook, Grace: 2 * time.Second, MaxRestartPeriod: lab.QuickRestarts})
	b.kubelet.Log.WaitFor(t, "(?s)FailedPostStartHook.*FailedPostStartHook.*FailedPostStartHook")
	hooksTake(t, b, "0")
	b.kruise.WaitUpgraded(t)

	// The empty slot is gone before the image is missed; the old one, restarted, reads that it is older.
	b.kruise.Upgrade(lab.Image{Name: "nowhere", Missing: true})
	b.kubelet.Log.WaitFor(t, "istio-proxy-2: Failed: ErrImagePull")
	if _, running := b.slots.List[1].Running(); running {
		t.Error("the empty slot runs on")
	}
	b.kubelet.Crash(0)
	b.kubelet.Log.WaitFor(t, fmt.Sprintf("(?s)istio-proxy-1: Started: old, VERSION=1 ALT=%d.*istio-proxy-1: postStart done", b.kruise.Revision()))
	lab.Eventually(t, lab.Deadline, "that is published", func() error {
		if status, _ := b.kubelet.Status(); !status[0].Running {
			return fmt.Errorf("%+v", status)
		}
		return nil
	})

	// While a hook runs, the kubelet publishes nothing and Kruise waits.
	hooksTake(t, b, "1000")
	b.kruise.Upgrade(b.next)
	b.kubelet.Log.WaitFor(t, "istio-proxy-2: Started: next")
	if status, _ := b.kubelet.Status(); status[1].Running {
		t.Errorf("a container whose hook is still running: %+v", status)
	}
	hooksTake(t, b, "0")
	b.kruise.Pause(true)
	for _, together := range []bool{true, false} {
		at := b.kubelet.Log.Len()
		if err := b.kubelet.RestartNode(t.Context(), together); err != nil {
			t.Fatal(err)
		}
		b.kubelet.Log.WaitForAfter(t, at, fmt.Sprintf("istio-proxy-2: Started: next, VERSION=%d ALT=1", b.kruise.Revision()))
		b.kubelet.Log.WaitForAfter(t, at, fmt.Sprintf("istio-proxy-1: Started: old, VERSION=1 ALT=%d", b.kruise.Revision()))
	}
	b.kruise.Pause(false)
	b.kruise.WaitUpgraded(t)
}

// hooksTake gives the hooks of TestKubelet their duration.
func hooksTake(t *testing.T, b *bed, seconds string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.slots.HostConfig, "go"), []byte(seconds), 0o644); err != nil {
		t.Fatal(err)
	}
}
