package upgrader

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
)

// do works on the upgrade of a world until it is over, and returns how it was shown.
func (w *world) do(limit time.Duration) string {
	w.t.Helper()
	u := w.upgrader("test")
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	working, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- u.Run(working, "shop", nil) }()
	var shown strings.Builder
	d := Display{Out: &shown}
	var last *rollout.SidecarUpgrade
	err := u.Follow(ctx, "shop", func(s *rollout.SidecarUpgrade) bool {
		last = s
		d.Show(s, time.Now())
		return s.Status.Finished != nil
	})
	stop()
	if workErr := <-ended; err != nil || workErr != nil {
		w.t.Fatalf("%v, %v, %+v", err, workErr, last)
	}
	d.End(last, time.Now())
	return shown.String()
}

// mustRun demands that every pod runs the new image, in one slot, and that its versions say so.
func (w *world) mustRun() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, p := range w.pods {
		if working, idle := rollout.View(p).Images(); working != newImage || idle != emptyImage {
			w.t.Errorf("%s: %s and %s, %v", name, working, idle, p.Annotations)
		}
	}
}

func TestUpgradeOfAWorld(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		shown := w.do(time.Minute)
		w.mustRun()
		if !strings.Contains(shown, "Done: 3 of 3 pods run proxy:v2; in flight 0, draining 0, failed 0, held 0; --undo goes back to proxy:v1") {
			w.t.Errorf("%s", shown)
		}
		if len(w.events) != 2 || !strings.HasPrefix(w.events[0], "Started: ") || !strings.HasPrefix(w.events[1], "Done: 3 of 3") {
			w.t.Errorf("%q", w.events)
		}
	})
}

// TestServerWithFaults: whatever the API server does with a write (refuses it, asks to wait, fails, says nothing, has done it and says
// nothing), each pod is upgraded once.
func TestServerWithFaults(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		n := 0
		w.fault = func(out http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			w.mu.Lock()
			n++
			turn := n
			w.mu.Unlock()
			switch turn % 6 {
			case 1:
				refuse(out, http.StatusConflict, metav1.StatusReasonConflict)
			case 2:
				out.Header().Set("Retry-After", "1")
				refuse(out, http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests)
			case 3:
				refuse(out, http.StatusInternalServerError, metav1.StatusReasonInternalError)
			case 4:
				panic(http.ErrAbortHandler)
			case 5:
				w.mu.Lock()
				w.mute = strings.HasPrefix(r.URL.Path, apiPods)
				w.mu.Unlock()
				return false
			default:
				return false
			}
			return true
		}
		w.do(3 * time.Minute)
		w.mustRun()
		for name, p := range w.pods {
			for _, s := range p.Status.ContainerStatuses {
				if s.RestartCount != 1 {
					w.t.Errorf("%s: %s was started %d times", name, s.Name, s.RestartCount)
				}
			}
		}
		w.t.Logf("%d writes were asked for", n)
	})
}

// TestEnginesTakeTurns: one that is ended in the middle is followed by another.
func TestEnginesTakeTurns(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		for range 3 {
			u := w.upgrader("other")
			ctx, cancel := context.WithTimeout(w.t.Context(), 1500*time.Millisecond)
			if err := u.Run(ctx, "shop", nil); err != nil {
				w.t.Error(err)
			}
			cancel()
		}
		w.do(time.Minute)
		w.mustRun()
	})
}

// TestStatusOfAnotherTime: what one engine has written, another does not replace that has not seen it.
func TestStatusOfAnotherTime(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		early := *w.upgrade
		w.do(time.Minute)
		u := w.upgrader("other")
		r := &runner{Upgrader: u, namespace: "shop", seen: &seen{changed: func() {}}}
		if err := r.writeStatus(w.t.Context(), &early, rollout.Status{Phase: rollout.Running}); !apierrors.IsInvalid(err) {
			w.t.Errorf("%v", err)
		}
		if s := w.upgrade.Status; s.Phase != rollout.Done {
			w.t.Errorf("%+v", s)
		}
	})
}

// TestDisplay of JSON has an event a line.
func TestDisplayOfJSON(t *testing.T) {
	var out strings.Builder
	d := Display{Out: &out, JSON: true}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	u := &rollout.SidecarUpgrade{Status: rollout.Status{Phase: rollout.Running, Image: newImage, Pods: rollout.Counts{Total: 4}}}
	d.Show(u, now)
	u.Status.Pods.Done, u.Status.Waiting = 2, "bake after 1 pods, until x"
	u.Status.Failed = []rollout.PodReason{{Pod: "a", Reason: "b"}}
	d.Show(u, now.Add(time.Minute))
	d.Show(u, now.Add(2*time.Minute)) // nothing has changed
	u.Status.Held = []rollout.PodReason{{Pod: "c", Reason: "d"}}
	d.End(u, now.Add(time.Hour))
	want := `{"time":"2026-01-01T00:00:00Z","event":"started","phase":"Running","image":"proxy:v2"}
{"time":"2026-01-01T00:00:00Z","event":"progress","phase":"Running","pods":{"total":4,"done":0,"inFlight":0,"draining":0,"failed":0,"held":0}}
{"time":"2026-01-01T00:01:00Z","event":"failed","pod":"a","reason":"b"}
{"time":"2026-01-01T00:01:00Z","event":"waiting","waiting":"bake after 1 pods, until x"}
{"time":"2026-01-01T00:01:00Z","event":"progress","phase":"Running","pods":{"total":4,"done":2,"inFlight":0,"draining":0,"failed":0,"held":0},"podsPerMinute":2,"etaSeconds":60}
{"time":"2026-01-01T01:00:00Z","event":"held","pod":"c","reason":"d"}
{"time":"2026-01-01T01:00:00Z","event":"ended","phase":"Running","image":"proxy:v2","pods":{"total":4,"done":2,"inFlight":0,"draining":0,"failed":0,"held":0},"waiting":"bake after 1 pods, until x"}
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", &out, want)
	}
}
