package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/envoy"
)

func withBinary(path string) setting {
	return func(c *config.Config, _ *fakeEnvoy) { c.BinaryPath = path }
}

// executable writes an executable file.
func executable(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// otherMachine begins as a program for an s390, which runs no tests.
const otherMachine = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x16\x00\x01\x00\x00\x00"

// startedPlain is a script that notes its start in a file, as an Envoy that was built without hot restart: it
// ignores what it is told of that, and would bind the ports of the one that serves.
func startedPlain(t *testing.T, version, file string) string {
	return script(t, fmt.Sprintf(`[ "$1" = --hot-restart-version ] && { %s; exit; }; touch %s; exec sleep 1000`, version, file))
}

// TestNewcomerThatCanNeverTakeOverEnds: the generation before has never handed anything over, no Envoy ran beside
// its own, and whoever waits hears why.
func TestNewcomerThatCanNeverTakeOverEnds(t *testing.T) {
	t.Parallel()
	started := filepath.Join(t.TempDir(), "started")
	for name, tc := range map[string]struct {
		setting setting
		reason  string
	}{
		"a text":                      {withBinary(executable(t, "no program\n")), "exec format error (it is not a program for this machine: check its architecture)"},
		"of another architecture":     {withBinary(executable(t, otherMachine)), "exec format error (it is not a program for this machine: check its architecture)"},
		"without its loader":          {withBinary(executable(t, "#!/nonexistent/loader\n")), "is there, but its interpreter or dynamic loader is not"},
		"without hot restart":         {withBinary(startedPlain(t, "echo disabled", started)), `"disabled\n" is not of the form 11.104`},
		"of another protocol":         {withBinary(startedPlain(t, "echo 12.104", started)), "only version 11 of the protocol is known"},
		"that cannot say its version": {withBinary(startedPlain(t, "exit 7", started)), "--hot-restart-version: exit status 7"},
		"that dies again and again":   {envoyThat(func(f *fakeEnvoy) { f.Exits = true }), "Envoy ended 5 times before it ever served, the last time with exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			n := p.neighbour("n", handoff.RoleServing, nil, nil)
			n.listen(t, p.listen)
			a := p.start("a", tc.setting)
			err := a.ends()
			if err == nil || !strings.Contains(err.Error(), tc.reason) || !strings.Contains(err.Error(), "cannot take over from generation n, which serves on: ") {
				t.Errorf("ended with %v, want %s", err, tc.reason)
			}
			if errors.As(err, new(*envoy.ExitError)) {
				t.Errorf("it ends with the status of its Envoy: %#v", err)
			}
			e := n.expect(t, handoff.Ended)
			if slices.Contains(n.told, handoff.Ready) || !errors.As(e.Err, new(*handoff.AbortedError)) || !strings.Contains(e.Err.Error(), tc.reason) {
				t.Errorf("the generation before is told %v: %v", n.told, e.Err)
			}
			if s := a.roleStatus(); s.Settled || !s.Failed || s.Reason != err.Error() {
				t.Errorf("a command is told %+v", s)
			}
			if got := a.lastAttempt(); got.Result != resultFailure || !strings.Contains(got.Reason, tc.reason) {
				t.Errorf("the attempt is %+v", got)
			}
			if _, err := os.Stat(started); err == nil {
				t.Error("an Envoy ran beside the one that serves, on the same ports")
			}
		})
	}
}

// TestWhatMayPassIsTriedAgain: an Envoy that lacks what may come still takes over.
func TestWhatMayPassIsTriedAgain(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Each dies as long as it has not died so often, and notes that.
	dies := func(times int, when, how string) setting {
		deaths := filepath.Join(t.TempDir(), "deaths")
		return withBinary(script(t, fmt.Sprintf(`n=$(cat %[1]s 2>/dev/null | wc -l)
[ "$n" -lt %[2]d ] && %[3]s && { echo died >>%[1]s; %[4]s; }
exec %[5]s "$@"`, deaths, times, when, how, self)))
	}
	for name, set := range map[string]setting{
		"it died twice": dies(2, `[ "$1" = -c ]`, "exit 3"),
		"it was killed as it was to say its version":         dies(1, `[ "$1" = --hot-restart-version ]`, "kill -9 $$"),
		"it was killed, again and again, and served at last": dies(4, `[ "$1" = -c ]`, "kill -9 $$"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t)
			n := p.neighbour("n", handoff.RoleServing, nil, nil)
			n.listen(t, p.listen)
			a := p.start("a", set)
			a.settles(handoff.RoleServing)
			n.expect(t, handoff.Settled)
			p.answers("a")
		})
	}
}

// askRole is the question of a `wait`.
func (m *member) askRole() (s control.RoleStatus) {
	m.pod.t.Helper()
	w := httptest.NewRecorder()
	m.controlHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, control.RolePath, nil))
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		m.pod.t.Fatalf("%v: %s", err, w.Body)
	}
	return s
}

// saysWaitFailed is what a `wait` says as it fails.
func (m *member) saysWaitFailed(reason string) {
	m.pod.t.Helper()
	w := httptest.NewRecorder()
	m.controlHandler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, control.WaitFailedPath, strings.NewReader(reason)))
	if w.Code != http.StatusOK {
		m.pod.t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestWhoWaitsHearsWhyTheAgentEnds: it asks twice a second.
func TestWhoWaitsHearsWhyTheAgentEnds(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.neighbour("n", handoff.RoleServing, nil, nil).listen(t, p.listen)
	a := p.start("a", withBinary(script(t, `[ "$1" = --hot-restart-version ] && sleep 0.2; echo disabled`)))
	for s := a.askRole(); !s.Failed; s = a.askRole() {
		select {
		case <-a.ended:
			t.Fatal("it ended before it said so")
		case <-time.After(500 * time.Millisecond):
		}
	}
	if err := a.ends(); err == nil {
		t.Error("it ended well")
	}
}

// TestTheReasonOfAFailedWaitIsThatOfTheContainer, unless the agent becomes ready after all.
func TestTheReasonOfAFailedWaitIsThatOfTheContainer(t *testing.T) {
	t.Parallel()
	const reason = "timeout waiting.\nLast error: x"
	p := newPod(t)
	release := filepath.Join(t.TempDir(), "go")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := p.start("a", withBinary(script(t, fmt.Sprintf(`while [ ! -e %s ]; do sleep 0.05; done; exec %s "$@"`, release, self))))
	a.saysWaitFailed(reason)
	if got := a.explained.Load(); got != "timeout waiting. Last error: x" {
		t.Errorf("explained: %q", got)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.settles(handoff.RoleServing)
	waitFor(t, "the reason to be taken back", func() bool { return a.explained.Load() == "" })
	a.saysWaitFailed(reason)
	if got := a.explained.Load(); got != "" {
		t.Errorf("an agent that serves explains: %q", got)
	}
	a.ask()
	a.endsWell()

	b := p.start("b", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	b.saysWaitFailed(reason)
	b.ask()
	if err := b.ends(); err == nil || !strings.HasSuffix(err.Error(), "ever ready: `wait` failed: timeout waiting. Last error: x") {
		t.Errorf("ended with %v", err)
	}
}
