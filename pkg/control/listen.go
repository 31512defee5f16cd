// Package control owns an agent's control socket: its names, which processes may use it,
// and what the agent answers there to the commands of its container.
package control

import (
	"context"
	"errors"
	"fmt"
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
	// StatusPrefix is the status port (15020): readiness, metrics, drain, quit, debug pages.
	StatusPrefix = "/status"
	// AdminPrefix is the admin port (15000): the running Envoy's admin API.
	AdminPrefix = "/admin"
)

const (
	// headerTimeout bounds how long a local client may take to send its
	// request line and headers; they fit one write.
	headerTimeout = 5 * time.Second
	// closeTimeout bounds how long requests in flight may take when the agent ends.
	closeTimeout = time.Second
	// claimPeriod is how often a generation tries to get the control socket that
	// another one of its mount namespace has.
	claimPeriod = 500 * time.Millisecond
	// maxNames is how many names the control socket has: any process of the pod can
	// take an abstract name, and the agent then takes the next one. More would only help
	// against somebody who takes as many as there are.
	maxNames = 4
	// maxUnknown is how long the holder of a name may stay unknown: another agent has
	// bound it and does not listen yet, or does not accept for the moment.
	maxUnknown = time.Second
	// lookPeriod is how often it is looked for meanwhile.
	lookPeriod = 20 * time.Millisecond
	// proxyUID is the user that Istio's manifests run the proxy's container as.
	proxyUID = 1337
)

// ErrNoAgent says that no agent of this process's mount namespace listens.
var ErrNoAgent = errors.New("no agent runs in this container")

// errImpostor says that none was found, and that a process which is no agent listens
// under one of its names. An agent may still come: it takes the next name.
var errImpostor = errors.New("a name of the control socket is held by a process that is no agent of this container")

// socketPrefix begins the name of every agent's control socket; the id of the agent's
// mount namespace follows.
const socketPrefix = "@understudy-"

// SocketName returns the abstract Unix socket name (unix(7)) of the agent that
// lives in the mount namespace of a process, which is named as in /proc: "self", or
// its pid. Both containers of a pod share the network namespace, and with it all
// abstract names; the mount namespace is what tells one container from the other,
// and an exec'd command shares it with its container's agent whatever its
// environment is. An abstract name needs no writable file system.
func SocketName(process string) (string, error) {
	mount, err := os.Readlink(filepath.Join("/proc", process, "ns/mnt"))
	if err != nil {
		return "", fmt.Errorf("find the mount namespace of process %s (is /proc mounted?): %w", process, err)
	}
	return socketPrefix + strings.TrimSuffix(strings.TrimPrefix(mount, "mnt:["), "]"), nil
}

// socketNames returns every name that the agent of a process's mount namespace may
// have, [SocketName] first and then the same with -2, -3 and -4 behind it: the agent
// takes the first one that no process of another user holds.
func socketNames(process string) ([]string, error) {
	first, err := SocketName(process)
	if err != nil {
		return nil, err
	}
	names := []string{first}
	for n := 2; n <= maxNames; n++ {
		names = append(names, fmt.Sprintf("%s-%d", first, n))
	}
	return names, nil
}

// Listen binds the control socket of this container's agent, under the first of
// its names that no stranger holds. The caller closes it.
func Listen() (*Listener, error) {
	names, err := socketNames("self")
	if err != nil {
		return nil, err
	}
	seen := map[string]*holder{}
	for _, name := range names { // before any is bound: the other agent may have a later one
		h, known := holderOf(name)
		if known && h.isTrusted() {
			return nil, fmt.Errorf("bind the control socket %s: %w", name, ErrTaken)
		}
		if known { // a second look might fail: each fills the queue of who does not accept
			seen[name] = h
		}
	}
	var strangers []error
	for _, name := range names {
		l, err := bind(name, seen[name])
		if stranger := (*holder)(nil); errors.As(err, &stranger) {
			strangers = append(strangers, err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bind the control socket %s: %w", name, err)
		}
		return &Listener{Listener: l, Strangers: errors.Join(strangers...)}, nil
	}
	return nil, fmt.Errorf("bind the control socket: %w: end those processes: %w", ErrHeld, errors.Join(strangers...))
}

var (
	// ErrTaken says that another agent of this mount namespace has the name.
	ErrTaken = errors.New("another agent runs in this container")
	// ErrHeld says that strangers have all the names.
	ErrHeld = errors.New("all of its names are held by processes that are no agent of this container")
)

// bind binds one name. The error is a *holder where a stranger has it, as seen
// already or now.
func bind(name string, seen *holder) (net.Listener, error) {
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		l, err := net.Listen("unix", name)
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		h, known := seen, seen != nil
		if !known {
			h, known = holderOf(name)
		}
		switch {
		case known && h.isTrusted():
			return nil, ErrTaken
		case known || time.Since(began) > maxUnknown:
			return nil, h
		}
	}
}

// Claim binds the control socket once whoever has it lets it go, or returns nil
// at the end of ctx. Two generations on a plain server share a mount
// namespace: the one that stays gets the name when the other has ended.
func Claim(ctx context.Context, log *slog.Logger) (*Listener, error) {
	tick := time.NewTicker(claimPeriod)
	defer tick.Stop()
	for said := false; ; said = true {
		l, err := Listen()
		switch {
		case errors.Is(err, ErrTaken) && !said:
			log.Warn("commands reach the other agent of this mount namespace, until it has ended: run each generation in one of its own")
		case errors.Is(err, ErrHeld) && !said:
			log.Warn("no command reaches this agent", "err", err)
		case !errors.Is(err, ErrTaken) && !errors.Is(err, ErrHeld):
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-tick.C:
		}
	}
}

// Listener hands out only connections of root and of the agent's own user:
// an abstract socket has no file mode that could keep others out.
type Listener struct {
	net.Listener
	Strangers error // who holds the names before this one, a *holder each; nil: it is the first
}

// Accept waits for the next connection of somebody trusted.
func (l *Listener) Accept() (net.Conn, error) {
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

// Serve serves the agent's own endpoints to commands of its container
// until ctx ends.
func Serve(ctx context.Context, l net.Listener, handler http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		bounded, cancel := context.WithTimeout(context.Background(), closeTimeout)
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
