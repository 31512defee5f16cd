package rollout

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
)

// TestUpgradeAndUndo: five pods get the image and lose it again; the third switch within ten minutes waits.
func TestUpgradeAndUndo(t *testing.T) {
	f := newNode(t, 5)
	f.run(30 * time.Minute)
	f.images(newImage, emptyImage)
	s := f.upgrade.Status
	if s.Phase != Done || s.Pods != (Counts{Total: 5, Done: 5}) || s.PreviousImage != oldImage || f.maxFlying != 1 || f.writes != 10 {
		t.Errorf("%+v, at most %d in flight, %d writes", s, f.maxFlying, f.writes)
	}
	f.ask(oldImage)
	f.run(30 * time.Minute)
	f.images(oldImage, emptyImage)
	if s := f.upgrade.Status; s.PreviousImage != newImage || s.Run != 2 {
		t.Errorf("after undo: %+v", s)
	}
	f.ask(newImage)
	f.step()
	f.step()
	if s := f.upgrade.Status; len(s.Held) != 5 || !strings.Contains(s.Held[0].Reason, "its third switch within ten minutes") {
		t.Errorf("a third switch: %+v", s)
	}
	if took := f.run(time.Hour); took < 5*time.Minute {
		t.Errorf("it took %s", took)
	}
	f.images(newImage, emptyImage)
	if f.unreadyEver > 0 {
		t.Errorf("pods were unready %d times", f.unreadyEver)
	}
}

