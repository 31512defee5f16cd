package lab

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"sync"
	"syscall"
	"time"
)

// PodObject is as much of a pod's resource as the stand-ins look at. Images are those of its slots,
// in their order.
type PodObject struct {
	Images      []Image
	Annotations map[string]string
}

// ContainerStatus is what the kubelet last said of a slot's container.
type ContainerStatus struct {
	Image   string // of the container, which may not yet be what the pod asks for
	Running bool   // and so ready: the manual's SidecarSet has no probes
	Waiting string // why none runs, as the kubelet says it: CrashLoopBackOff, ImagePullBackOff
	Starts  int    // how often one was created
}

// KubeletOptions are the pod's settings that a kubelet obeys.
type KubeletOptions struct {
	// PostStart and PreStop are exec handlers of both slots; none when empty.
	PostStart, PreStop []string
	// ReadinessProbe is the URL that the application's container is asked at, from outside; it is always ready when empty. The slots have no probe.
	ReadinessProbe string
	// Grace is terminationGracePeriodSeconds: Kubernetes' 30 s when 0.
	Grace time.Duration
	// MaxRestartPeriod is the setting crashLoopBackOff.maxContainerRestartPeriod, the longest wait before a container is started again,
	// and the first one where that would be longer: Kubernetes' 300 s when 0. QuickRestarts is for tests of many rounds.
	MaxRestartPeriod time.Duration
}

// QuickRestarts is the least MaxRestartPeriod that Kubernetes allows.
const QuickRestarts = time.Second

const (
	defaultGrace = 30 * time.Second
	// minGrace is what SIGTERM gets after a preStop hook that took the whole grace period.
	minGrace = 2 * time.Second
	// resync is how long the kubelet sleeps when nothing happens.
	resync = time.Second

	eventTime = "15:04:05.000" // in Kubelet.Log
)

// Kubelet stands in for the kubelet of the pod's node: one goroutine, as a pod has one worker, that
// makes the slots what the pod's resource says, in the order of the kubelet's SyncPod:
//
//  1. It publishes the status of the containers. Nothing is published until the next round.
//  2. It kills the containers whose image is not the wanted one: preStop hook, SIGTERM, SIGKILL
//     when the grace period (which the hook has used up in part) is over. So the old container is
//     gone before anybody knows whether the new image can be pulled.
//  3. It starts what does not run, in the pod's order: pull, start with the environment of this
//     moment (a change of an annotation alone restarts nothing), and run the postStart hook to its end,
//     meanwhile doing nothing else for the pod. When the hook fails, the container is killed as above.
//
// A container that ends is started again (restartPolicy Always). How long that waits depends on how often the slot had the same image
// in the last ten minutes: see backOff. What else the kubelet does by the clock is not here: the back-off of pulls, which is as long, and
// the jitter of its rounds, up to half of a wait.
type Kubelet struct {
	// Log has a line for every event, as `kubectl get events`.
	Log *Log

	slots   *Slots
	options KubeletOptions
	wake    chan struct{}

	work    sync.Mutex // held by whoever changes containers
	backOff *backOff   // guarded by work

	mu        sync.Mutex // guards what follows
	pod       PodObject
	status    []ContainerStatus
	probed    bool          // the application's container is ready
	published chan struct{} // closed, and replaced, whenever status was published or probed has changed
	starts    []int
	waiting   []string // ContainerStatus.Waiting of the next status
	skipHooks bool
	down      bool
}

// NewKubelet starts a kubelet for the slots of a pod. Until the first Update it has nothing to do.
func NewKubelet(t T, slots *Slots, o KubeletOptions) *Kubelet {
	t.Helper()
	o.Grace, o.MaxRestartPeriod = cmp.Or(o.Grace, defaultGrace), cmp.Or(o.MaxRestartPeriod, maxRestartPeriod)
	ctx, cancel := context.WithCancel(context.Background())
	n := len(slots.List)
	k := &Kubelet{
		Log: newLog(), slots: slots, options: o, wake: make(chan struct{}, 1),
		status: make([]ContainerStatus, n), published: make(chan struct{}), starts: make([]int, n),
		waiting: make([]string, n), backOff: newBackOff(o.MaxRestartPeriod), pod: PodObject{Annotations: map[string]string{}},
	}
	var workers sync.WaitGroup
	if k.probed = o.ReadinessProbe == ""; !k.probed {
		workers.Go(func() { k.probe(ctx) })
	}
	workers.Go(func() { k.run(ctx) })
	t.Cleanup(func() {
		cancel()
		workers.Wait()
		if t.Failed() {
			t.Logf("what the kubelet and Kruise did:\n%s", k.Log)
		}
	})
	return k
}

