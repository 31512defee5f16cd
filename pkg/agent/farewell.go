package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/status"
)

const (
	// farewellTime is how long an agent that ends stays for a `wait` to hear why: the two ask every half second, and
	// one that has not asked for so long does not wait.
	farewellTime = 2 * time.Second
	// cutOffTime is what is left to a newcomer whose hook was cut off, to come into force: many do so in less than a second.
	// A kubelet or a container runtime that is restarted takes longer until it looks at containers.
	cutOffTime = 200 * time.Millisecond
	// maxWaitReason bounds what is read of a reason.
	maxWaitReason = 4 << 10
)

// fail ends the life with err. Commands that wait for this agent hear of it from now on.
func (a *Agent) fail(err error) {
	a.loop.err = err
	a.update(func(s *shown) { s.failure = err.Error() })
}

// answerRole tells a command this agent's role, or why it is about to end.
func (a *Agent) answerRole(w http.ResponseWriter, _ *http.Request) {
	role := a.roleStatus()
	status.WriteJSON(w, role)
	a.update(func(s *shown) { s.asked = time.Now() })
	if role.Failed {
		a.toldOnce.Do(func() { close(a.told) })
	}
}

// farewell waits until a `wait` that asks for this agent's role knows that it ends.
func (a *Agent) farewell(ctx context.Context) {
	a.mu.Lock()
	due := a.shown.failure != "" && time.Since(a.shown.asked) < farewellTime
	a.mu.Unlock()
	if !due {
		return
	}
	select {
	case <-a.told:
	case <-a.quit:
	case <-ctx.Done():
	case <-time.After(farewellTime):
	}
}

// errCutOff is why a newcomer ends whose hook was cut off.
var errCutOff = errors.New(contract.HookCutOff + " before this generation served: a kubelet that is restarted would count this container as ready, and runs the hook of the next one")

// attendWait looks after a `wait` of this container until it ends. One that did not end by itself was the postStart hook, whose
// kubelet or container runtime has ended: the next kubelet runs no hook for a container that it finds, and reports it as ready.
func (a *Agent) attendWait(w http.ResponseWriter, r *http.Request) {
	ends := context.AfterFunc(r.Context(), func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now()) })
	defer ends()
	if _, err := io.Copy(io.Discard, r.Body); err == nil || errors.Is(err, os.ErrDeadlineExceeded) { // then this agent ends
		return
	}
	a.update(func(s *shown) { s.asked = time.Time{} }) // nobody is left who would hear a farewell
	time.AfterFunc(cutOffTime, func() { a.cutOffOnce.Do(func() { close(a.cutOff) }) })
}

// hearWaitFailed notes that a `wait` of this container failed. If it is the postStart hook, the kubelet ends the container
// now, and then shows why the hook failed. An agent that is ready by then has nothing to explain.
func (a *Agent) hearWaitFailed(w http.ResponseWriter, r *http.Request) {
	reason, err := io.ReadAll(io.LimitReader(r.Body, maxWaitReason))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if status := a.roleStatus(); status.Settled || status.Failed {
		return
	}
	a.noteWaitFailed(control.OneLine(string(reason)))
}

// noteWaitFailed keeps what a `wait` said as it failed; "" takes it back.
func (a *Agent) noteWaitFailed(reason string) {
	changed := false
	a.update(func(s *shown) { changed, s.waitFailed = reason != s.waitFailed, reason })
	if changed && a.world.Explain != nil {
		a.world.Explain(reason)
	}
}
