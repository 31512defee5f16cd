package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// supervised is a supervisor of one shell script, with its logs in the test's directory.
func supervised(t *testing.T, script string, ready func(context.Context) error) (*supervisor, program) {
	t.Helper()
	p := program{name: "script", argv: []string{"/bin/sh", "-c", script}, ready: ready}
	s := &supervisor{logs: t.TempDir(), shown: "/shown", programs: []program{p}, running: make(map[Component]*process)}
	t.Cleanup(func() { _ = s.stop(context.Background(), p.name, syscall.SIGKILL) })
	return s, p
}

// never is a component that does not serve, serves one that does when a file is there.
func never(context.Context) error { return errors.New("it is silent") }

func serves(file string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(file)
		return err
	}
}

// TestEndsBeforeItServes wants the reason in the error: status, and the end of the log with its place on the machine.
func TestEndsBeforeItServes(t *testing.T) {
	s, p := supervised(t, "echo the port is taken; exit 3", never)
	err := s.startAll(t.Context(), []program{p}, func(string) error { return nil })
	for _, words := range []string{"script ended before it served", "exit status 3", "/shown/script.log", "the port is taken"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: want %q", err, words)
		}
	}
}

func TestDoesNotServe(t *testing.T) {
	s, p := supervised(t, "echo thinking; exec sleep 1000", never)
	ctx, cancel := context.WithTimeout(t.Context(), 3*lookEvery)
	defer cancel()
	err := s.startAll(ctx, []program{p}, func(string) error { return nil })
	for _, words := range []string{"script does not serve", "it is silent", "/shown/script.log"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: want %q", err, words)
		}
	}
}

// TestStartedAgain kills a component, which comes back, and stops it, after which it stays down until it is started.
func TestStartedAgain(t *testing.T) {
	up := filepath.Join(t.TempDir(), "up")
	s, p := supervised(t, "echo >>"+up+"; exec sleep 1000", serves(up))
	if err := s.startAll(t.Context(), []program{p}, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	lives := func() int {
		text, _ := os.ReadFile(up)
		return strings.Count(string(text), "\n")
	}
	atLeast := func(n int) func() error {
		return func() error {
			if lives() < n {
				return errors.New("it has not")
			}
			return nil
		}
	}
	s.mu.Lock()
	first := s.running[p.name].cmd.Process
	s.mu.Unlock()
	_ = first.Kill()
	lab.Eventually(t, lab.Deadline, "it is started again", atLeast(2))

	if err := s.stop(t.Context(), p.name, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.stop(t.Context(), p.name, syscall.SIGTERM); err != nil {
		t.Errorf("a second stop: %v", err)
	}
	s.mu.Lock()
	stopped := s.running[p.name]
	s.mu.Unlock()
	s.again(p, stopped) // what would start it again
	if lives() != 2 || !stopped.isOver() {
		t.Errorf("%d lives after the stop", lives())
	}
	if err := s.start(p); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, lab.Deadline, "it is started", atLeast(3))
}

func TestStopThatIsNotHeeded(t *testing.T) {
	up := filepath.Join(t.TempDir(), "up")
	s, p := supervised(t, "trap '' TERM; echo >"+up+"; while :; do sleep 1; done", serves(up))
	if err := s.startAll(t.Context(), []program{p}, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.stop(ctx, p.name, syscall.SIGTERM); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "script") {
		t.Errorf("stop: %v", err)
	}
}

func TestReadSteps(t *testing.T) {
	for _, tc := range []struct {
		name, said string
		steps      []string
		want       string // in the error
	}{
		{"ready", `{"done":"etcd"}{"done":"kubelet"}{"ready":true}`, []string{"etcd", "kubelet"}, ""},
		{"failed", `{"done":"etcd"}{"failed":"kubelet ended: no cgroup"}`, []string{"etcd"}, "kubelet ended: no cgroup"},
		{"killed", `{"done":"etcd"}`, []string{"etcd"}, "the node ended while it started"},
		{"killed in a word", `{"done":"et`, nil, "the node ended while it started"},
	} {
		var steps []string
		err := ReadSteps(strings.NewReader(tc.said), func(step string) { steps = append(steps, step) })
		if strings.Join(steps, ",") != strings.Join(tc.steps, ",") || (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q, %v", tc.name, steps, err)
		}
	}
}

// lockVariable makes the test binary a process that holds the lock of a state until its standard input ends.
const lockVariable = "NODE_TEST_LOCK"

func TestMain(m *testing.M) {
	state := os.Getenv(lockVariable)
	if state == "" {
		os.Exit(m.Run())
	}
	_, err := holdLock(state)
	fmt.Println(err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// holder starts such a process and returns what it says: "<nil>", or why it could not.
func holder(t *testing.T, state string) (cmd *exec.Cmd, end func(), said string) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockVariable+"="+state)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	said, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, end, strings.TrimSpace(said)
}

// TestRunning wants the node's process for as long as it lives, and none else.
func TestRunning(t *testing.T) {
	state := t.TempDir()
	if pid, err := Running(state); pid != 0 || err != nil {
		t.Errorf("no lock: %d, %v", pid, err)
	}
	first, end, said := holder(t, state)
	if pid, err := Running(state); said != "<nil>" || pid != first.Process.Pid || err != nil {
		t.Errorf("held: %s, %d, %v", said, pid, err)
	}
	if _, _, said := holder(t, state); !strings.Contains(said, "lock the node") {
		t.Errorf("a second node says %q", said)
	}
	if pid, err := Running(state); pid != first.Process.Pid || err != nil {
		t.Errorf("after another's attempt: %d, %v", pid, err)
	}
	end()
	if pid, err := Running(state); pid != 0 || err != nil {
		t.Errorf("ended: %d, %v", pid, err)
	}
}

func TestConfigurationIsThere(t *testing.T) {
	for name := range configuration {
		if _, err := files.ReadFile("etc/" + name); err != nil {
			t.Error(err)
		}
	}
	entries, err := files.ReadDir("etc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if configuration[e.Name()] == "" {
			t.Errorf("etc/%s has no place in the node", e.Name())
		}
	}
}