func (k *Kubelet) run(ctx context.Context) {
	for ctx.Err() == nil {
		k.publish()
		k.work.Lock()
		changed := k.sync(ctx)
		k.work.Unlock()
		if changed {
			continue
		}
		timer := time.NewTimer(resync)
		select {
		case <-ctx.Done():
		case <-k.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (k *Kubelet) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *Kubelet) event(slot int, format string, args ...any) {
	_, _ = fmt.Fprintf(k.Log, "%s %s: %s\n", time.Now().Format(eventTime), k.slots.List[slot].Name, fmt.Sprintf(format, args...))
}

// Update changes the pod's resource.
func (k *Kubelet) Update(change func(*PodObject)) {
	k.mu.Lock()
	change(&k.pod)
	k.mu.Unlock()
	k.poke()
}

// Pod returns a copy of the pod's resource.
func (k *Kubelet) Pod() PodObject {
	k.mu.Lock()
	defer k.mu.Unlock()
	return PodObject{Images: append([]Image(nil), k.pod.Images...), Annotations: maps.Clone(k.pod.Annotations)}
}

// Status returns what was last published of the slots, and a channel that is closed when that changes.
func (k *Kubelet) Status() ([]ContainerStatus, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]ContainerStatus(nil), k.status...), k.published
}

// WaitRunning waits until the kubelet has published that a slot's container runs.
func (k *Kubelet) WaitRunning(t T, slot int) {
	t.Helper()
	Eventually(t, Deadline, "the status says that "+k.slots.List[slot].Name+" runs", func() error {
		if status, _ := k.Status(); !status[slot].Running || status[slot].Image != k.Pod().Images[slot].Name {
			return fmt.Errorf("%+v", status)
		}
		return nil
	})
}

// SkipPostStart makes the kubelet leave postStart hooks out from now on, as one does that was
// restarted while it was to run one.
func (k *Kubelet) SkipPostStart(skip bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.skipHooks = skip
}

func (k *Kubelet) publish() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, s := range k.slots.List {
		image, running := s.Running()
		k.status[i] = ContainerStatus{Image: image.Name, Running: running, Waiting: k.waiting[i], Starts: k.starts[i]}
	}
	k.announce()
}

func (k *Kubelet) announce() {
	close(k.published)
	k.published = make(chan struct{})
}

// sync does one round and reports whether it did anything.
func (k *Kubelet) sync(ctx context.Context) (changed bool) {
	pod := k.Pod()
	type start struct {
		slot  int
		ended time.Time // the container before
	}
	var starts []start
	for i, wanted := range pod.Images {
		image, running := k.slots.List[i].Running()
		// The kubelet judges by what it knew as the round began. If the round kills a container itself, the last one that has ended is the one before.
		if next := (start{i, k.slots.List[i].lastEnd()}); !running {
			starts = append(starts, next)
		} else if image.Name != wanted.Name {
			k.event(i, "Killing: definition changed from %s to %s", image.Name, wanted.Name)
			k.kill(ctx, i)
			starts, changed = append(starts, next), true
		}
	}
	for _, next := range starts {
		if k.due(ctx, next.slot, next.ended) {
			k.start(ctx, next.slot)
			changed = true
		}
	}
	return changed
}

// due reports whether a container may be started now, and counts the attempt.
func (k *Kubelet) due(ctx context.Context, i int, ended time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.down || ctx.Err() != nil {
		return false
	}
	image := k.pod.Images[i]
	wait, ok := k.backOff.start(fmt.Sprintf("%d %s", i, image.Name), ended)
	if ok {
		return true
	}
	time.AfterFunc(wait, k.poke)
	reason := "CrashLoopBackOff"
	if image.Missing {
		reason = "ImagePullBackOff"
	}
	if k.waiting[i] != reason {
		k.event(i, "%s: %s, for %v", reason, image.Name, wait.Round(time.Millisecond))
	}
	k.waiting[i] = reason
	return false
}

