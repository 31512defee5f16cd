package envoy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary plays other programs when this variable says so.
const (
	roleVariable = "ENVOY_TEST_ROLE"
	roleAgent    = "agent" // starts a child that never ends by itself, and waits for it
	roleInit     = "init"  // PID 1 of a namespace
)

func playRole(role string) int {
	var err error
	switch role {
	case roleAgent:
		err = playAgent()
	case roleInit:
		err = playInit()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func playAgent() error {
	p, err := startProcess(Command{Path: "/bin/sh", Args: []string{"-c", "echo; exec sleep 1000"}, Stdout: os.Stdout})
	if err != nil {
		return err
	}
	<-p.Done()
	return nil
}

// playInit makes, as PID 1, orphans and children of both kinds side by side. Every
// child must get its own status, and in the end no zombie may be left.
func playInit() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("PID is %d, want 1", os.Getpid())
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var reaper sync.WaitGroup
	reaper.Go(func() { ReapOrphans(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil))) })
	var children sync.WaitGroup
	errs := make(chan error, 100)
	for i := range 20 {
		// A double fork: the grandchild is orphaned when the shell exits.
		script := fmt.Sprintf("sleep 0.0%d & exit %d", i%10, i)
		children.Go(func() { errs <- checkExec(script, i) })
		children.Go(func() { errs <- checkProcess(script, i) })
	}
	children.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	if err := lateWaiter(); err != nil {
		return err
	}
	if err := noZombies(); err != nil {
		return err
	}
	cancel()
	reaper.Wait()
	return nil
}

func checkExec(script string, want int) error {
	cmd := exec.Command("/bin/sh", "-c", script)
	_ = cmd.Run() // the state says it all
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
		return fmt.Errorf("os/exec child: %v, want %d", cmd.ProcessState, want)
	}
	return nil
}

func checkProcess(script string, want int) error {
	p, err := startProcess(Command{Path: "/bin/sh", Args: []string{"-c", script}})
	if err != nil {
		return err
	}
	<-p.Done()
	if p.Exit() != (Exit{code: want}) {
		return fmt.Errorf("child: %v, want %d", p.Exit(), want)
	}
	return nil
}

// lateWaiter starts a child and does not wait for it until others have died around it.
func lateWaiter() error {
	late := exec.Command("/bin/sh", "-c", "exit 7")
	if err := late.Start(); err != nil {
		return err
	}
	for range 5 {
		if err := checkExec("sleep 0.01 & exit 1", 1); err != nil {
			return err
		}
	}
	_ = late.Wait()
	if late.ProcessState == nil || late.ProcessState.ExitCode() != 7 {
		return fmt.Errorf("a child that was waited for late: %v, want 7", late.ProcessState)
	}
	return nil
}

// noZombies waits until this process has no children at all.
func noZombies() error {
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		left, err := childrenOf(1)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("children that nobody reaped: %v", left)
		}
	}
}

// childrenOf reads /proc/*/stat, whose fields after the name begin with state and PPID.
func childrenOf(parent int) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var children []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // gone meanwhile
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if fields[1] == strconv.Itoa(parent) {
			children = append(children, string(bytes.TrimSpace(stat)))
		}
	}
	return children, nil
}

func TestReapOrphans(t *testing.T) {
	needRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+roleInit)
	// A mount namespace of its own, made private by Go, for the new /proc.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestHoldsPidfd(t *testing.T) {
	child := exec.Command("/bin/cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	held, err := holdsPidfd("/proc/self/fdinfo", child.Process.Pid)
	if err != nil || !held {
		t.Errorf("a running os/exec child: held %v, %v", held, err)
	}
	in.Close()
	_ = child.Wait()
	held, err = holdsPidfd("/proc/self/fdinfo", child.Process.Pid)
	if err != nil || held {
		t.Errorf("a child that was waited for: held %v, %v", held, err)
	}
	// PID 1 is nobody's child here, and part of many other numbers.
	if held, err := holdsPidfd("/proc/self/fdinfo", 1); err != nil || held {
		t.Errorf("PID 1: held %v, %v", held, err)
	}
}

// TestReapOrphansEnds: with nothing to reap it must end with its context.
func TestReapOrphansEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ReapOrphans(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	cancel()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}
