package e2e_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// envoyReal is where a script that is /usr/local/bin/envoy finds the real one.
const envoyReal = "/usr/local/bin/envoy-real"

// scripted is an image whose Envoy is a shell script. The agent's questions to the binary
// (--version, --hot-restart-version, --mode validate) reach the real one.
func (p *slotPod) scripted(t *testing.T, name, script string) lab.Image {
	t.Helper()
	path := filepath.Join(p.Dir, strings.ReplaceAll(name, ":", "-"))
	content := "#!/bin/sh\ncase \" $* \" in *' --version '*|*' --hot-restart-version '*|*' --mode '*) exec " + envoyReal + " \"$@\";; esac\n" + script
	must(t, os.WriteFile(path, []byte(content), 0o755))
	image := p.newer
	image.Name, image.Envoy, image.Files = name, path, map[string]string{envoyReal: p.newer.Envoy}
	return image
}

// TestKruisePostStartSkipped is a kubelet that never runs the hook, so that Kruise stops the old
// slot while the new Envoy is still being started: the old agent serves on until the hand-off.
func TestKruisePostStartSkipped(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait})
	load := startLoad(t, p)
	p.kubelet.SkipPostStart(true)
	// Not a synchronisation: a slow start is what is tested.
	p.kruise.Upgrade(p.scripted(t, "proxy:slow", "sleep 3\nexec "+envoyReal+" \"$@\"\n"))
	p.kubelet.Log.WaitFor(t, "istio-proxy-1: Killing")
	p.kruise.WaitUpgraded(t)
	p.waitRole(t, 1, roleServing)
	load.check(t)
	if err := contains(p.kubelet.Log.String(), "SIGKILL"); err == nil {
		t.Error("the old agent did not end by itself")
	}
}

// hastyHookGrace is the grace period where a hook fails at once: its container may be stopped before its agent has a handler for SIGTERM, without
// which the first process of a PID namespace does not get it.
const hastyHookGrace = 5 * time.Second

// leavesService waits until the pod's Service refuses clients, because a slot is not ready.
func (p *slotPod) leavesService(t *testing.T) {
	t.Helper()
	lab.Eventually(t, lab.Deadline, "the Service refuses clients", func() error {
		if err := answers(p.Out, "http://"+lab.ServiceIP+":8080/"); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("it does not: %w", cmp.Or(err, errors.New("it answered")))
		}
		return nil
	})
}

// TestKruisePostStartFails is a hook that fails before the new generation serves: the kubelet kills
// its container again and again, and the old one does not notice. Then the hook is mended.
func TestKruisePostStartFails(t *testing.T) {
	t.Parallel()
	hook := []string{"/bin/sh", "-c", "test ! -e /config/fail && exec /usr/local/bin/pilot-agent wait"}
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: hook, Grace: hastyHookGrace, MaxRestartPeriod: lab.QuickRestarts})
	load := startLoadAt(t, p, lab.PodIP)
	fail := filepath.Join(p.slots.HostConfig, "fail")
	must(t, os.WriteFile(fail, nil, 0o644))
	p.kruise.Upgrade(p.newer)
	p.kubelet.Log.WaitFor(t, "(?s)istio-proxy-2: FailedPostStartHook.*istio-proxy-2: FailedPostStartHook")
	p.leavesService(t)
	must(t, os.Remove(fail))
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	load.check(t)
}

// TestKruisePostStartFailsLate is a hook that fails although the new generation serves: the kubelet
// stops it, and the old one, which stands by or still drains, serves again until the hook is mended.
func TestKruisePostStartFailsLate(t *testing.T) {
	t.Parallel()
	hook := []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait && test ! -e /config/fail"}
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: hook, MaxRestartPeriod: lab.QuickRestarts})
	fail := filepath.Join(p.slots.HostConfig, "fail")
	must(t, os.WriteFile(fail, nil, 0o644))
	load := startLoadAt(t, p, lab.PodIP)
	p.kruise.Upgrade(p.newer)
	p.kubelet.Log.WaitFor(t, "istio-proxy-2: FailedPostStartHook")
	must(t, os.Remove(fail))
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	load.check(t)
}

