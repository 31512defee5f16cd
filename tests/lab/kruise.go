package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// What OpenKruise writes on a pod (pkg/control/sidecarcontrol/util_hotupgrade.go of openkruise/kruise).
const (
	// WorkingAnnotation says which container of each pair works, as JSON: {"istio-proxy":"istio-proxy-1"}.
	WorkingAnnotation = "kruise.io/sidecarset-working-hotupgrade-container"
	// VersionEnv and VersionAltEnv get their values from the annotations below, through the downward API,
	// when a container is created.
	VersionEnv    = "SIDECARSET_VERSION"
	VersionAltEnv = "SIDECARSET_VERSION_ALT"
)

// versionAnnotation is where a container's SIDECARSET_VERSION comes from.
func versionAnnotation(container string) string { return "version.sidecarset.kruise.io/" + container }

// versionAltAnnotation is where its SIDECARSET_VERSION_ALT comes from.
func versionAltAnnotation(container string) string {
	return "versionalt.sidecarset.kruise.io/" + container
}

// sidecar is the container's name in the SidecarSet.
const sidecar = "istio-proxy"

// firstRevision is the resourceVersion of the SidecarSet: any number far above the 1 that injection writes.
const firstRevision = 1097936677

// upgradeDeadline bounds a whole upgrade: two containers are stopped and started in it.
const upgradeDeadline = 3 * Deadline

// latency is what a status needs from the kubelet over the API server to the controller, and an
// update back. In a cluster it is more: the kubelet alone looks at its containers once a second.
const latency = 100 * time.Millisecond

// Kruise stands in for OpenKruise's webhook and SidecarSet controller, for one pod and one container with
// upgradeType HotUpgrade. What it does, and when, is what OpenKruise does:
//
//   - Injection (webhook/pod/mutating/sidecarset_hotupgrade.go): slot 1 has the image, VERSION 1, ALT 0;
//     slot 2 has the empty image, VERSION 0, ALT 1; slot 1 is the working one.
//   - Upgrade (updatePodSidecarContainer in controller/sidecarset/sidecarset_processor.go), one write: the slot that is empty,
//     else the one that is not ready, else the one that does not work, gets the image, becomes the working
//     one, VERSION is the SidecarSet's resourceVersion, and its ALT what the other's VERSION is. The other's ALT becomes the
//     resourceVersion too; its VERSION stays, and it is not restarted. Nothing happens when the
//     *other* slot has the image already: a SidecarSet that goes back to the old image while the new one cannot
//     be pulled changes nothing in the pod.
//   - Reset (flipPodSidecarContainerDo in sidecarset_hotupgrade.go), once the working container runs the image
//     that the pod asks for and is ready, one write: the other slot gets the empty image and VERSION 0, the working
//     one's ALT becomes 0. The other's ALT stays.
//   - A paused SidecarSet does neither.
//
// So an agent that starts reads, as VERSION/ALT: 1/0 at first; R/1 (later R2/R1) in an upgrade; 1/R (R1/R2) when it
// is the old one and was restarted before the reset; R/0 when it was restarted after.
type Kruise struct {
	kubelet *Kubelet
	empty   Image

	mu       sync.Mutex
	image    Image
	revision int
	applied  int // the revision that the pod was last updated to
	paused   bool
	working  int
	wake     chan struct{}
}

// NewKruise injects the pair into the pod and starts the controller.
func NewKruise(t T, kubelet *Kubelet, image, empty Image) *Kruise {
	t.Helper()
	k := &Kruise{kubelet: kubelet, image: image, empty: empty, revision: firstRevision, applied: firstRevision, wake: make(chan struct{}, 1)}
	one, two := k.name(0), k.name(1)
	kubelet.Update(func(p *PodObject) {
		p.Images = []Image{image, empty}
		p.Annotations[versionAnnotation(one)], p.Annotations[versionAltAnnotation(one)] = "1", "0"
		p.Annotations[versionAnnotation(two)], p.Annotations[versionAltAnnotation(two)] = "0", "1"
		p.Annotations[WorkingAnnotation] = workingValue(one)
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return k
}

func (k *Kruise) name(slot int) string { return k.kubelet.slots.List[slot].Name }

func workingValue(container string) string {
	b, _ := json.Marshal(map[string]string{sidecar: container})
	return string(b)
}

func (k *Kruise) run(ctx context.Context) {
	for {
		status, changed := k.kubelet.Status()
		k.reconcile(status)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-k.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(latency):
		}
	}
}

// Upgrade puts another image into the SidecarSet, as `kubectl edit` does.
func (k *Kruise) Upgrade(image Image) {
	k.mu.Lock()
	k.image = image
	k.revision++
	k.mu.Unlock()
	k.poke()
}

// Pause sets spec.updateStrategy.paused.
func (k *Kruise) Pause(paused bool) {
	k.mu.Lock()
	k.paused = paused
	k.mu.Unlock()
	k.poke()
}

func (k *Kruise) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Working is the slot (0, 1) that the pod's annotation names.
func (k *Kruise) Working() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.working
}

