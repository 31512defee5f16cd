package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// namePrefix begins the name of whatever a lab leaves in a place that others use too.
const namePrefix = "e2e-"

// killRounds bounds the attempts to empty a namespace, so that a process that cannot be killed
// does not stop the clean-up.
const killRounds = 1000

// reserve makes the scratch directory and the two namespaces of a new lab and returns the
// directory; its name is the common name of all. It is never used twice: a janitor of an earlier
// lab may still be looking.
func reserve() (dir string, err error) {
	dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-*", namePrefix, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("make the scratch directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the pod's users have to get through
		return "", fmt.Errorf("open the scratch directory: %w", err)
	}
	for _, suffix := range []string{podSuffix, outSuffix} {
		if _, err := run("ip", "netns", "add", filepath.Base(dir)+suffix); err != nil {
			return dir, fmt.Errorf("make a namespace: %w", err)
		}
	}
	return dir, nil
}

// sweep removes what has the name of a lab: processes in its namespaces (and with them the private
// mount namespaces), the namespaces, the scratch directory. It is idempotent.
func sweep(dir string) {
	prefix := filepath.Base(dir)
	for _, suffix := range []string{podSuffix, outSuffix} {
		killAll(prefix + suffix)
		_, _ = run("ip", "netns", "del", prefix+suffix)
	}
	_ = os.RemoveAll(dir)
}

// killAll kills every process in a namespace but the test itself, until there is none: a process
// may fork between being listed and being killed.
func killAll(namespace string) {
	for range killRounds {
		pids := namespacePIDs(namespace)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// namespacePIDs lists the processes whose main thread is in the namespace, except the zombies
// (which have no namespace any more) and this process.
func namespacePIDs(namespace string) []int {
	out, err := run("ip", "netns", "pids", namespace)
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(out) {
		if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sweepDead removes what test processes left that were killed together with their janitor.
func sweepDead() {
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name, found := strings.CutSuffix(e.Name(), podSuffix)
		if !found || !strings.HasPrefix(name, namePrefix) {
			continue
		}
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, namePrefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); os.IsNotExist(err) {
			sweep(filepath.Join(os.TempDir(), name))
		}
	}
}

// janitorScript waits for the end of its standard input, which is the end of the test process
// however it comes, and then does what sweep does.
const janitorScript = `
cat >/dev/null
for ns in "$1"-pod "$1"-out; do
	while pids=$(ip netns pids "$ns" 2>/dev/null) && [ -n "$pids" ]; do kill -9 $pids 2>/dev/null; done
	ip netns del "$ns" 2>/dev/null
done
rm -rf "$2"
`

type janitor struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// startJanitor starts the process that cleans up when this one cannot. It has a session of its
// own, so that a Ctrl-C at the terminal does not end it first.
func startJanitor(t T, dir string) *janitor {
	t.Helper()
	cmd := exec.Command("sh", "-c", janitorScript, "janitor", filepath.Base(dir), dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("lab: make the janitor's pipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("lab: start the janitor: %v", err)
	}
	return &janitor{cmd: cmd, stdin: stdin}
}

// dismiss lets the janitor find that nothing is left.
func (j *janitor) dismiss() {
	_ = j.stdin.Close()
	_ = j.cmd.Wait()
}
