package restart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
)

// lookEvery is the pause between two looks at a workload whose pods are being replaced.
const lookEvery = 2 * time.Second

// errStopped is that a workload was left before its end, because nothing new is to be started.
var errStopped = errors.New("interrupted")

// stuckError is that the new pods of a workload do not come, or not as they should. Whatever that is, the next workload would have it too.
type stuckError struct{ error }

// roll is one workload whose pods are being replaced.
type roll struct {
	*plan
	cluster  *cluster.Cluster
	settings Settings
	timeout  time.Duration
	every    time.Duration
	stopping func() bool  // nothing new is to be started
	say      func(string) // how far it is

	serving int       // how many pods were ready before
	began   time.Time // at the API server
	best    progress  // so far
	at      time.Time // of that, here
}

// progress is how far a workload is: old pods that are left, new ones that are ready.
type progress struct{ left, ready int }

// run replaces the pods.
func (r *roll) run(ctx context.Context) error {
	r.best, r.at = progress{left: len(r.old) + 1}, time.Now()
	for _, pod := range r.owner.Pods {
		if pod.DeletionTimestamp == nil && ready(pod) {
			r.serving++
		}
	}
	if r.way == byEviction {
		return r.evict(ctx)
	}
	if r.way != byWaiting {
		if err := r.start(ctx); err != nil {
			return err
		}
	}
	return r.wait(ctx, func(p progress, w *workload) bool {
		over := !w.behind() && (r.keep > 0 || !w.progressing())
		return over && p.left <= r.keep && p.ready >= r.wanted(w)
	})
}

// wanted is how many pods have to be ready: all, or as many as were, if some were not for reasons of their own.
func (r *roll) wanted(w *workload) int {
	wanted := w.desired(r.owner.Kind)
	if r.serving > 0 {
		wanted = min(wanted, r.serving)
	}
	return wanted
}