// start creates a container and runs its postStart hook.
func (k *Kubelet) start(ctx context.Context, i int) {
	if k.create(i) {
		k.postStart(ctx, i)
	}
}

func (k *Kubelet) create(i int) bool {
	pod, s := k.Pod(), k.slots.List[i]
	image := pod.Images[i]
	if image.Missing {
		k.event(i, "Failed: ErrImagePull: %s", image.Name)
		return false
	}
	version, alt := pod.Annotations[versionAnnotation(s.Name)], pod.Annotations[versionAltAnnotation(s.Name)]
	if err := s.Start(image, "SIDECARSET_VERSION="+version, "SIDECARSET_VERSION_ALT="+alt); err != nil {
		k.event(i, "Failed: %v", err)
		return false
	}
	k.mu.Lock()
	k.starts[i]++
	k.waiting[i] = ""
	k.mu.Unlock()
	life := s.Agent()
	k.event(i, "Started: %s, VERSION=%s ALT=%s, pid %d", image.Name, version, alt, life.PID())
	go func() {
		<-life.Done()
		k.event(i, "Ended: %s, %v%s", image.Name, life.cmd.ProcessState, withColon(life.Message()))
		k.poke()
	}()
	return true
}

// withColon is what a container's last words are in a line; "" where it said none.
func withColon(message string) string {
	if message == "" {
		return ""
	}
	return ": " + message
}

func (k *Kubelet) postStart(ctx context.Context, i int) {
	k.mu.Lock()
	skip := k.skipHooks
	k.mu.Unlock()
	if skip || len(k.options.PostStart) == 0 {
		return
	}
	begin := time.Now()
	got, err := k.slots.List[i].Exec(ctx, k.options.PostStart...)
	if err != nil || got.Code != 0 {
		k.event(i, "FailedPostStartHook after %v: %v %v", time.Since(begin).Round(time.Millisecond), err, got)
		k.kill(ctx, i)
		return
	}
	k.event(i, "postStart done after %v", time.Since(begin).Round(time.Millisecond))
}

// kill stops a container as the kubelet does.
func (k *Kubelet) kill(ctx context.Context, i int) {
	s := k.slots.List[i]
	life := s.Agent()
	if life == nil || !life.running() {
		return
	}
	begin := time.Now()
	if len(k.options.PreStop) > 0 {
		hook, cancel := context.WithTimeout(ctx, k.options.Grace)
		if got, err := s.Exec(hook, k.options.PreStop...); err != nil || got.Code != 0 {
			k.event(i, "FailedPreStopHook: %v %v", err, got)
		}
		cancel()
	}
	life.Signal(syscall.SIGTERM)
	timer := time.NewTimer(max(k.options.Grace-time.Since(begin), minGrace))
	defer timer.Stop()
	select {
	case <-life.done:
	case <-timer.C:
		k.event(i, "SIGKILL: the grace period is over")
		s.Kill()
	case <-ctx.Done(): // the test ends
		s.Kill()
	}
}

// Crash ends a slot's container with SIGKILL, as the kernel does when memory is short.
func (k *Kubelet) Crash(slot int) {
	k.event(slot, "OOMKilled")
	k.slots.List[slot].Kill()
}

// RestartNode takes the power away, and then starts the pod's containers again: in the kubelet's
// order, or, with together, all in one moment and hooks after that.
func (k *Kubelet) RestartNode(ctx context.Context, together bool) error {
	k.setDown(true)
	for i, s := range k.slots.List {
		k.event(i, "the node goes down")
		s.Kill() // also ends a hook that the worker waits for
	}
	k.work.Lock()
	defer k.work.Unlock()
	if err := k.slots.loseMemory(); err != nil {
		return err
	}
	k.backOff = newBackOff(k.options.MaxRestartPeriod)
	k.setDown(false)
	defer k.poke()
	if !together {
		return nil
	}
	// The containers share no lock, so that both agents find whatever the other has done so far.
	var both sync.WaitGroup
	for i := range k.slots.List {
		both.Go(func() { k.create(i) })
	}
	both.Wait()
	for i := range k.slots.List {
		both.Go(func() { k.postStart(ctx, i) })
	}
	both.Wait()
	return nil
}

func (k *Kubelet) setDown(down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
}
