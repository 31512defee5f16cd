package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// testDeadline is how long a test waits for what must happen.
	testDeadline = 20 * time.Second
	// maxRSS is what an idle slot may cost a pod, in KiB.
	maxRSS = 3 << 10
)

func TestCommand(t *testing.T) {
	tests := map[string]string{
		"":                              "",
		"proxy":                         "proxy",
		"proxy sidecar --domain x":      "proxy",
		"--log_output_level=info proxy": "proxy",
		"--log_output_level info proxy": "proxy",
		"--log_as_json proxy sidecar":   "proxy",
		"wait":                          "wait",
		"wait proxy":                    "wait",
		"request POST proxy":            "request",
		"version --short":               "version",
		"--help":                        "",
	}
	for line, want := range tests {
		if got, _ := command(strings.Fields(line)); got != want {
			t.Errorf("command(%q) = %q, want %q", line, got, want)
		}
	}
}

// build makes the binary as it is released.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "pilot-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=1.2.3", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func TestStandby(t *testing.T) {
	bin := build(t)
	t.Run("version", func(t *testing.T) {
		out, err := exec.Command(bin, "version").Output()
		if err != nil || string(out) != "client version: 1.2.3 (standby)\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("other commands", func(t *testing.T) { testElsewhere(t, bin) })
	t.Run("help", func(t *testing.T) {
		for _, args := range []string{"", "help", "--help"} {
			if out, err := exec.Command(bin, strings.Fields(args)...).Output(); err != nil || !strings.Contains(string(out), "empty image") {
				t.Errorf("%q: %v, output %q", args, err, out)
			}
		}
	})
	t.Run("hooks", func(t *testing.T) {
		for _, args := range []string{"wait --for=drained", "request POST quitquitquit", "request --debug-port 15020 POST /drain", "--log_output_level info request POST drain body"} {
			if out, err := exec.Command(bin, strings.Fields(args)...).CombinedOutput(); err != nil || len(out) != 0 {
				t.Errorf("%q: %v, output %q", args, err, out)
			}
		}
	})
	t.Run("stops", func(t *testing.T) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			cmd := start(t, bin, nil)
			awaitIdle(t, cmd.Process.Pid)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := wait(t, cmd); err != nil {
				t.Errorf("after %v: %v, want exit 0", sig, err)
			}
		}
	})
	t.Run("memory", func(t *testing.T) {
		cmd := start(t, bin, nil)
		awaitIdle(t, cmd.Process.Pid)
		rss := statusKB(t, cmd.Process.Pid, "VmRSS:")
		t.Logf("RSS %d KiB, of it anonymous %d KiB", rss, statusKB(t, cmd.Process.Pid, "RssAnon:"))
		if rss > maxRSS {
			t.Errorf("RSS %d KiB, more than %d", rss, maxRSS)
		}
	})
}

// In a PID namespace of its own: SIGTERM counts, though the kernel gives PID 1
// no default for it, and orphans are reaped, those from before included.
func TestStandbyAsPID1(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root for a PID namespace")
		}
		t.Skip("needs root for a PID namespace")
	}
	// The shell leaves a child behind and becomes the standby, whose child it
	// then is; and that child leaves an orphan, which becomes its child later.
	shell := start(t, "/bin/sh", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID},
		"-c", `true & (sleep 0.2 & sleep 0.1) & exec "$0" proxy sidecar`, build(t))
	pid := shell.Process.Pid
	awaitIdle(t, pid)
	eventually(t, "all children are reaped", func() bool { return children(t, pid) == "" })
	if err := shell.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, shell); err != nil {
		t.Errorf("%v, want exit 0", err)
	}
}

// start runs "proxy sidecar", or the given arguments.
func start(t *testing.T, bin string, attr *syscall.SysProcAttr, args ...string) *exec.Cmd {
	t.Helper()
	if len(args) == 0 {
		args = []string{"proxy", "sidecar", "--domain", "ns.svc.cluster.local"}
	}
	cmd := exec.Command(bin, args...)
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err == nil {
			cmd.Wait()
		} else if !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	})
	return cmd
}

// wait returns how the process ended.
func wait(t *testing.T, cmd *exec.Cmd) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(testDeadline):
		t.Fatal("it did not stop")
		return nil
	}
}

// awaitIdle returns once the process is the standby and catches SIGTERM: the
// Go runtime catches all signals from early on, so what tells is that it has
// gone to sleep with SIGCHLD asked for.
func awaitIdle(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the standby idles", func() bool {
		comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		return err == nil && strings.HasPrefix(string(comm), "pilot-agent") && asleep(t, pid)
	})
}

// asleep reports that every thread of the process sleeps, twice in a row.
func asleep(t *testing.T, pid int) bool {
	for range 2 {
		stats, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
		if err != nil || len(stats) < 3 { // the runtime's threads are not there yet
			return false
		}
		for _, name := range stats {
			stat, err := os.ReadFile(name)
			if err != nil || !strings.Contains(string(stat), ") S ") {
				return false
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return true
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testDeadline); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}

// children lists the children of every thread of the process.
func children(t *testing.T, pid int) string {
	t.Helper()
	names, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil || len(names) == 0 {
		t.Fatalf("no list of children: %v", err)
	}
	var all strings.Builder
	for _, name := range names {
		list, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(list)
	}
	return strings.TrimSpace(all.String())
}

// statusKB reads one of the sizes in /proc/<pid>/status.
func statusKB(t *testing.T, pid int, field string) int {
	t.Helper()
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if rest, ok := strings.CutPrefix(scan.Text(), field); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", field)
	return 0
}
