package handoff

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/hotrestart"
)

// A test that is run again as another process finds its part in these.
const (
	handoffRole = "HANDOFF_TEST_ROLE"
	handoffPath = "HANDOFF_TEST_PATH"
	handoffStep = "HANDOFF_TEST_STEP"
)

// TestHandoffChild is the newcomer or the old generation as a process of its own, which
// kills itself at a step. It does nothing when it was not started as one.
func TestHandoffChild(t *testing.T) {
	path, step := os.Getenv(handoffPath), os.Getenv(handoffStep)
	die := func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	switch os.Getenv(handoffRole) {
	case "new":
		playNewcomer(t, path, step, die)
	case "old":
		playOld(t, path, step, die)
	}
}

func playNewcomer(t *testing.T, path, step string, die func()) {
	c := mustDial(t, openTestDir(t, path, "victim"), "old")
	var mine hotrestart.Sockets
	if strings.HasPrefix(step, "sent ") { // dies with its own message on the way
		before := map[string]string{"sent want": "dial", "sent ready": "sockets", "sent committed": "ready"}[step]
		goTo(t, c, &mine, before)
		kind := map[string]messageKind{"sent want": msgWant, "sent ready": msgReady, "sent committed": msgCommitted}[step]
		if err := c.link.send(kind, emptyHead{}); err != nil {
			t.Fatal(err)
		}
		die()
	}
	goTo(t, c, &mine, step)
	die()
}

func playOld(t *testing.T, path, step string, die func()) {
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.answer = func(e Event) bool {
			if e.Kind.String() == step {
				die()
			}
			return false
		}
	})
	fmt.Println("ADDRESS", old.listen("a"))
	stop := serveGreeting(t, old.sockets, "a", "old")
	defer stop()
	old.expect(Settled)
	<-time.After(patience) // the test kills it before
}

// play starts this test binary in a role. The caller waits for it.
func play(t *testing.T, role, path, step string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHandoffChild$", "-test.v")
	cmd.Env = append(os.Environ(), handoffRole+"="+role, handoffPath+"="+path, handoffStep+"="+step)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

func wasKilled(cmd *exec.Cmd) bool {
	cmd.Wait()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signal() == syscall.SIGKILL
}

// kill -9 of the newcomer at every message boundary: the old generation serves, is told
// what to do, and hands over to the next.
func TestKillNewcomer(t *testing.T) {
	for _, tc := range []struct {
		step    string
		outcome outcome
	}{
		{"dial", unchanged}, {"sent want", unchanged}, {"sockets", unchanged}, {"sent ready", takeBack},
		{"ready", takeBack}, {"sent committed", takeBack}, {"commit", handedOver},
	} {
		t.Run(tc.step, func(t *testing.T) {
			noLeaks(t)
			path := t.TempDir()
			old := startParent(t, path, "old", func(o *oldGeneration) {
				if tc.step == "sent committed" { // it must die before the probation is over
					o.server.timing.probation = patience
				}
			})
			address := old.listen("a")
			stop := serveGreeting(t, old.sockets, "a", "old")
			defer stop()
			cmd, out := play(t, "new", path, tc.step)
			for { // to the end, so that its output does not hold it up
				line, err := out.ReadString('\n')
				if err != nil {
					break
				}
				if strings.Contains(line, "FAIL") {
					t.Log(line)
				}
			}
			if !wasKilled(cmd) {
				t.Fatalf("the newcomer ended with %v", cmd.ProcessState)
			}
			if e := awaitEnded(old); e.outcome != tc.outcome {
				t.Errorf("outcome %q (%v), want %q", e.outcome, e.Err, tc.outcome)
			}
			for range 20 {
				if got := greetingAt(t, address); got != "old" {
					t.Fatalf("%q answers", got)
				}
			}
			if tc.step == "sent committed" {
				return // the next one's probation would be as long
			}
			var mine hotrestart.Sockets
			defer mine.Close()
			takeOver(t, mustDialSoon(t, openTestDir(t, path, "next"), "old"), &mine)
		})
	}
}

// kill -9 of the old generation at every message boundary: the newcomer notices at once,
// and from the moment that it has the sockets nothing is lost.
func TestKillOld(t *testing.T) {
	for _, step := range []string{"arrived", "want sockets", "ready", "settled"} {
		t.Run(step, func(t *testing.T) {
			noLeaks(t)
			path := t.TempDir()
			cmd, out := play(t, "old", path, step)
			defer func() { cmd.Process.Kill(); cmd.Wait() }()
			address := ""
			for address == "" {
				line, err := out.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if _, after, found := strings.Cut(line, "ADDRESS "); found {
					address = strings.TrimSpace(after)
				}
			}
			d := openTestDir(t, path, "new")
			var mine hotrestart.Sockets
			defer mine.Close()
			err := tryTakeOver(t, d, &mine)
			if step != "settled" && err == nil {
				t.Fatal("it took over from a dead one")
			}
			if !wasKilled(cmd) {
				t.Fatalf("the old one ended with %v", cmd.ProcessState)
			}
			if had := step == "ready" || step == "settled"; had != (mine.Len() == 1) {
				t.Fatalf("%d sockets", mine.Len())
			}
			if mine.Len() == 1 {
				stop := serveGreeting(t, &mine, "a", "new")
				defer stop()
				if got := greetingAt(t, address); got != "new" {
					t.Error(got)
				}
			}
			// Its files are nobody's: they are cleared away, and the ID is free again.
			if live, err := d.Generations(); err != nil || len(live) != 0 {
				t.Errorf("alive: %v, %v", live, err)
			}
			if entries, _ := os.ReadDir(d.path); len(entries) != 0 {
				t.Errorf("left in the directory: %v", entries)
			}
			startParent(t, path, "old")
		})
	}
}

func tryTakeOver(t *testing.T, d *Dir, into *hotrestart.Sockets) error {
	ctx := testContext(t)
	c, err := dialTest(t, d, "old")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Sockets(ctx, into); err != nil {
		return err
	}
	if _, err := c.Ready(ctx, into); err != nil {
		return err
	}
	return c.Commit(ctx)
}