// TestKruiseImageMissing is an image that cannot be pulled: the empty slot is gone, and then the
// old container is killed. Its VERSION is less than its ALT now, and yet nobody else is there.
func TestKruiseImageMissing(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait})
	before := startLoadAt(t, p, lab.PodIP)
	p.kruise.Upgrade(lab.Image{Name: "proxy:nowhere", Missing: true})
	p.kubelet.Log.WaitFor(t, "istio-proxy-2: Failed: ErrImagePull")
	p.leavesService(t)
	p.address = lab.PodIP
	must(t, p.flows())
	before.check(t)

	p.kubelet.Crash(0)
	p.kubelet.Log.WaitFor(t, fmt.Sprintf("istio-proxy-1: Started: proxy:older, VERSION=1 ALT=%d", p.kruise.Revision()))
	p.mustServe(t, 0, p.older)
	// Where no container is ready, Kruise may put the next image into the one that serves.
	p.kubelet.WaitRunning(t, 0)
	after := startLoad(t, p)
	p.kruise.Upgrade(p.newer)
	p.kruise.WaitUpgraded(t)
	p.address = lab.ServiceIP
	p.mustServe(t, p.kruise.Working(), p.newer)
	after.check(t)
}

// TestKruiseSwitchedTooOften is what docs/upgrade.md says of many switches in quick succession: the fourth of a new pod comes to an image
// that its slot had before, and waits, although nothing has failed. The pod leaves its Service meanwhile; the old generation serves on.
func TestKruiseSwitchedTooOften(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait})
	before := startLoad(t, p)
	for _, image := range []lab.Image{p.newer, p.older, p.newer} {
		p.kruise.Upgrade(image)
		p.kruise.WaitUpgraded(t)
	}
	before.check(t)
	during := startLoadAt(t, p, lab.PodIP)
	p.kruise.Upgrade(p.older)
	p.kubelet.Log.WaitFor(t, "(?s)istio-proxy-1: Ended: proxy:empty, exit status 0\n.*istio-proxy-1: CrashLoopBackOff: proxy:older")
	p.leavesService(t)
	if status, _ := p.kubelet.Status(); status[0].Waiting != "CrashLoopBackOff" {
		t.Errorf("the status of the slot that waits: %+v", status[0])
	}
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 0, p.older)
	during.check(t)
}

// TestKruiseResetEarly stops the old slot in the moment in which the new one is started, before
// the kubelet has even looked whether it is.
func TestKruiseResetEarly(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait})
	p.kubelet.SkipPostStart(true)
	p.kruise.Upgrade(p.newer)
	p.kubelet.Log.WaitFor(t, "Kruise: upgrade")
	p.kruise.Reset() // both slots are stopped now, and then started: there is nothing to hand over
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	load := startLoad(t, p)
	p.kubelet.SkipPostStart(false)
	p.kruise.Upgrade(p.older)
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 0, p.older)
	load.check(t)
}

// TestKruiseNodeRestart takes the power away, in the middle of an upgrade and after it: the slots
// start with the numbers and the hand-off directory of before.
func TestKruiseNodeRestart(t *testing.T) {
	for _, together := range []bool{true, false} {
		t.Run(fmt.Sprintf("together=%v", together), func(t *testing.T) {
			t.Parallel()
			p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait})
			p.upgradeHalf(t)
			must(t, p.kubelet.RestartNode(t.Context(), together))
			lab.Eventually(t, settleWithin, "one serves", func() error {
				_, err := p.onlyOneServes()
				return errors.Join(err, p.ready())
			})
			p.mustServe(t, 1, p.newer)

			load := startLoad(t, p)
			p.kruise.Pause(false)
			p.kruise.WaitUpgraded(t)
			p.mustServe(t, 1, p.newer)
			load.check(t)
			must(t, p.kubelet.RestartNode(t.Context(), together))
			p.mustServe(t, 1, p.newer)
		})
	}
}