// TestBadImageStopsAtOnePod: the first pod fails and goes back, no other is begun; another image then goes on.
func TestBadImageStopsAtOnePod(t *testing.T) {
	f := newNode(t, 20)
	f.ask(badImage)
	f.run(10 * time.Minute)
	s := f.upgrade.Status
	if s.Phase != Stopped || len(s.Failed) != 1 || !strings.Contains(s.Failed[0].Reason, "ErrImagePull: no such image") || f.writes != 2 || s.Pods.Failed != 1 {
		t.Errorf("%+v, %d writes", s, f.writes)
	}
	f.images(oldImage, emptyImage)
	f.ask(newImage)
	f.run(time.Hour)
	f.images(newImage, emptyImage)
	if s := f.upgrade.Status; s.PreviousImage != oldImage || len(s.Failed) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestAbortAfterUpgrade: a bad image right after an upgrade, whose slot has had the empty image a moment ago. It gets that again with other
// requests, for which the kubelet lets it not wait. Where the API server refuses these, it goes back all the same.
func TestAbortAfterUpgrade(t *testing.T) {
	for _, refused := range []bool{false, true} {
		f := newNode(t, 1, small)
		f.run(30 * time.Minute)
		f.ask(badImage)
		if refused {
			f.upgrade.Spec.Force = true // the kubelet lets the slot wait
			f.refuse = func(w Write) bool {
				return w.Resize && f.pods["pod-00000"].image(slotA) == badImage
			}
		}
		f.run(30 * time.Minute)
		if s := f.upgrade.Status; s.Phase != Stopped || s.Pods.Failed != 1 || s.Failed[0].Reason != "ErrImagePull: no such image" {
			t.Errorf("refused %v: %+v", refused, s)
		}
		f.images(newImage, emptyImage)
	}
}

// TestSilentKubelet: of a native sidecar it says nothing but that what ran before has ended.
func TestSilentKubelet(t *testing.T) {
	f := newNode(t, 3)
	f.ask(silentImage)
	if took := f.run(10 * time.Minute); took > 2*time.Minute {
		t.Errorf("it took %s", took)
	}
	f.images(oldImage, emptyImage)
	if s := f.upgrade.Status; s.Phase != Stopped || len(s.Failed) != 1 || !strings.Contains(s.Failed[0].Reason, "its image is not started") {
		t.Errorf("%+v", s)
	}
}

// TestResumeAfterFailure: the failures before it do not count.
func TestResumeAfterFailure(t *testing.T) {
	f := newNode(t, 3)
	f.ask(badImage)
	f.run(10 * time.Minute)
	f.now = f.now.Add(11 * time.Minute) // the kubelet has forgotten
	f.upgrade.Spec.ResumedAt = &metav1.Time{Time: f.now}
	f.step()
	if s := f.upgrade.Status; s.Phase != Running || len(s.Failed) != 0 || s.Finished != nil {
		t.Errorf("%+v", s)
	}
	f.run(10 * time.Minute)
	if s := f.upgrade.Status; s.Phase != Stopped || len(s.Failed) != 1 {
		t.Errorf("%+v", s)
	}
}

// TestAnotherEngineGoesOn replaces the engine after each of its steps, and lets every other write be lost: what is written is enough.
func TestAnotherEngineGoesOn(t *testing.T) {
	for _, change := range [][]func(int, *corev1.Pod){nil, {small}} {
		f := newNode(t, 3, change...)
		f.upgrade.Spec.MaxUnavailable = new(intstr.FromInt32(2))
		writes, seen := 0, map[string]int{}
		f.refuse = func(w Write) bool { writes++; seen[w.What]++; return writes%2 == 0 }
		for began := f.now; f.upgrade.Status.Finished == nil; f.tick() {
			if f.now.Sub(began) > time.Hour {
				t.Fatalf("not over: %+v", f.upgrade.Status)
			}
			if plan := f.step(); len(plan.Writes) > 0 {
				f.engine = New()
			}
		}
		f.images(newImage, emptyImage)
		if f.unreadyEver > 0 || writes < 9 {
			t.Errorf("unready %d times, %d writes: %v", f.unreadyEver, writes, seen)
		}
	}
}

// TestResize: the idle slot has the other's requests before its image, and the other the idle ones at the end.
func TestResize(t *testing.T) {
	f := newNode(t, 2, small)
	f.run(30 * time.Minute)
	f.images(newImage, emptyImage)
	for name, p := range f.pods {
		if working, idle := View(p.Pod).roles(); working.requests.memory != 1<<30 || idle.requests.memory != 16<<20 {
			t.Errorf("%s: %s works with %v, %s idles with %v", name, working.name, working.requests, idle.name, idle.requests)
		}
	}
}

// TestNoRoom: a pod whose node has no room gets its requests back, and is named.
func TestNoRoom(t *testing.T) {
	f := newNode(t, 1, small)
	f.noRoom = true
	f.upgrade.Spec.Deadline = &metav1.Duration{Duration: time.Minute}
	f.run(30 * time.Minute)
	s := f.upgrade.Status
	if s.Phase != Done || len(s.Held) != 1 || s.Held[0].Reason != "no room on node: node full" || s.Pods.Done != 0 {
		t.Errorf("%+v", s)
	}
	f.images(oldImage, emptyImage)
	for _, p := range f.pods {
		if _, idle := View(p.Pod).roles(); idle.requests.memory != 16<<20 {
			t.Errorf("the idle slot has %v", idle.requests)
		}
	}
}

// TestRequestsRefused: the API server lets the idle slot have no more, as where a quota is used up. The pod is named, and is as it was.
func TestRequestsRefused(t *testing.T) {
	f := newNode(t, 2, small)
	f.refuse = func(w Write) bool { return w.Resize }
	f.upgrade.Spec.Deadline = &metav1.Duration{Duration: time.Minute}
	f.run(30 * time.Minute)
	s := f.upgrade.Status
	if s.Phase != Done || len(s.Held) != 2 || s.Held[0].Reason != "the API server refuses istio-proxy-2 the requests of istio-proxy; the log says why" || s.Pods.Done != 0 {
		t.Errorf("%+v", s)
	}
	f.images(oldImage, emptyImage)
}

// TestBudgets: what is in flight and what is unready besides is never more than maxUnavailable, of the namespace or of an owner, nor
// more than a PodDisruptionBudget allows.
func TestBudgets(t *testing.T) {
	f := newNode(t, 400, func(i int, p *corev1.Pod) {
		if i%100 == 50 {
			p.Status.Conditions[0].Status = corev1.ConditionFalse
		}
	})
	f.upgrade.Spec.MaxUnavailable, f.upgrade.Spec.Canary = new(intstr.FromString("3%")), []intstr.IntOrString{}
	f.upgrade.Spec.Deadline = &metav1.Duration{Duration: time.Minute}
	f.budgets = []Budget{pdb("one", "app-0", 1), pdb("none", "app-1", 0)}
	for f.upgrade.Status.Finished == nil {
		f.step()
		flying := map[string]int{}
		for _, p := range f.world().Pods {
			if p.record.Step == stepSwitching && !f.engine.of(p).good {
				flying[p.Labels["app"]]++
			}
		}
		sum := 0
		for app, n := range flying {
			sum += n
			if n > 2 || app == "app-0" && n > 1 || app == "app-1" {
				t.Fatalf("%s: %v in flight", f.now.Format(time.TimeOnly), flying)
			}
		}
		if sum > 12-4 {
			t.Fatalf("%s: %v in flight, and 4 unready", f.now.Format(time.TimeOnly), flying)
		}
		f.tick()
	}
	s := f.upgrade.Status
	if s.Pods.Done != 297 || s.Pods.Held != 103 || !slices.ContainsFunc(s.Held, func(h PodReason) bool { return strings.Contains(h.Reason, "held by PDB none") }) {
		t.Errorf("%+v", s)
	}
}

// TestPodsByThemselves: a part of the namespace's pods is that part also where nobody owns them.
func TestPodsByThemselves(t *testing.T) {
	f := newNode(t, 50, func(_ int, p *corev1.Pod) { p.OwnerReferences = nil })
	f.upgrade.Spec.MaxUnavailable, f.upgrade.Spec.Canary = new(intstr.FromString("10%")), []intstr.IntOrString{}
	f.run(time.Hour)
	if f.maxFlying != 5 {
		t.Errorf("at most %d in flight, want 5", f.maxFlying)
	}
}

// TestCanary: after 1, 1% and 10% of the pods nothing is begun for a while.
func TestCanary(t *testing.T) {
	f := newNode(t, 300)
	f.upgrade.Spec.Bake, f.upgrade.Spec.Soak, f.upgrade.Spec.MaxUnavailable = nil, nil, new(intstr.FromString("50%"))
	pauses := map[int32]time.Duration{}
	for f.upgrade.Status.Finished == nil {
		f.step()
		if s := f.upgrade.Status; strings.Contains(s.Waiting, " after ") && s.Pods.InFlight == 0 {
			pauses[s.Pods.Done+s.Pods.Draining] += time.Second
		}
		f.tick()
	}
	if len(pauses) != 3 {
		t.Errorf("%v", pauses)
	}
	for pods, want := range map[int32]time.Duration{1: DefaultBake, 3: DefaultSoak, 30: DefaultSoak} {
		if got := pauses[pods]; got < want-time.Minute || got > want {
			t.Errorf("after %d pods it waited %s, want %s: %v", pods, got, want, pauses)
		}
	}
}

// TestCanaryFails: a pod whose new proxy ends while it is baked stops the rest.
func TestCanaryFails(t *testing.T) {
	f := newNode(t, 10)
	f.upgrade.Spec.Bake = nil
	for f.upgrade.Status.Pods.Done == 0 {
		f.step()
		f.tick()
	}
	p := f.pods["pod-00000"]
	f.status(p, slotB).RestartCount++
	f.status(p, slotB).LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 139, Reason: "Error"}
	p.changed()
	f.stale = true
	f.run(time.Hour)
	if s := f.upgrade.Status; s.Phase != Stopped || len(s.Failed) != 1 || !strings.Contains(s.Failed[0].Reason, "exit status 139: Error") {
		t.Errorf("%+v", s)
	}
}

