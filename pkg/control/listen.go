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
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/internal/unixsock"
)

const (
	// headerTimeout bounds how long a local client may take to send its
	// request line and headers, which fit into one write.
	headerTimeout = 5 * time.Second
	// closeTimeout bounds how long requests in flight may take when the agent ends.
	closeTimeout = time.Second
	// claimPeriod is how often a generation tries to bind the control socket while
	// another one in its mount namespace has it.
	claimPeriod = 500 * time.Millisecond
	// maxUnknown is how long the owner of a name may stay unknown: another agent may have
	// bound it without listening yet, or may not accept for the moment.
	maxUnknown = time.Second
	// lookPeriod is the time between two attempts to find that owner.
	lookPeriod = 20 * time.Millisecond
)

var (
	// ErrTaken says that another agent of this mount namespace has the name.
	ErrTaken = errors.New("another agent runs in this container")
	// ErrHeld says that strangers have all the names.
	ErrHeld = errors.New("all of its names are held by processes that are no agent of this container")
)

// Listen binds the control socket of this container's agent to the first of its names
// that no process of another user holds. The caller closes it.
func Listen() (*Listener, error) {
	names, err := ownSocketNames()
	if err != nil {
		return nil, err
	}
	seen := map[string]*owner{}
	for _, name := range names { // first, since another agent may have a later name
		h, known := ownerOf(name)
		if known && h.isTrusted() {
			return nil, fmt.Errorf("bind the control socket %s: %w", name, ErrTaken)
		}
		if known { // do not connect again: each attempt fills the queue of an owner that does not accept
			seen[name] = h
		}
	}
	var strangers []error
	for _, name := range names {
		l, err := bind(name, seen[name])
		if stranger := (*owner)(nil); errors.As(err, &stranger) {
			strangers = append(strangers, err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("bind the control socket %s: %w", name, err)
		}
		return &Listener{Listener: l, strangers: errors.Join(strangers...)}, nil
	}
	return nil, fmt.Errorf("bind the control socket: %w: end those processes: %w", ErrHeld, errors.Join(strangers...))
}

// bind binds one name. The error is an *owner if a stranger has it: seen, if it is known
// already.
func bind(name string, seen *owner) (net.Listener, error) {
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		l, err := net.Listen("unix", name)
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		h, known := seen, seen != nil
		if !known {
			h, known = ownerOf(name)
		}
		switch {
		case known && h.isTrusted():
			return nil, ErrTaken
		case known || time.Since(began) > maxUnknown:
			return nil, h
		}
	}
}

// Listener accepts only connections of root and of the agent's own user: an abstract
// socket has no file mode that could keep others out.
type Listener struct {
	net.Listener
	strangers error // an *owner for each name before this one; nil if this is the first
}

// Accept returns the next connection of a trusted user.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := unixsock.Peer(c)
		if err == nil && unixsock.IsRootOrSelf(cred) {
			return c, nil
		}
		c.Close()
	}
}

// Serve serves the agent's endpoints to the commands of its container until ctx ends, and
// closes l. If l is nil, because Listen failed, it binds as soon as a name is free.
func Serve(ctx context.Context, l *Listener, handler http.Handler, log *slog.Logger) error {
	if l == nil {
		var err error
		if l, err = claim(ctx, log); l == nil {
			return err
		}
	}
	if l.strangers != nil {
		log.Warn("a name of the control socket is held by a process that is no agent of this container: end that process", "err", l.strangers, "used", l.Addr())
	}
	srv := &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return ctx },
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
	if stop() { // it ended before ctx did
		return fmt.Errorf("serve the control socket: %w", err)
	}
	<-stopped
	return nil
}

// claim binds the control socket as soon as a name is free, or returns nil when ctx ends.
// Two generations on a server without containers share a mount namespace: the one that
// stays gets the name when the other has ended.
func claim(ctx context.Context, log *slog.Logger) (*Listener, error) {
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