// Revision is the SidecarSet's resourceVersion.
func (k *Kruise) Revision() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.revision
}

// reconcile does what the controller does when the pod's status or the SidecarSet has changed.
func (k *Kruise) reconcile(status []ContainerStatus) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.paused {
		return
	}
	pod, other := k.kubelet.Pod(), 1-k.working
	if pod.Images[other].Name != k.empty.Name && consistentAndReady(pod, status, k.working) {
		k.reset(other)
		return
	}
	if k.applied != k.revision && k.upgradable(pod, status) {
		k.upgrade(pod, status)
	}
}

// consistentAndReady: the container runs the image that the pod asks for.
func consistentAndReady(pod PodObject, status []ContainerStatus, slot int) bool {
	return status[slot].Running && status[slot].Image == pod.Images[slot].Name
}

// upgradable: no container that runs is still to get its image.
func (k *Kruise) upgradable(pod PodObject, status []ContainerStatus) bool {
	for i := range status[:2] {
		if status[i].Running && !consistentAndReady(pod, status, i) {
			return false
		}
	}
	return true
}

// upgrade is the first step of a hot upgrade.
func (k *Kruise) upgrade(pod PodObject, status []ContainerStatus) {
	k.applied = k.revision
	slot := k.slotToUpgrade(pod, status)
	other, revision := 1-slot, strconv.Itoa(k.revision)
	if pod.Images[other].Name == k.image.Name {
		return
	}
	k.working = slot
	k.kubelet.Update(func(p *PodObject) {
		p.Images[slot] = k.image
		p.Annotations[WorkingAnnotation] = workingValue(k.name(slot))
		p.Annotations[versionAnnotation(k.name(slot))] = revision
		p.Annotations[versionAltAnnotation(k.name(slot))] = p.Annotations[versionAnnotation(k.name(other))]
		p.Annotations[versionAltAnnotation(k.name(other))] = revision
	})
	k.kubelet.event(slot, "Kruise: upgrade to %s, resourceVersion %s", k.image.Name, revision)
}

func (k *Kruise) slotToUpgrade(pod PodObject, status []ContainerStatus) int {
	ready := func(i int) bool { return consistentAndReady(pod, status, i) }
	switch {
	case pod.Images[0].Name == k.empty.Name:
		return 0
	case pod.Images[1].Name == k.empty.Name:
		return 1
	case ready(0) && !ready(1):
		return 1
	case ready(1) && !ready(0):
		return 0
	}
	return 1 - k.working
}

// reset is the last step of a hot upgrade.
func (k *Kruise) reset(slot int) {
	k.kubelet.Update(func(p *PodObject) {
		p.Images[slot] = k.empty
		p.Annotations[versionAnnotation(k.name(slot))] = "0"
		p.Annotations[versionAltAnnotation(k.name(1-slot))] = "0"
	})
	k.kubelet.event(slot, "Kruise: reset to %s", k.empty.Name)
}

// Reset resets the slot that does not work before its time.
func (k *Kruise) Reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reset(1 - k.working)
}

// WaitUpgraded waits until the working slot runs the SidecarSet's image and the other one the empty
// image, and no hook is left to run.
func (k *Kruise) WaitUpgraded(t T) {
	t.Helper()
	Eventually(t, upgradeDeadline, "Kruise has upgraded the pod", func() error {
		status, _ := k.kubelet.Status()
		k.mu.Lock()
		defer k.mu.Unlock()
		pod, other := k.kubelet.Pod(), 1-k.working
		switch {
		case k.applied != k.revision:
			return fmt.Errorf("the new image is not yet in the pod")
		case pod.Images[k.working].Name != k.image.Name:
			return fmt.Errorf("the working slot is to run %s", pod.Images[k.working].Name)
		case pod.Images[other].Name != k.empty.Name:
			return fmt.Errorf("the other slot is not reset")
		case !consistentAndReady(pod, status, 0) || !consistentAndReady(pod, status, 1):
			return fmt.Errorf("the containers are %+v", status)
		}
		return nil
	})
}