// TestPause: what was begun is finished, and nothing else is begun.
func TestPause(t *testing.T) {
	f := newNode(t, 5)
	f.step()
	f.step()
	f.step()
	f.upgrade.Spec.Paused = true
	for range 200 {
		f.step()
		f.tick()
	}
	if s := f.upgrade.Status; s.Phase != Paused || s.Pods.Done != 1 || s.Pods.InFlight != 0 {
		t.Errorf("%+v", s)
	}
	f.upgrade.Spec.Paused = false
	f.run(time.Hour)
	f.images(newImage, emptyImage)
	if !slices.Contains(f.events, "Paused: as alice asked") || !slices.Contains(f.events, "Resumed: as alice asked") {
		t.Errorf("%q", f.events)
	}
}

// TestBadSelector: nobody is meant, the status says why, and it goes on once that is mended.
func TestBadSelector(t *testing.T) {
	f := newNode(t, 3)
	f.upgrade.Spec.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Is"}}}
	f.step()
	f.step()
	if s := f.upgrade.Status; s.Phase != Running || !strings.Contains(s.Waiting, `spec.selector: "Is" is not a valid label selector operator`) || f.writes > 0 {
		t.Errorf("%+v, %d writes", s, f.writes)
	}
	f.upgrade.Spec.Selector = nil
	f.run(30 * time.Minute)
	f.images(newImage, emptyImage)
}