// final reports whether an error of the API server stays, however often one asks.
func final(err error) bool {
	return errors.Is(err, cluster.ErrGone) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

// start tells the workload to have new pods.
func (r *roll) start(ctx context.Context) error {
	r.began = r.cluster.Now()
	at := r.began.Format(time.RFC3339)
	type object = map[string]any
	if r.way == byRestartAt {
		return r.cluster.Patch(ctx, r.owner, object{"spec": object{"restartAt": at}})
	}
	fields := object{"metadata": object{"annotations": object{restartedAt: at}}}
	for _, field := range slices.Backward(r.owner.Template.TemplatePath()) {
		fields = object{field: fields}
	}
	return r.cluster.Patch(ctx, r.owner, fields)
}

// evict replaces the pods one by one: the next one goes when all that are to be there are ready again.
func (r *roll) evict(ctx context.Context) error {
	whole := func(p progress, w *workload) bool { return p.ready >= r.wanted(w) }
	for _, pod := range slices.Clone(r.owner.Pods) {
		if !r.old[pod.UID] {
			continue
		}
		if err := r.evictOne(ctx, pod); err != nil {
			return err
		}
		gone := func(p progress, w *workload) bool {
			there := slices.ContainsFunc(r.owner.Pods, func(o *corev1.Pod) bool { return o.UID == pod.UID })
			return !there && whole(p, w)
		}
		if err := r.wait(ctx, gone); err != nil {
			return err
		}
	}
	return nil
}

// evictOne asks until the pod may go.
func (r *roll) evictOne(ctx context.Context, pod *corev1.Pod) error {
	for {
		if r.stopping() {
			return errStopped
		}
		held, err := r.cluster.Evict(ctx, pod)
		switch {
		case err == nil && held == "" || final(err):
			return err
		case err != nil:
			held = err.Error()
		}
		r.say(heldBy + held)
		if time.Since(r.at) > r.timeout {
			return fmt.Errorf("pod %s could not be evicted for %s: %s", pod.Name, r.timeout, held)
		}
		if err := pause(ctx, r.every); err != nil {
			return err
		}
	}
}

// wait looks until done says that it is.
func (r *roll) wait(ctx context.Context, done func(progress, *workload) bool) error {
	for {
		if err := pause(ctx, r.every); err != nil {
			return err
		}
		if err := r.cluster.Refresh(ctx, r.owner); err != nil {
			if final(err) || time.Since(r.at) > r.timeout {
				return err
			}
			r.say(err.Error())
			continue // the API server may be away for a moment
		}
		w, err := read(r.owner)
		if err != nil {
			return err
		}
		p := r.progress()
		if p.left < r.best.left || p.ready > r.best.ready {
			r.best, r.at = p, time.Now()
		}
		r.say(fmt.Sprintf("%d/%d", len(r.old)-p.left, len(r.old)))
		if done(p, w) {
			return r.check()
		}
		if err := r.trouble(w, p); err != nil {
			return err
		}
	}
}

// progress counts the pods.
func (r *roll) progress() (p progress) {
	for _, pod := range r.owner.Pods {
		switch {
		case r.old[pod.UID]:
			p.left++
			if r.way == byEviction && pod.DeletionTimestamp == nil && ready(pod) {
				p.ready++ // it serves until its turn comes
			}
		case pod.DeletionTimestamp == nil && ready(pod):
			p.ready++
		}
	}
	if r.keep > 0 {
		p.ready += min(p.left, r.keep)
	}
	return p
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

// trouble is why it is of no use to go on.
func (r *roll) trouble(w *workload, p progress) error {
	if err := r.reverted(w); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	if message := w.stuck(); message != "" && r.way != byEviction && !w.behind() {
		return stuckError{fmt.Errorf("%d of %d pods are new: %s%s", len(r.old)-p.left, len(r.old), message, r.ailing())}
	}
	if time.Since(r.at) > r.timeout {
		message := w.refused()
		if message != "" {
			message = ": " + message
		}
		return stuckError{fmt.Errorf("%d of %d pods are new, and nothing has gone on for %s%s%s", len(r.old)-p.left, len(r.old), r.timeout, message, r.ailing())}
	}
	return nil
}

// reverted is an error if somebody has taken back what the command has written: an operator that wants the template as it was.
func (r *roll) reverted(w *workload) error {
	if r.way != byTemplate && r.way != byRestartAt || !w.restarted(r.way).Before(r.began) {
		return nil
	}
	who := ""
	var last time.Time
	for _, m := range w.Metadata.ManagedFields {
		if m.Time != nil && m.Time.After(last) && m.Manager != "sidecar-injector" {
			who, last = " by "+m.Manager, *m.Time
		}
	}
	for _, o := range w.Metadata.OwnerReferences {
		who += fmt.Sprintf(" (it is made by %s/%s)", o.Kind, o.Name)
	}
	what := "annotation " + restartedAt + " of its template"
	if r.way == byRestartAt {
		what = "spec.restartAt"
	}
	return fmt.Errorf("%s was taken back%s: restart it as its operator says", what, who)
}

// check is an error if a new pod is not as it was to be.
func (r *roll) check() error {
	for _, pod := range r.owner.Pods {
		if r.old[pod.UID] || pod.DeletionTimestamp != nil {
			continue
		}
		reason, err := r.settings.difference(r.owner, pod)
		if err != nil {
			return err
		}
		if reason != "" {
			return stuckError{fmt.Errorf("its new pod %s is not as it would be by the settings (%s): is the injector ready, and of this command's release?", pod.Name, reason)}
		}
	}
	return nil
}

// ailing is what is the matter with a new pod that is not ready.
func (r *roll) ailing() string {
	for _, pod := range r.owner.Pods {
		if r.old[pod.UID] || pod.DeletionTimestamp != nil || ready(pod) {
			continue
		}
		var why []string
		for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			if w := s.State.Waiting; w != nil && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating" {
				why = append(why, s.Name+" "+w.Reason)
			}
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				why = append(why, c.Message)
			}
		}
		if len(why) == 0 {
			why = []string{"it is not ready"}
		}
		return fmt.Sprintf("; pod %s: %s", pod.Name, strings.Join(why, ", "))
	}
	return ""
}

// pause waits, or returns that it is to end.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return errStopped
	case <-time.After(d):
		return nil
	}
}
