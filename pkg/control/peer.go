package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.mesh/internal/unixsock"
	"understudy.mesh/pkg/contract"
)

// ErrNoAgent says that no agent of this process's mount namespace listens.
var ErrNoAgent = errors.New("no agent runs in this container")

// errImpostor says that no agent was found, and that another process has one of its
// names. An agent may still start: it takes the next name.
var errImpostor = errors.New("a name of the control socket is held by a process that is no agent of this container")

// owner is the process that has one of the control socket's names. As an error it says
// that this is no agent.
type owner struct {
	name string
	cred *unix.Ucred // nil if it does not listen, or accepts no connection
}

func (h *owner) Error() string {
	if h.cred == nil {
		return fmt.Sprintf("%s is held by a process that does not accept connections", h.name)
	}
	return fmt.Sprintf("%s is held by uid %d, pid %d", h.name, h.cred.Uid, h.cred.Pid)
}

// isTrusted tells whether the owner may be an agent: it runs as root or as this process's
// user.
func (h *owner) isTrusted() bool {
	return h.cred != nil && unixsock.IsRootOrSelf(h.cred)
}

// isTrustedByRoot tells whether root may take a process of another user for the agent. It
// must be in root's own mount namespace, and either run as the proxy's user (no application
// may run as that user, since capture lets its traffic pass) or be this program. Without
// the capability to look at the process (CAP_SYS_PTRACE), the proxy's user is enough.
func (h *owner) isTrustedByRoot() bool {
	if os.Geteuid() != 0 || h.cred == nil {
		return false
	}
	theirs, err := os.Readlink(h.proc("ns/mnt"))
	if err != nil {
		return errors.Is(err, fs.ErrPermission) && h.cred.Uid == contract.ProxyUID
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	return err == nil && ours == theirs && (h.cred.Uid == contract.ProxyUID || h.isThisProgram())
}

// isThisProgram tells whether the owner runs a file of root's with this program's name.
// The file may be deleted: an upgrade replaces it.
func (h *owner) isThisProgram() bool {
	theirs, err := os.Readlink(h.proc("exe"))
	ours, ownErr := os.Readlink("/proc/self/exe")
	if err != nil || ownErr != nil {
		return false
	}
	name := func(path string) string { return strings.TrimSuffix(filepath.Base(path), " (deleted)") }
	var file unix.Stat_t
	return name(ours) == name(theirs) && unix.Stat(h.proc("exe"), &file) == nil && file.Uid == 0
}

// proc is the path of a file about the owner in /proc.
func (h *owner) proc(file string) string { return fmt.Sprintf("/proc/%d/%s", h.cred.Pid, file) }

// ownerOf returns the process that listens under a name, and whether it is known. The
// kernel answers, so the process cannot lie.
func ownerOf(name string) (h *owner, known bool) {
	c, h, err := dialName(context.Background(), name)
	if c == nil || err != nil {
		return &owner{name: name}, false
	}
	c.Close()
	return h, true
}

// dial connects to the agent under any of its names. It prefers an owner that every user
// trusts to one that only root trusts: in a mount namespace that root shares with the
// application, as on a server without containers, the latter may be the application.
func dial(ctx context.Context) (net.Conn, error) {
	names, err := ownSocketNames()
	if err != nil {
		return nil, err
	}
	var strangers []error
	var second net.Conn
	for _, name := range names {
		c, h, err := dialName(ctx, name)
		switch {
		case err != nil && second == nil:
			return nil, err
		case c != nil && h.isTrusted():
			if second != nil {
				second.Close()
			}
			return c, nil
		case c != nil && second == nil && h.isTrustedByRoot():
			second = c
			continue
		case h != nil:
			strangers = append(strangers, h)
		}
		if c != nil {
			c.Close()
		}
	}
	switch {
	case second != nil:
		return second, nil
	case len(strangers) > 0:
		return nil, fmt.Errorf("%w: end that process: %w", errImpostor, errors.Join(strangers...))
	}
	return nil, ErrNoAgent
}

// dialName connects to one name. All results are nil if no process listens; there is an
// owner and no connection if the process accepts none.
func dialName(ctx context.Context, name string) (net.Conn, *owner, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", name)
	switch {
	case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT):
		return nil, nil, nil
	case errors.Is(err, unix.EAGAIN): // its queue is full
		return nil, &owner{name: name}, nil
	case err != nil:
		return nil, nil, fmt.Errorf("connect to the control socket %s: %w", name, err)
	}
	h := &owner{name: name}
	if h.cred, err = unixsock.Peer(c); err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("identify the control socket's owner: %w", err)
	}
	return c, h, nil
}
