package upgrader

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"understudy.mesh/cmd/sidecar-injector/internal/leader"
	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/profile"
)

const (
	// leaseName is the Lease of a namespace by which one engine works on its upgrade.
	leaseName = "sidecar-upgrade"
	// lookEvery is how often everything is looked at, lookAfter how soon after a change at the earliest.
	lookEvery, lookAfter = time.Second, 200 * time.Millisecond
	// statusEvery is how often numbers are written that only people read.
	statusEvery = 2 * time.Second
	// writers and askers are how many calls there are at once.
	writers, askers = 32, 32
	// writeAgain is how long a pod is left alone whose write has failed.
	writeAgain = 2 * time.Second
)

// runner is one engine at work on one namespace.
type runner struct {
	*Upgrader
	namespace string
	seen      *seen
	engine    *rollout.Engine
	asker     *asker
	working   sync.WaitGroup
	writes    chan struct{} // has as many as may be written at once
	asks      chan struct{}
	heard     chan heard
	wake      chan struct{}

	mu   sync.Mutex
	busy map[types.UID]time.Time // pods that are being written; until when one that could not be is left alone

	writtenAt time.Time
}

type heard struct {
	pod  types.UID
	word *rollout.Word
}

// Run works on the upgrade of a namespace while it holds the Lease, until ctx ends. elsewhere is told who else holds it.
func (u *Upgrader) Run(ctx context.Context, namespace string, elsewhere func(holder string)) error {
	lease := leader.Lease{Client: u.leases, Namespace: namespace, Name: leaseName, Identity: u.identity, Lost: elsewhere}
	return lease.Run(ctx, func(ctx context.Context) { u.work(ctx, namespace) })
}

// work is the engine's loop. It returns when everything that it has started has ended.
func (u *Upgrader) work(ctx context.Context, namespace string) {
	ctx, cancel := context.WithCancel(ctx)
	r := &runner{
		Upgrader: u, namespace: namespace, engine: rollout.New(), asker: newAsker(u), busy: map[types.UID]time.Time{},
		writes: make(chan struct{}, writers), asks: make(chan struct{}, askers), heard: make(chan heard, askers), wake: make(chan struct{}, 1),
	}
	r.seen = u.watch(ctx, namespace, r.up)
	defer func() {
		cancel()
		r.working.Wait()
		r.seen.working.Wait()
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	soon := time.NewTimer(lookAfter)
	defer soon.Stop()
	waiting := true
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-r.heard:
			r.engine.Hear(h.pod, h.word)
			r.up()
			continue
		case <-r.wake:
			if !waiting {
				soon.Reset(lookAfter)
				waiting = true
			}
			continue
		case <-soon.C:
			waiting = false
		case <-tick.C:
		}
		if w, ok := r.seen.world(); ok {
			r.step(ctx, w)
		}
	}
}

func (r *runner) up() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// step looks and does. What a status must not forget is written before anything else is done.
func (r *runner) step(ctx context.Context, w rollout.World) {
	now := time.Now()
	plan := r.engine.Step(now, w)
	plan.Status.Engine = r.identity
	differs := !reflect.DeepEqual(asText(plan.Status), asText(w.Upgrade.Status))
	if differs && (plan.Urgent || now.Sub(r.writtenAt) >= statusEvery) {
		if err := r.writeStatus(context.WithoutCancel(ctx), w.Upgrade, plan.Status); err != nil {
			if !apierrors.IsInvalid(err) { // it has changed, which the watch tells
				r.log.Warn("the status is not written, and nothing is done before it is", "err", err)
			}
			if plan.Urgent {
				return
			}
		}
		r.writtenAt = now
	}
	finish := context.WithoutCancel(ctx) // what was begun is finished, within callLimit
	for _, e := range plan.Events {
		r.working.Go(func() { r.post(finish, w.Upgrade, e) })
	}
	for _, p := range plan.Ask {
		r.ask(ctx, p)
	}
	for _, write := range plan.Writes {
		if len(r.writes) == cap(r.writes) { // the next look decides anew
			break
		}
		if r.take(write.Pod, now) {
			r.writes <- struct{}{}
			r.working.Go(func() { r.write(finish, write) })
		}
	}
}

