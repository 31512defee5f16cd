package envoy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// Command is what to execute.
type Command struct {
	// Path is the binary, executed as it is; without a slash it is looked up in $PATH.
	Path string
	// Args are the arguments, without the program's name.
	Args []string
	// Env is the whole environment; nil is the agent's own.
	Env []string
	// Stdout and Stderr are handed to the process as they are; nil is /dev/null.
	Stdout, Stderr *os.File
	// credential is the user to run as; nil is the agent's own.
	credential *syscall.Credential
	// Capabilities are those of the agent's that the process has as well, whoever it
	// runs as: numbers of capabilities(7). A user other than root would lose them.
	Capabilities []uintptr
}

// Process is one running Envoy. It owns the operating-system thread that forked it.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	exit Exit // written before done is closed
}

// startProcess executes c. The error names the path and says what to do about it.
//
// Envoy asks the kernel to be sent SIGTERM when its parent ends, and to the kernel a
// parent is a thread (PR_SET_PDEATHSIG(2const)): Go ends a thread whenever a
// goroutine that locked it returns. So the fork happens on a thread of its own, which
// stays until Envoy is gone; and the agent's death, by whatever means, is Envoy's.
func startProcess(c Command) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = c.Env
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  c.credential,
		AmbientCaps: c.Capabilities,
		// Until Envoy has asked for it itself, and for a wrapper script that never does.
		Pdeathsig: syscall.SIGKILL,
		// Ctrl-C in a terminal goes to the foreground group: the agent drains Envoy first.
		Setpgid: true,
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Not unlocked: the thread ends with this goroutine, which ends after Envoy.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- startError(c.Path, err)
			return
		}
		started <- nil
		p.exit = exitOf(cmd.Wait(), cmd.ProcessState)
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// startError adds to err what usually is behind it.
func startError(path string, err error) error {
	hint := ""
	switch info, statErr := os.Stat(path); {
	case errors.Is(err, exec.ErrNotFound), errors.Is(statErr, fs.ErrNotExist):
		hint = "there is no such file: set binaryPath in PROXY_CONFIG to where Envoy is"
	case errors.Is(err, fs.ErrNotExist):
		hint = "the file is there, but its interpreter or dynamic loader is not: an Envoy for another C library?"
	case statErr == nil && info.IsDir():
		hint = "it is a directory: binaryPath in PROXY_CONFIG must be the binary itself"
	case errors.Is(err, fs.ErrPermission):
		hint = "it may not be executed: check its mode (chmod 0755), the mount option noexec, and the agent's user"
	case errors.Is(err, syscall.ENOEXEC):
		hint = "it is not a program for this machine: check its architecture"
	}
	started := fmt.Errorf("start Envoy %q: %w", path, err)
	if hint != "" {
		started = fmt.Errorf("%w (%s)", started, hint)
	}
	if notExecutable(err) {
		return &unfitError{started}
	}
	return started
}

// pid is the process ID, in the agent's PID namespace.
func (p *Process) pid() int { return p.cmd.Process.Pid }

// Done is closed once the process was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the process ended. It is valid after Done.
func (p *Process) Exit() Exit { return p.exit }

// stop ends the process with SIGTERM, on which Envoy exits at once without a drain,
// and with SIGKILL when ctx ends, which also ends a process that is stopped
// (SIGSTOP). It returns once the process was reaped; stopping twice does no harm.
func (p *Process) stop(ctx context.Context) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only when it has ended, which Done says
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		<-p.done
	}
}

// kill ends the process with SIGKILL and does not wait for that.
func (p *Process) kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended, which Done says
}

// Exit is how a process ended: with a code, or by a signal.
type Exit struct {
	// code is the exit status, 0 to 255; -1 when it is not known because someone else
	// reaped the process.
	code int
	// signal is the signal that ended the process; 0 when it exited.
	signal syscall.Signal
}

func exitOf(err error, state *os.ProcessState) Exit {
	if state == nil {
		return Exit{code: -1}
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok || (err != nil && state.Success()):
		return Exit{code: -1}
	case status.Signaled():
		return Exit{signal: status.Signal()}
	}
	return Exit{code: status.ExitStatus()}
}

// String is for a log line: "exit status 1", "signal: killed (...)".
func (e Exit) String() string {
	switch {
	case e.signal == syscall.SIGKILL:
		return fmt.Sprintf("signal: %v (out of memory? compare the container's memory limit with Envoy's use)", e.signal)
	case e.signal != 0:
		return fmt.Sprintf("signal: %v", e.signal)
	case e.code < 0:
		return "exit status unknown"
	}
	return fmt.Sprintf("exit status %d", e.code)
}

// status is the exit status that a shell would give: the code, or 128 and the
// signal's number; 1 when it is not known.
func (e Exit) status() int {
	switch {
	case e.signal != 0:
		return 128 + int(e.signal)
	case e.code < 0:
		return 1
	}
	return e.code
}
