package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapRetry is when to look again after a child was found that someone in this
// process is about to wait for: it has been collected by then, and children that died
// behind it come into view.
const reapRetry = time.Second

// ReapOrphans reaps, until ctx ends, the processes that were orphaned to this one,
// which the kernel does to PID 1. It never takes the status of a child that this
// process started itself.
//
// Callers need not register their children. Since Linux 5.4 os/exec (and with it
// Start) holds a pidfd of each child from the fork until it was waited for; a zombie
// of which this process holds no pidfd was orphaned to it. Only a bare
// syscall.ForkExec without SysProcAttr.PidFD is outside of this. Where there are no
// pidfds (an older kernel, a seccomp filter), nothing is reaped, and the log says so.
func ReapOrphans(ctx context.Context, log *slog.Logger) {
	if err := pidfdsWork(); err != nil {
		log.Warn("orphaned processes stay as zombies: the kernel has no pidfds (Linux 5.4)", "err", err)
		return
	}
	children := make(chan os.Signal, 1) // one is enough: a sweep takes all
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	retry := time.NewTimer(0) // the first sweep is for those that died before
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-children:
		case <-retry.C:
		}
		again, err := reapAll(log)
		if err != nil {
			log.Warn("cannot reap orphaned processes", "err", err)
		}
		if again {
			retry.Reset(reapRetry)
		}
	}
}

// pidfdsWork asks os whether it has a handle of a process, which it has only when
// every operation on pidfds that os/exec needs works.
func pidfdsWork() error {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	defer self.Release() //nolint:errcheck // closes a descriptor
	return self.WithHandle(func(uintptr) {})
}

// reapAll reaps orphans until there is none, or until it meets a child that is waited
// for by its owner (again is true).
func reapAll(log *slog.Logger) (again bool, err error) {
	for {
		pid, err := peekZombie()
		if err != nil || pid == 0 {
			return false, err
		}
		held, err := holdsPidfd("/proc/self/fdinfo", pid)
		if err != nil || held {
			return true, err
		}
		// ECHILD: its owner was faster, and had closed the pidfd before the look.
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) {
			return false, fmt.Errorf("wait for orphan %d: %w", pid, err)
		}
		log.Debug("reaped an orphaned process", "pid", pid, "status", int(status))
	}
}

// peekZombie gives the PID of a child that has ended, and leaves it as it is; 0 when
// there is none.
func peekZombie() (int, error) {
	// siginfo_t of SIGCHLD as sigaction(2) has it for 64-bit: signo, errno, code and
	// padding, then the PID. The kernel writes 128 bytes.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		_                     [108]byte
	}
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("look for ended children: %w", err)
		}
		return int(info.pid), nil
	}
}

// holdsPidfd says whether one of the descriptors described in dir, /proc/self/fdinfo,
// is a pidfd of pid (proc_pid_fdinfo(5)).
func holdsPidfd(dir string, pid int) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("look for the owner of child %d: %w", pid, err)
	}
	want := fmt.Appendf(nil, "\nPid:\t%d\n", pid)
	for _, e := range entries {
		info, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.EBADF) {
			continue // closed meanwhile
		}
		if err != nil {
			return false, fmt.Errorf("look for the owner of child %d: %w", pid, err)
		}
		if bytes.Contains(append([]byte{'\n'}, info...), want) {
			return true, nil
		}
	}
	return false, nil
}