// TestKubeletRestarts: a newcomer that ended with its kubelet is waited for, and says nothing against its image.
func TestKubeletRestarts(t *testing.T) {
	f := newNode(t, 2)
	f.pull = time.Minute
	for range 5 {
		f.step()
		f.tick()
	}
	for _, p := range f.pods {
		for slot := range p.due {
			s := f.status(p, slot)
			s.Ready, s.State, s.RestartCount = false, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s"}}, s.RestartCount+2
			s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, Message: contract.HookCutOff + " before this generation served"}
			p.changed()
		}
	}
	f.run(time.Hour)
	f.images(newImage, emptyImage)
	if s := f.upgrade.Status; s.Phase != Done || len(s.Failed) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestUndoInFlight: a pod whose new proxy does not serve yet goes back at once.
func TestUndoInFlight(t *testing.T) {
	f := newNode(t, 5)
	f.pull = time.Minute
	for range 5 {
		f.step()
		f.tick()
	}
	f.ask(oldImage)
	f.pull = time.Second
	f.run(time.Hour)
	f.images(oldImage, emptyImage)
	if s := f.upgrade.Status; s.Phase != Done || s.Pods.Failed != 0 || len(s.Failed) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestDeadline: a new proxy that never serves is given up, with what its agent says.
func TestDeadline(t *testing.T) {
	f := newNode(t, 1)
	f.pull = time.Hour
	for range 1200 {
		f.step()
		f.tick()
	}
	if s := f.upgrade.Status; len(s.Failed) != 1 || !strings.Contains(s.Failed[0].Reason, "does not serve after 10m0s") {
		t.Errorf("%+v", s)
	}
}

// TestPodsLeftOut: what is not to be done in place is said, and the rest is upgraded.
func TestPodsLeftOut(t *testing.T) {
	f := newNode(t, 6, func(i int, p *corev1.Pod) {
		switch i {
		case 0:
			p.Annotations[stateAnnotation] = "{"
		case 1:
			p.Annotations["version.understudy.mesh/istio-proxy-2"] = "7"
		case 2:
			p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		case 4:
			p.Labels["app"] = "other"
		}
	})
	f.world()
	f.pods["pod-00003"].view.Outdated = "spec.proxy.concurrency"
	f.upgrade.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "app-0"}}
	f.run(time.Hour)
	s := f.upgrade.Status
	if s.Pods != (Counts{Total: 4, Done: 1, Held: 3}) {
		t.Errorf("%+v", s)
	}
	for i, want := range []string{"annotation upgrade.understudy.mesh/state", "both its slots have a version", "needs a restart: spec.proxy.concurrency"} {
		if i >= len(s.Held) || !strings.Contains(s.Held[i].Reason, want) {
			t.Errorf("%d: %+v, want %q", i, s.Held, want)
		}
	}
}

// TestPodGoesMidway: an evicted pod is nobody's failure.
func TestPodGoesMidway(t *testing.T) {
	f := newNode(t, 3)
	for f.upgrade.Status.Pods.InFlight == 0 {
		f.step()
		f.tick()
	}
	delete(f.pods, "pod-00000")
	f.stale = true
	f.run(time.Hour)
	if s := f.upgrade.Status; s.Pods != (Counts{Total: 2, Done: 2}) {
		t.Errorf("%+v", s)
	}
	f.images(newImage, emptyImage)
}

// fleet is how many pods TestFleet upgrades: $PODS, else 2,000.
func fleet(t *testing.T) int {
	t.Helper()
	value := os.Getenv("PODS")
	if value == "" {
		return 2000
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		t.Fatalf("PODS: %q: give a positive number", value)
	}
	return n
}

