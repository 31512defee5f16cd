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
)

// proxyUID is the user that Istio's manifests run the proxy's container as.
const proxyUID = 1337

// ErrNoAgent says that no agent of this process's mount namespace listens.
var ErrNoAgent = errors.New("no agent runs in this container")

// errImpostor says that none was found, and that a process which is no agent listens
// under one of its names. An agent may still come: it takes the next name.
var errImpostor = errors.New("a name of the control socket is held by a process that is no agent of this container")

// holder is who listens under one of the control socket's names, and as an error says
// that it is a stranger.
type holder struct {
	name string
	cred *unix.Ucred // nil: it does not listen, or takes no connection
}

func (h *holder) Error() string {
	if h.cred == nil {
		return fmt.Sprintf("%s is held by a process that does not accept connections", h.name)
	}
	return fmt.Sprintf("%s is held by uid %d, pid %d", h.name, h.cred.Uid, h.cred.Pid)
}

// isTrusted tells whether the holder may be an agent: it is root or this process's user.
func (h *holder) isTrusted() bool {
	return h.cred != nil && unixsock.IsRootOrSelf(h.cred)
}

// isTrustedByRoot tells whether root may believe an agent of another user: one of its
// own mount namespace that is of the proxy's user, as whom no application may run since
// capture lets it pass, or that is this program. Where root lacks the capability to look
// (CAP_SYS_PTRACE), the proxy's user has to do.
func (h *holder) isTrustedByRoot() bool {
	if os.Geteuid() != 0 || h.cred == nil {
		return false
	}
	theirs, err := os.Readlink(h.proc("ns/mnt"))
	if err != nil {
		return errors.Is(err, fs.ErrPermission) && h.cred.Uid == proxyUID
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	return err == nil && ours == theirs && (h.cred.Uid == proxyUID || h.isThisProgram())
}

// isThisProgram tells whether the holder runs a file of root's with this program's name,
// which need not be there any more: an upgrade has put the next one in its place.
func (h *holder) isThisProgram() bool {
	theirs, err := os.Readlink(h.proc("exe"))
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return false
	}
	name := func(path string) string { return strings.TrimSuffix(filepath.Base(path), " (deleted)") }
	var file unix.Stat_t
	return name(ours) == name(theirs) && unix.Stat(h.proc("exe"), &file) == nil && file.Uid == 0
}

// proc is a file of the holder's in /proc.
func (h *holder) proc(file string) string { return fmt.Sprintf("/proc/%d/%s", h.cred.Pid, file) }

// holderOf returns who listens under a name, and whether that is known. The kernel
// answers for it, whatever it does.
func holderOf(name string) (h *holder, known bool) {
	c, h, err := dialHolder(context.Background(), name)
	if c == nil || err != nil {
		return &holder{name: name}, false
	}
	c.Close()
	return h, true
}

// dial tries every name, and takes an agent that anybody would believe before one
// that root alone does: in a mount namespace that root shares with the application, as
// on a plain server, that could be the application's.
func dial(ctx context.Context) (net.Conn, error) {
	names, err := ownSocketNames()
	if err != nil {
		return nil, err
	}
	var strangers []error
	var second net.Conn
	for _, name := range names {
		c, h, err := dialHolder(ctx, name)
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

// dialHolder connects to one name. All is nil when nobody listens; there is a holder and
// no connection when it takes none.
func dialHolder(ctx context.Context, name string) (net.Conn, *holder, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", name)
	switch {
	case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT):
		return nil, nil, nil
	case errors.Is(err, unix.EAGAIN): // its queue is full
		return nil, &holder{name: name}, nil
	case err != nil:
		return nil, nil, fmt.Errorf("connect to the control socket %s: %w", name, err)
	}
	h := &holder{name: name}
	if h.cred, err = unixsock.Peer(c); err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("identify the control socket's owner: %w", err)
	}
	return c, h, nil
}
