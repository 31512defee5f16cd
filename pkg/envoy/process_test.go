package envoy

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is a deadline for what ought to happen at once.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		os.Exit(playRole(os.Getenv(roleVariable)))
	}
	goleak.VerifyTestMain(m)
}

func shell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := startProcess(Command{Path: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(); <-p.Done() })
	return p
}

func awaitExit(t *testing.T, p *Process) Exit {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatal("the process does not end")
	}
	return p.Exit()
}

func TestExit(t *testing.T) {
	for _, tc := range []struct {
		script, text string
		status       int
	}{
		{"exit 0", "exit status 0", 0},
		{"exit 3", "exit status 3", 3},
		{"kill -TERM $$", "signal: terminated", 143},
		{"kill -KILL $$", "signal: killed (out of memory?", 137},
		{"kill -SEGV $$", "signal: segmentation fault", 139},
	} {
		exit := awaitExit(t, shell(t, tc.script))
		if !strings.HasPrefix(exit.String(), tc.text) || exit.status() != tc.status {
			t.Errorf("%s: %q, status %d; want %q, %d", tc.script, exit, exit.status(), tc.text, tc.status)
		}
	}
}

func TestExitUnknown(t *testing.T) {
	e := exitOf(syscall.ECHILD, nil)
	if e.status() != 1 || e.String() != "exit status unknown" {
		t.Errorf("%q, status %d", e, e.status())
	}
}

// ready waits for a script that has set its traps, or stands still, and says so by making a file.
func ready(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the script does not start")
		}
	}
}

func TestStop(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		grace  bool // Stop's context does not end
		want   Exit
	}{
		"ends on SIGTERM":    {`trap 'exit 5' TERM; : > "$0"; while :; do sleep 0.01; done`, true, Exit{code: 5}},
		"ignores SIGTERM":    {`trap '' TERM; : > "$0"; while :; do sleep 0.01; done`, false, Exit{signal: syscall.SIGKILL}},
		"stopped by SIGSTOP": {`(until grep -q 'State:.T' /proc/$$/status; do sleep 0.01; done; : > "$0") & kill -STOP $$; while :; do sleep 0.01; done`, false, Exit{signal: syscall.SIGKILL}},
	} {
		t.Run(name, func(t *testing.T) {
			flag := filepath.Join(t.TempDir(), "ready")
			p, err := startProcess(Command{Path: "/bin/sh", Args: []string{"-c", tc.script, flag}})
			if err != nil {
				t.Fatal(err)
			}
			ready(t, flag)
			ctx := t.Context()
			if !tc.grace {
				short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				ctx = short
			}
			p.stop(ctx)
			if p.Exit() != tc.want {
				t.Errorf("got %v, want %v", p.Exit(), tc.want)
			}
			p.stop(ctx) // does no harm
		})
	}
}

// TestThreadOutlivesCaller starts a process from a goroutine whose thread ends at
// once. A fork on that thread would be killed by PDEATHSIG.
func TestThreadOutlivesCaller(t *testing.T) {
	var p *Process
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		p, err = startProcess(Command{Path: "/bin/sleep", Args: []string{"0.3"}})
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	if exit := awaitExit(t, p); exit != (Exit{}) {
		t.Errorf("ended with %q, want exit status 0", exit)
	}
}

// TestDiesWithAgent kills an agent; its child, which would run for ever, must end.
func TestDiesWithAgent(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	agent, err := startProcess(Command{
		Path: "/proc/self/exe", Env: append(os.Environ(), roleVariable+"="+roleAgent), Stdout: write,
	})
	if err != nil {
		t.Fatal(err)
	}
	write.Close()
	one := make([]byte, 1)
	if _, err := read.Read(one); err != nil { // the child runs
		t.Fatal(err)
	}
	agent.kill()
	awaitExit(t, agent)
	// The child holds the pipe's other end as long as it lives.
	if err := read.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := read.Read(one); err == nil || os.IsTimeout(err) {
		t.Errorf("the child lives on after its agent: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct{ path, want string }{
		{filepath.Join(dir, "missing"), "there is no such file"},
		{"understudy-no-such-program", "there is no such file"},
		{dir, "it is a directory"},
		{write("mode", "#!/bin/sh\n", 0o644), "chmod 0755"},
		{write("loader", "#!/no/such/loader\n", 0o755), "dynamic loader"},
		{write("binary", "\x00\x01", 0o755), "architecture"},
	} {
		_, err := startProcess(Command{Path: tc.path})
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.path) {
			t.Errorf("%s: got %v, want the path and %q", tc.path, err, tc.want)
		}
	}
}

// A user other than root loses every capability at an exec, but those it is given.
func TestCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: another user, and a capability to hand on")
	}
	const user, netRaw = 1337, 13
	for _, tt := range []struct {
		capabilities []uintptr
		want         string
	}{{nil, "0000000000000000"}, {[]uintptr{netRaw}, "0000000000002000"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := startProcess(Command{
			Path: "/bin/sh", Args: []string{"-c", "grep CapEff /proc/self/status"}, Stdout: w,
			credential: &syscall.Credential{Uid: user, Gid: user}, Capabilities: tt.capabilities,
		})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		awaitExit(t, p)
		out, err := io.ReadAll(r)
		r.Close()
		if err != nil || strings.TrimSpace(strings.TrimPrefix(string(out), "CapEff:")) != tt.want {
			t.Errorf("given %v: %q (%v), want %s", tt.capabilities, out, err, tt.want)
		}
	}
}