// TestFleet by the engine's own clock: within an hour at 2%, with two writes a pod. make soak does it with 20,000 pods.
func TestFleet(t *testing.T) {
	pods := fleet(t)
	f := newNode(t, pods)
	busiest, slowest := 0, time.Duration(0)
	began := f.now
	for f.upgrade.Status.Finished == nil {
		writes, at := f.writes, time.Now()
		plan := f.engine.Step(f.now, f.world())
		slowest = max(slowest, time.Since(at))
		f.upgrade.Status = plan.Status
		for _, p := range plan.Ask {
			f.asks++
			f.engine.Hear(p.UID, f.word(f.pods[p.Name]))
		}
		for i, w := range plan.Writes {
			if i == 50 { // what the client's limit lets pass
				break
			}
			f.write(w)
		}
		busiest = max(busiest, f.writes-writes)
		if f.now.Sub(began) > time.Hour {
			t.Fatalf("not over: %+v", f.upgrade.Status)
		}
		f.tick()
	}
	t.Logf("%d pods in %s, %d writes, at most %d in a second, %d asks; a step takes %s at most", pods, f.now.Sub(began), f.writes, busiest, f.asks, slowest)
	if f.writes > 2*pods+100 {
		t.Errorf("%d writes", f.writes)
	}
	f.images(newImage, emptyImage)
}

// TestFleetMemory: what is kept of 20,000 pods that were upgraded before is a third of the 150 MiB that an upgrader may take at most.
func TestFleetMemory(t *testing.T) {
	const pods, limit = 20_000, 50 << 20
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	w := World{Upgrade: &SidecarUpgrade{Spec: Spec{Image: newImage}}}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	earlier := record{Step: stepResetting, Run: 1, Slot: slotA, Version: 1, New: oldImage, Old: "proxy:v0", Empty: emptyImage, At: now, Restarts: -1, Idle: &requests{memory: 16 << 20}}
	earlier.started(slotA, oldImage, now)
	earlier.started(slotB, emptyImage, now)
	for i := range pods {
		p := fleetPod(i)
		small(i, p)
		for n, c := range p.Spec.Containers {
			p.Status.ContainerStatuses[n].Resources = &corev1.ResourceRequirements{Requests: c.Resources.Requests.DeepCopy()}
		}
		p.Annotations[stateAnnotation] = earlier.text()
		w.Pods = append(w.Pods, View(p))
	}
	e := New()
	e.Step(now.Add(time.Hour), w)
	kept := heap() - before
	t.Logf("%d KiB, %d bytes a pod", kept>>10, kept/pods)
	if kept > limit {
		t.Errorf("%d pods take %d MiB, more than %d", pods, kept>>20, limit>>20)
	}
	runtime.KeepAlive(w)
	runtime.KeepAlive(e)
}

// FuzzRecord: whatever stands in the annotation, the engine says something of the pod, and writes only images that it has or is to have.
func FuzzRecord(f *testing.F) {
	n := newNode(f, 1)
	for range 100 {
		n.step()
		f.Add(n.pods["pod-00000"].Annotations[stateAnnotation])
		n.tick()
	}
	f.Fuzz(func(t *testing.T, text string) {
		n := newNode(t, 1)
		n.pods["pod-00000"].Annotations[stateAnnotation] = text
		for range 3 {
			plan := n.engine.Step(n.now, n.world())
			n.upgrade.Status = plan.Status
			if c := plan.Status.Pods; c.Total != c.Done+c.InFlight+c.Draining+c.Failed+c.Held && len(plan.Ask)+len(plan.Writes) == 0 && plan.Status.Waiting == "" {
				t.Errorf("%q: %+v", text, plan.Status)
			}
			for _, w := range plan.Writes {
				if len(w.Patch) > maxRecord*4 {
					t.Errorf("%q: a patch of %d bytes", text, len(w.Patch))
				}
			}
			for _, p := range plan.Ask {
				n.engine.Hear(p.UID, n.word(n.pods[p.Name]))
			}
			n.now = n.now.Add(time.Hour)
		}
	})
}
