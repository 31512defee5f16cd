package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Prefixes of the control socket's URL paths. What follows the prefix is the
// path on the port that the prefix stands for.
const (
	// ControlStatus is the status port (15020): readiness, metrics, drain, quit, debug pages.
	ControlStatus = "/status"
	// ControlAdmin is the admin port (15000): the running Envoy's admin API.
	ControlAdmin = "/admin"
)

const (
	// controlHeaderTimeout bounds how long a local client may take to send its
	// request line and headers; they fit one write.
	controlHeaderTimeout = 5 * time.Second
	// controlCloseTimeout bounds how long requests in flight may take when the agent ends.
	controlCloseTimeout = time.Second
	// controlClaim is how often a generation tries to get the control socket that
	// another one of its mount namespace has.
	controlClaim = 500 * time.Millisecond
	// proxyUID is the user that Istio's manifests run the proxy's container as.
	proxyUID = 1337
)

// ErrNoAgent says that no agent of this process's mount namespace listens.
var ErrNoAgent = errors.New("no agent runs in this container")

// ControlPrefix begins the name of every agent's control socket; the id of the agent's
// mount namespace follows.
const ControlPrefix = "@understudy-"

// ControlName returns the abstract Unix socket name (unix(7)) of the agent that
// lives in the mount namespace of a process, which is named as in /proc: "self", or
// its pid. Both containers of a pod share the network namespace, and with it all
// abstract names; the mount namespace is what tells one container from the other,
// and an exec'd command shares it with its container's agent whatever its
// environment is. An abstract name needs no writable file system.
func ControlName(process string) (string, error) {
	mount, err := os.Readlink(filepath.Join("/proc", process, "ns/mnt"))
	if err != nil {
		return "", fmt.Errorf("find the mount namespace of process %s (is /proc mounted?): %w", process, err)
	}
	return ControlPrefix + strings.TrimSuffix(strings.TrimPrefix(mount, "mnt:["), "]"), nil
}

// listenControl binds the control socket of this container's agent.
func listenControl() (net.Listener, error) {
	name, err := ControlName("self")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", name)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("bind the control socket %s: %w", name, errControlTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("bind the control socket %s: %w", name, err)
	}
	return &peerListener{Listener: l}, nil
}

// errControlTaken says that another agent of this mount namespace has the name.
var errControlTaken = errors.New("another agent runs in this container")

// claimControl binds the control socket once the agent that has it lets it go, or
// returns nil at the end of ctx. Two generations on a plain server share a mount
// namespace: the one that stays gets the name when the other has ended.
func claimControl(ctx context.Context) (net.Listener, error) {
	tick := time.NewTicker(controlClaim)
	defer tick.Stop()
	for {
		l, err := listenControl()
		if !errors.Is(err, errControlTaken) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-tick.C:
		}
	}
}

// peerListener hands out only connections of root and of the agent's own user:
// an abstract socket has no file mode that could keep others out.
type peerListener struct{ net.Listener }

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := peerCredentials(c)
		if err == nil && (cred.Uid == 0 || cred.Uid == uint32(os.Geteuid())) {
			return c, nil
		}
		c.Close()
	}
}

// peerCredentials returns who is at the other end of a Unix socket (SO_PEERCRED, unix(7)).
func peerCredentials(c net.Conn) (*unix.Ucred, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%T is not a Unix socket", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// serveControl serves the agent's own endpoints to commands of its container
// until ctx ends.
func serveControl(ctx context.Context, l net.Listener, handler http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: controlHeaderTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		bounded, cancel := context.WithTimeout(context.Background(), controlCloseTimeout)
		defer cancel()
		if srv.Shutdown(bounded) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() { // Serve failed by itself
		return fmt.Errorf("serve the control socket: %w", err)
	}
	<-stopped
	return nil
}

// NewControlClient returns an HTTP client whose every connection goes to the
// agent of this process's own mount namespace; the host of a URL is ignored, its
// path begins with [ControlStatus] or [ControlAdmin]. Requests fail with
// [ErrNoAgent] when no agent is there, and when whoever holds the name is
// neither root, nor this user, nor (for root) believable as this container's agent.
func NewControlClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialControl(ctx)
		},
	}}
}

func dialControl(ctx context.Context) (net.Conn, error) {
	name, err := ControlName("self")
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", name)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil, ErrNoAgent
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the control socket %s: %w", name, err)
	}
	if err := checkServer(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// checkServer refuses an impostor: any process of the pod could bind the
// agent's abstract name first.
func checkServer(c net.Conn) error {
	cred, err := peerCredentials(c)
	if err != nil {
		return fmt.Errorf("identify the control socket's owner: %w", err)
	}
	me := uint32(os.Geteuid())
	if cred.Uid == 0 || cred.Uid == me || me == 0 && trustedByRoot(cred) {
		return nil
	}
	return fmt.Errorf("the control socket is held by uid %d, pid %d, which is no agent of this container: end that process", cred.Uid, cred.Pid)
}

// trustedByRoot tells whether root may believe an agent of another user: one of its
// own mount namespace or, where root lacks the capability to look (CAP_SYS_PTRACE),
// one of the proxy's user, as whom no application may run: capture lets it pass.
func trustedByRoot(cred *unix.Ucred) bool {
	theirs, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(cred.Pid), "ns/mnt"))
	if err != nil {
		return errors.Is(err, fs.ErrPermission) && cred.Uid == proxyUID
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	return err == nil && ours == theirs
}
