package iptables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// applyLock is an abstract Unix address (unix(7)): it exists once in each network
	// namespace, needs no file system, and is free again when its holder ends, however
	// that happens.
	applyLock = "@understudy-capture"

	// applyWait is how long an apply waits for another one: as long as that may wait for
	// the xtables lock in both families, and some time to work.
	applyWait = 90 * time.Second
)

type lockKey struct{}

// heldLock returns what a binary has to inherit: when this process is killed, what it
// had started ends its work still under the lock.
func heldLock(ctx context.Context) []*os.File {
	if f, ok := ctx.Value(lockKey{}).(*os.File); ok {
		return []*os.File{f}
	}
	return nil
}

// acquire waits until no other apply or cleaning is under way in this network
// namespace: two that read the same state would both add what is missing. The
// context that it returns carries the lock to what start starts.
func acquire(ctx context.Context, log *slog.Logger) (held context.Context, release func(), err error) {
	if err := checkPrivilege(); err != nil {
		return ctx, nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	for {
		l, err := new(net.ListenConfig).Listen(ctx, "unix", applyLock)
		if err == nil {
			return carry(ctx, l.(*net.UnixListener))
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return ctx, nil, fmt.Errorf("lock the capture rules of this network namespace: %w", err)
		}
		if err := awaitHolder(waiting, log); err != nil {
			return ctx, nil, err
		}
	}
}

func carry(ctx context.Context, l *net.UnixListener) (held context.Context, release func(), err error) {
	f, err := l.File()
	if err != nil {
		l.Close()
		return ctx, nil, fmt.Errorf("hold the lock of the capture rules: %w", err)
	}
	return context.WithValue(ctx, lockKey{}, f), func() { f.Close(); l.Close() }, nil
}

// awaitHolder returns when the holder of the lock has let go of it. The kernel says
// so: nobody ever accepts the connection to it, and it ends with the socket.
func awaitHolder(ctx context.Context, log *slog.Logger) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", applyLock)
	if errors.Is(err, unix.ECONNREFUSED) {
		return ctx.Err() // it has ended meanwhile
	}
	if err != nil {
		return fmt.Errorf("wait for another change of the capture rules: %w", err)
	}
	defer conn.Close()
	holder := peerOf(conn.(*net.UnixConn))
	log.Info("waiting for another change of the capture rules", "by", holder)
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	if _, err := io.Copy(io.Discard, conn); err != nil && ctx.Err() != nil {
		return fmt.Errorf("another change of the capture rules is under way, by %s: it must end first: %w", holder, ctx.Err())
	}
	return nil
}

// peerOf names the process on the other side.
func peerOf(conn *net.UnixConn) string {
	var credentials *unix.Ucred
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			credentials, err = unix.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		})
	}
	if err != nil {
		return "an unknown process"
	}
	return process(int(credentials.Pid))
}

// process names a process for a person. One of another PID namespace has no number
// in this one.
func process(pid int) string {
	if pid <= 0 {
		return "a process outside of this container"
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(text) == 0 {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " ")))
}
