// Package access owns the right to change the rules of a network namespace: the privilege
// that it takes, and one process at a time.
package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"understudy.mesh/internal/unixsock"
)

const (
	// applyLock is an abstract Unix address (unix(7)): there is one in each network
	// namespace, and it is free again when its holder ends.
	applyLock = "@understudy-capture"

	// applyWait has room for another apply's wait for the xtables lock in both families.
	applyWait = 90 * time.Second

	// unknownWait is how long the holder may stay unknown: it has ended, or does not listen yet.
	unknownWait = 2 * time.Second

	// unknownLook is how often it is looked for meanwhile.
	unknownLook = 10 * time.Millisecond
)

// errStranger says that somebody holds the lock who can have no change under way.
var errStranger = errors.New("the lock of the capture rules is held by a process that may not change them")

type lockKey struct{}

// Inherited returns what a binary inherits, to end its work under the lock when this
// process is killed.
func Inherited(ctx context.Context) []*os.File {
	if f, ok := ctx.Value(lockKey{}).(*os.File); ok {
		return []*os.File{f}
	}
	return nil
}

// Acquire waits until no other apply or cleaning is under way in this network namespace:
// two that read the same state would both add what is missing. The context that it
// returns carries the lock to Inherited. Where a process that is neither root nor of this
// user has the lock's name, there is no lock.
func Acquire(ctx context.Context, log *slog.Logger) (held context.Context, release func(), err error) {
	if err := Check(); err != nil {
		return ctx, nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	tick := time.NewTicker(unknownLook)
	defer tick.Stop()
	known := time.Now() // until when it was known what is under way
	for {
		l, err := new(net.ListenConfig).Listen(ctx, "unix", applyLock)
		if err == nil {
			return carry(ctx, l.(*net.UnixListener))
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return ctx, nil, fmt.Errorf("lock the capture rules of this network namespace: %w", err)
		}
		waited, err := awaitHolder(waiting, log)
		switch {
		case waited:
			known = time.Now()
		case err == nil && time.Since(known) > unknownWait:
			err = fmt.Errorf("%w: it does not accept connections, so it has no name here", errStranger)
		}
		if errors.Is(err, errStranger) {
			log.Warn("capture rules are changed without the lock, which keeps two changes at once apart", "err", err)
			return ctx, func() {}, nil
		}
		if err != nil {
			return ctx, nil, err
		}
		if !waited {
			<-tick.C
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

// awaitHolder returns when the holder of the lock has released it: nobody accepts the
// connection to it, which ends with the socket. Without a connection nothing was waited
// for: the holder has ended, or is no apply, which always has room for connections.
func awaitHolder(ctx context.Context, log *slog.Logger) (waited bool, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", applyLock)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN) {
		return false, ctx.Err()
	}
	if err != nil {
		return false, fmt.Errorf("wait for another change of the capture rules: %w", err)
	}
	defer conn.Close()
	credentials, err := unixsock.Peer(conn)
	if err != nil {
		return false, fmt.Errorf("wait for another change of the capture rules: find out whose it is: %w", err)
	}
	holder := fmt.Sprintf("%s of uid %d", Process(int(credentials.Pid)), credentials.Uid)
	if !unixsock.IsRootOrSelf(credentials) {
		return false, fmt.Errorf("%w: %s", errStranger, holder)
	}
	log.Info("waiting for another change of the capture rules", "by", holder)
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	if _, err := io.Copy(io.Discard, conn); err != nil && ctx.Err() != nil {
		return true, fmt.Errorf("another change of the capture rules is under way, by %s: it must end first: %w", holder, ctx.Err())
	}
	return true, nil
}

// Process names a process for a person; 0 is one of another PID namespace.
func Process(pid int) string {
	if pid <= 0 {
		return "a process outside of this container"
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(text) == 0 {
		return fmt.Sprintf("process %d", pid)
	}
	line := strings.Map(func(r rune) rune { // it is in the hands of who runs there
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(text[:min(len(text), maxCommandLine)]))
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(line))
}

// maxCommandLine is how many bytes of a command line are enough to know a process by.
const maxCommandLine = 200

// Check fails in plain words where iptables would say "table does not exist".
func Check() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has 64 bits
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New(Needs)
	}
	return nil
}

// Needs is what the right to change rules takes, for the errors of those who lack it.
const Needs = "needs uid 0 with the capabilities NET_ADMIN and NET_RAW in the pod's network namespace"
