package agent

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/control"
)

func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "--hot-restart-version") { // asked of its Envoy, whose environment it is not
		fmt.Println("11.104") // of every Envoy from 1.20 on
		os.Exit(0)
	}
	if description, ok := os.LookupEnv(asEnvoy); ok {
		fmt.Fprintln(os.Stderr, runFakeEnvoy(description, os.Args[1:]))
		os.Exit(1)
	}
	flag.Parse()
	// Tests of whole generations wait most of the time, and have a pod each.
	flag.Set("test.parallel", "8")
	status := m.Run()
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// The agent serves whoever has the names of its control socket, and commands reach it once one is free.
func TestStrangersStopNoAgent(t *testing.T) {
	leave := takeControlNames(t)
	if _, err := control.Listen(); !errors.Is(err, control.ErrHeld) {
		t.Fatalf("strangers have all names: %v", err)
	}
	p := newPod(t)
	p.cfg.HandoffDir = ""
	a := p.start("a")
	a.settles(handoff.RoleServing)
	leave()
	waitFor(t, "a command to reach the agent", func() bool {
		status, err := control.NewClient(nil).Role(t.Context(), "http://127.0.0.1:1/")
		return err == nil && status.Role == "serving"
	})
}

// takeControlNames listens as uid 1000 under each name of the control socket, until leave.
func takeControlNames(t *testing.T) (leave func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to listen as another user")
	}
	name, err := control.SocketName("self")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	var listeners []net.Listener
	go func() { // the kernel notes who calls listen(2); the thread ends with this goroutine, and its user too
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 1000, ^uintptr(0)); errno != 0 {
			done <- errno
			return
		}
		var errs []error
		for _, name := range []string{name, name + "-2", name + "-3", name + "-4"} {
			l, err := net.Listen("unix", name)
			if errs = append(errs, err); err == nil {
				listeners = append(listeners, l)
			}
		}
		done <- errors.Join(errs...)
	}()
	leave = func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	t.Cleanup(leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return leave
}
