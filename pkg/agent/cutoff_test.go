package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/control"
)

// hook is the connection of a `wait` that waits. Closing it is the end of one that was killed.
func (m *member) hook() net.Conn {
	t := m.pod.t
	t.Helper()
	server := httptest.NewServer(m.controlHandler())
	t.Cleanup(server.Close)
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err == nil {
		_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: agent\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n", control.WaitingPath)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNewcomerWhoseHookIsCutOffEnds: the kubelet that comes next would count it as ready.
func TestNewcomerWhoseHookIsCutOffEnds(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	n := p.neighbour("n", handoff.RoleServing, nil, nil)
	n.listen(t, p.listen)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	hook := a.hook()
	waitFor(t, "it takes over", func() bool { return a.lastAttempt().Result == resultRunning })
	if err := hook.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.ends(); !errors.Is(err, errCutOff) {
		t.Errorf("it ended with %v", err)
	}
	var aborted *handoff.AbortedError
	if e := n.expect(t, handoff.Ended); !errors.As(e.Err, &aborted) || aborted.Code != handoff.AbortFailed || !strings.Contains(e.Err.Error(), errCutOff.Error()) {
		t.Errorf("the generation before is told %v", e.Err)
	}
	if got := a.lastAttempt(); got.Result != resultFailure || got.Reason != errCutOff.Error() {
		t.Errorf("the attempt is %+v", got)
	}
}

// TestHookThatEndsByItself leaves the newcomer alone: it may have run into its time-out, and the kubelet decides.
func TestHookThatEndsByItself(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.neighbour("n", handoff.RoleServing, nil, nil).listen(t, p.listen)
	a := p.start("a", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	hook := a.hook()
	defer hook.Close()
	a.askRole()
	if _, err := io.WriteString(hook, "0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := hook.Read(make([]byte, 1)); err != nil { // the answer: the agent knows
		t.Fatal(err)
	}
	a.mu.Lock()
	asked := a.shown.asked
	a.mu.Unlock()
	if asked.IsZero() {
		t.Error("it counts as cut off")
	}
	a.ask()
	a.endsUnready()
}

// TestHookOfTheOnlyGenerationIsCutOff: there is no other slot that could be emptied.
func TestHookOfTheOnlyGenerationIsCutOff(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	release := filepath.Join(t.TempDir(), "go")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := p.start("a", withBinary(script(t, fmt.Sprintf(`while [ ! -e %s ]; do sleep 0.05; done; exec %s "$@"`, release, self))))
	if err := a.hook().Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it notices", func() bool { return sidecar.IsClosed(a.cutOff) })
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.settles(handoff.RoleServing)
	a.ask()
	a.endsWell()
}
