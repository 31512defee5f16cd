package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// validateTimeout bounds a run of --mode validate. What takes longer would freeze the main thread of an Envoy that serves for as long.
	validateTimeout = 30 * time.Second
	// validateWork is for how long of that time an endless loop has surely had a processor: what had one for less was kept waiting by
	// others, and says nothing of what it was to try.
	validateWork = 10 * time.Second
	// versionTimeout bounds a run of --version, which takes 50 ms, but comes after everybody else.
	versionTimeout = 30 * time.Second
	// helperNice is the lowest priority there is: a helper has what the Envoy that serves leaves.
	helperNice = 19
	// helperOOMScore has the kernel end a helper before everything else of the pod (proc_pid_oom_score_adj(5)).
	helperOOMScore = "1000"
	// headroom times what a helper is expected to take has to be free, or the Envoy that serves pays for it.
	headroom = 1.5
	// maxHelperOutput is how much of the end of a helper's log is kept for its error.
	maxHelperOutput = 16 << 10
)

// Helper runs Envoys for a moment, beside the one that serves and at its expense in nothing: each with the lowest priority, as the
// kernel's first victim, one at a time, with a deadline, and only where there is memory enough.
type Helper struct {
	cfg     HelperConfig
	free    func() (bytes int64, ok bool)
	timeout time.Duration
	work    time.Duration // validateWork
	turn    chan struct{}
}

// HelperConfig says what a Helper runs.
type HelperConfig struct {
	Binary string
	// Dir is where a configuration lies, for its owner alone, while it is tried: Envoy reads none from a pipe. It is made when it is
	// needed, and must be neither in /dev, /proc nor /sys.
	Dir string
	// Environ is the whole environment of the Envoy that serves; nil is this process's own.
	Environ []string
}

// NewHelper returns a helper. It starts nothing.
func NewHelper(cfg HelperConfig) *Helper {
	return &Helper{cfg: cfg, free: func() (int64, bool) { return freeMemory("/") }, timeout: validateTimeout, work: validateWork, turn: make(chan struct{}, 1)}
}

// Validate has an Envoy check a bootstrap in JSON, which takes about so many bytes of memory. refused is Envoy's reason if it does not
// take it, dies of it or is not done within 30 s of work; skipped is why it was not asked at all. Each is "" if that is not so. The error says
// that it could not be asked, or had too little of a processor to answer: then nothing is known, and another try may do.
func (h *Helper) Validate(ctx context.Context, bootstrap []byte, memory int64) (refused, skipped string, err error) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
	want := int64(headroom * float64(memory))
	if free, ok := h.free(); ok && free < want {
		return "", fmt.Sprintf("%d MiB of memory are free, and a try may take %d MiB: raise the container's memory limit", free>>20, want>>20), nil
	}
	path, err := h.write(bootstrap)
	if err != nil {
		return "", "", fmt.Errorf("write the configuration that Envoy is to try: %w", err)
	}
	defer os.Remove(path)
	within, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	out, used, err := h.run(within, "--mode", "validate", "--config-path", path,
		"--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "--log-format", "%v")
	out = bytes.ReplaceAll(out, []byte("'"+path+"'"), []byte("the configuration"))
	switch exit := (*exec.ExitError)(nil); {
	case err == nil:
		return "", "", nil
	case ctx.Err() != nil:
		return "", "", ctx.Err()
	case within.Err() != nil && used < h.work:
		return "", "", fmt.Errorf("it had a processor for %s of %s: the node is too busy for a try", used.Round(time.Millisecond), h.timeout)
	case within.Err() != nil:
		return fmt.Sprintf("it was not done after %s: an endless loop, or too much to compile", h.timeout), "", nil
	case errors.As(err, &exit):
		return lastWords(out, exit), "", nil
	}
	return "", "", err
}

// Version names the Envoy as --version does: its commit, its release and how it was built, with slashes between them.
func (h *Helper) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, _, err := h.run(ctx, "--version")
	if err != nil {
		return "", err
	}
	_, version, ok := strings.Cut(string(out), "version:")
	if !ok {
		return "", fmt.Errorf("%s --version does not say which Envoy it is: %.100q", h.cfg.Binary, out)
	}
	return strings.TrimSpace(version), nil
}

func (h *Helper) write(bootstrap []byte) (string, error) {
	if err := os.MkdirAll(h.cfg.Dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(h.cfg.Dir, "try-*.json") // its mode is 0600
	if err != nil {
		return "", err
	}
	if _, err = f.Write(bootstrap); err != nil {
		_ = os.Remove(f.Name()) // it is of no use
	}
	return f.Name(), errors.Join(err, f.Close())
}

// run executes the binary, and returns the end of what it wrote, and for how long it had a processor. The thread that forks it stays
// until it has ended (see startProcess).
func (h *Helper) run(ctx context.Context, args ...string) (said []byte, used time.Duration, err error) {
	cmd := exec.CommandContext(ctx, h.cfg.Binary, args...)
	out := &tail{limit: maxHelperOutput}
	cmd.Stdout, cmd.Stderr, cmd.Env = out, out, h.cfg.Environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, 0, startError(h.cfg.Binary, err)
	}
	yield(cmd.Process.Pid)
	err = cmd.Wait()
	return out.kept, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}

// yield gives a process that has just begun the lowest priority, and makes it the kernel's first victim. Both are always granted; one
// that has ended already has nothing to yield. To Linux a priority is a thread's, and a new thread has that of its maker, so the first
// thread comes first.
func yield(pid int) {
	own := filepath.Join("/proc", strconv.Itoa(pid))
	_ = os.WriteFile(filepath.Join(own, "oom_score_adj"), []byte(helperOOMScore), 0)
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, pid, helperNice)
	threads, _ := os.ReadDir(filepath.Join(own, "task"))
	for _, thread := range threads {
		if tid, err := strconv.Atoi(thread.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, tid, helperNice)
		}
	}
}

// lastWords are the reason that an Envoy gives in its log: the last lines of it.
func lastWords(out []byte, exit *exec.ExitError) string {
	var said []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			said = append(said, line)
		}
	}
	const most = 8
	if len(said) > most {
		said = said[len(said)-most:]
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		said = append(said, fmt.Sprintf("Envoy ended by signal %v", status.Signal()))
	}
	if len(said) == 0 {
		return exit.String()
	}
	return strings.Join(said, "; ")
}

// tail keeps the end of what is written to it.
type tail struct {
	kept  []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - t.limit; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}