// asText is a status as it is written, by which two are compared.
func asText(s rollout.Status) string {
	text, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// take reports whether a pod may be written now: not while it is, nor just after it could not be.
func (r *runner) take(p *rollout.Pod, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if until, ok := r.busy[p.UID]; ok && (until.IsZero() || now.Before(until)) {
		return false
	}
	r.busy[p.UID] = time.Time{}
	return true
}

// write does one write, which has its place among the writes at once. What came of it is known from the answer; of one without, from what is watched.
func (r *runner) write(ctx context.Context, w rollout.Write) {
	defer func() { <-r.writes }()
	ctx, cancel := call(ctx)
	defer cancel()
	request := r.pods.Patch(types.StrategicMergePatchType).Namespace(r.namespace).Resource("pods").Name(w.Pod.Name).Param("fieldManager", fieldManager).Body(w.Patch)
	if w.Resize {
		request = request.SubResource("resize")
	}
	after := new(corev1.Pod)
	err := request.Do(ctx).Into(after)
	if err == nil {
		r.seen.note(r.viewOf(after))
		r.log.Info("pod written", "pod", w.Pod.Name, "what", w.What)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		delete(r.busy, w.Pod.UID)
	default:
		r.busy[w.Pod.UID] = time.Now().Add(writeAgain)
		if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) { // these are news that the watch brings
			r.log.Warn("a pod is not written; it is tried again", "pod", w.Pod.Name, "what", w.What, "err", err)
		}
	}
}

// ask has a pod's agent asked, unless as many are at once as may be: then the next look does it.
func (r *runner) ask(ctx context.Context, p *rollout.Pod) {
	r.working.Go(func() {
		select {
		case r.asks <- struct{}{}:
		case <-ctx.Done():
			return
		}
		word := r.asker.ask(ctx, p)
		<-r.asks
		word.At = time.Now()
		select {
		case r.heard <- heard{p.UID, word}:
		case <-ctx.Done():
		}
	})
}

// writeStatus replaces the status of the upgrade as it was seen, and of no later one: a process that was stopped for a while would take back what the
// one that has followed it wrote.
func (r *runner) writeStatus(ctx context.Context, of *rollout.SidecarUpgrade, status rollout.Status) error {
	ctx, cancel := call(ctx)
	defer cancel()
	text, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/resourceVersion", "value": of.ResourceVersion},
		{"op": "add", "path": "/status", "value": status},
	})
	if err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	after, err := r.objects.Resource(upgradesResource).Namespace(r.namespace).
		Patch(ctx, profile.Name, types.JSONPatchType, text, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	if err != nil {
		return fmt.Errorf("write the status of %s %s/%s: %w", rollout.Kind, r.namespace, profile.Name, err)
	}
	return r.seen.noteUpgrade(after)
}

// post writes an Event, of the pod that it is about, and of the upgrade.
func (r *runner) post(ctx context.Context, of *rollout.SidecarUpgrade, e rollout.Event) {
	about := corev1.ObjectReference{
		APIVersion: profile.Group + "/" + profile.Version, Kind: rollout.Kind, Namespace: r.namespace, Name: profile.Name, UID: of.UID,
	}
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	r.log.Info(e.Message, "event", e.Reason)
	if err := r.event(ctx, about, kind, e); err != nil {
		r.log.Warn("an event is not written", "reason", e.Reason, "err", err)
	}
	if e.Pod == nil {
		return
	}
	pod := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: r.namespace, Name: e.Pod.Name, UID: e.Pod.UID}
	if err := r.event(ctx, pod, kind, e); err != nil {
		r.log.Warn("an event is not written", "reason", e.Reason, "err", err)
	}
}

func (r *runner) event(ctx context.Context, about corev1.ObjectReference, kind string, e rollout.Event) error {
	ctx, cancel := call(ctx)
	defer cancel()
	now := metav1.Now()
	message := e.Message
	if e.Pod != nil && about.Kind != "Pod" {
		message = "pod " + e.Pod.Name + ": " + message
	}
	const maxMessage = 1024 // the API server's
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: r.namespace, GenerateName: about.Name + "."},
		InvolvedObject: about, Type: kind, Reason: e.Reason, Message: message[:min(len(message), maxMessage)],
		FirstTimestamp: now, LastTimestamp: now, Count: 1, Source: corev1.EventSource{Component: fieldManager}, ReportingController: fieldManager, ReportingInstance: r.identity,
	}
	return r.pods.Post().Namespace(r.namespace).Resource("events").Body(event).Do(ctx).Error()
}