// upgradeHalf upgrades the pod, but for the reset: slot 2 serves and slot 1 has its agent still.
func (p *slotPod) upgradeHalf(t *testing.T) {
	t.Helper()
	at := p.kubelet.Log.Len()
	// Paused only when the upgrade has begun; the hook keeps the reset away until then.
	p.kruise.Upgrade(p.newer)
	p.kubelet.Log.WaitForAfter(t, at, "istio-proxy-2: Kruise: upgrade")
	p.kruise.Pause(true)
	p.kubelet.Log.WaitForAfter(t, at, "istio-proxy-2: postStart done")
	p.mustServe(t, 1, p.newer)
}

// TestKruiseOldRestarted kills the old container between the hand-off and the reset: it stands by.
// Its hooks do not touch the generation that serves. When that one is gone, the pod serves again.
func TestKruiseOldRestarted(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait, MaxRestartPeriod: lab.QuickRestarts})
	load := startLoadAt(t, p, lab.PodIP)
	p.upgradeHalf(t)
	for range 2 {
		at := p.kubelet.Log.Len()
		p.waitRole(t, 0, roleStandby)
		if got := p.slot(0).Run(t, lab.AgentPath, "request", "POST", "/drain"); got.Code != 0 {
			t.Errorf("POST /drain in a standby: %v", got)
		}
		p.mustServe(t, 1, p.newer)
		p.kubelet.Crash(0)
		p.kubelet.Log.WaitForAfter(t, at, fmt.Sprintf("istio-proxy-1: Started: proxy:older, VERSION=1 ALT=%d", p.kruise.Revision()))
	}
	p.kubelet.Log.WaitFor(t, "(?s)istio-proxy-1: OOMKilled.*istio-proxy-1: OOMKilled.*istio-proxy-1: postStart done")
	p.waitRole(t, 0, roleStandby)
	load.check(t)

	p.kubelet.Crash(1)
	p.mustServe(t, 1, p.newer)
	p.kruise.Pause(false)
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	if got := p.slot(0).Run(t, lab.AgentPath, "request", "POST", "/drain"); got.Code != 0 {
		t.Errorf("POST /drain in the empty slot: %v", got)
	}
	must(t, p.flows())
}

// TestKruiseNewEnvoyFails upgrades to images whose Envoy does not work. The old generation serves on,
// the agent's container says why, and the next image is upgraded to.
func TestKruiseNewEnvoyFails(t *testing.T) {
	for _, tc := range []struct{ name, script string }{
		{"exits at once", "exit 3\n"},
		{"exits later", "sleep 1\nexit 3\n"},
		{"hangs", "trap '' TERM\nwhile :; do sleep 1; done\n"},
		{"is never ready", "exec " + envoyReal + " --use-dynamic-base-id --config-yaml '{}'\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			hook := []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait --timeoutSeconds 4"}
			p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: hook, Grace: 3 * time.Second, MaxRestartPeriod: lab.QuickRestarts})
			load := startLoadAt(t, p, lab.PodIP)
			p.kruise.Upgrade(p.scripted(t, "proxy:bad", tc.script))
			p.kubelet.Log.WaitFor(t, "istio-proxy-2: FailedPostStartHook")
			p.leavesService(t)
			p.waitRole(t, 0, roleServing) // the next attempt begins soon
			eventually(t, "the old agent says what became of the attempt", func() error {
				attempt, err := p.lastAttempt(0)
				if err == nil && (attempt.TakingOver || attempt.Result != "failure" || attempt.Reason == "") {
					err = fmt.Errorf("%+v", attempt)
				}
				return err
			})
			// An agent that waits for its Envoy has nothing to complain of yet; the hook gives up, and says why.
			if complaints(p.slot(1).Log.String()) == "" && !strings.Contains(p.kubelet.Log.String(), "Last error: the agent is starting: ") {
				t.Error("neither the new agent nor its hook says what is wrong")
			}
			p.kruise.Upgrade(p.newer)
			p.kruise.WaitUpgraded(t)
			p.mustServe(t, 1, p.newer)
			load.check(t)
		})
	}
}
