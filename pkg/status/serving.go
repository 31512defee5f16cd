package status

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// readHeaderTimeout is how long a client may take to send its request
	// line and headers; every honest one is in this pod or its kubelet.
	readHeaderTimeout = 5 * time.Second
	// idleTimeout keeps the connection of a Prometheus that scrapes every
	// 15 s or 60 s, and not much longer.
	idleTimeout = 90 * time.Second
	// maxHeaderBytes is ample for a probe's or a scrape's headers, and an
	// eighth of the default.
	maxHeaderBytes = 128 << 10
)

// Listeners are the sockets of one [Serving], by what answers on them.
type Listeners struct {
	Status []net.Listener // the status port (15020)
	Probe  []net.Listener // the kubelet's readiness port (15021); none where that is the status port
	Admin  []net.Listener // Envoy's admin API (15000)
}

// Serving is a time for which a [Server] accepts connections: from
// [Server.Start] to [Serving.Release], and until [Serving.Close] to answer
// what was accepted. Its methods may be called at the same time and repeatedly.
type Serving struct {
	servers   []*http.Server
	listeners []net.Listener
	log       *slog.Logger
	requests  context.Context // of every request; cut ends them
	cut       context.CancelFunc
	failed    chan error

	release  sync.Once
	released atomic.Bool
	loops    sync.WaitGroup // that accept
	conns    sync.WaitGroup // open ones
}

// Start begins to accept connections from l, whose listeners belong to the
// [Serving] from here on; the caller's other descriptors of the same sockets
// stay the caller's, and may be served by somebody else at the same time. It
// may be called again, also before an earlier Serving has ended. Who starts it
// must call [Serving.Close].
func (s *Server) Start(l Listeners) *Serving {
	v := &Serving{log: s.log, failed: make(chan error, len(l.Status)+len(l.Probe)+len(l.Admin))}
	v.requests, v.cut = context.WithCancel(context.Background())
	if s.cfg.ProxyProtocol && len(l.Probe) > 0 {
		l.Probe = behindProxies(l.Probe)
	} else if s.cfg.ProxyProtocol { // one port is both
		l.Status = behindProxies(l.Status)
	}
	v.serve(s.statusHandler(s.guard()), l.Status)
	v.serve(s.probeHandler(), l.Probe)
	v.serve(s.adminHandler(s.guard()), l.Admin)
	return v
}

// serve lets h answer on the listeners.
func (v *Serving) serve(h http.Handler, listeners []net.Listener) {
	srv := &http.Server{
		Handler:           h,
		ConnState:         v.track,
		BaseContext:       func(net.Listener) context.Context { return v.requests },
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(v.log.Handler(), slog.LevelDebug),
	}
	v.servers = append(v.servers, srv)
	v.listeners = append(v.listeners, listeners...)
	for _, l := range listeners {
		v.loops.Go(func() {
			if err := srv.Serve(l); !v.released.Load() {
				v.failed <- fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
			}
		})
	}
}

// track counts connections, and so handlers, which run on their connection's
// goroutine: http.Server.Close returns before they do. StateNew comes before
// Serve can return, so nothing is added once loops is done.
func (v *Serving) track(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		v.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		v.conns.Done()
	}
}

// Failed delivers the error of each accept loop that broke before Release; the
// others go on. It is never closed.
func (v *Serving) Failed() <-chan error { return v.failed }

// Release lets go of the listeners: once it returns, their descriptors are
// closed and no connection is taken from them any more. Nothing is done to the
// sockets themselves (close(2), no shutdown(2)), so connections that nobody has
// accepted yet wait for whoever has another descriptor. Those that were
// accepted are served on: one that waits for its first request or has one under
// way gets its answer, with "Connection: close"; idle ones are closed.
//
// This is not [http.Server.Shutdown], which drops a first request that it reads
// after it has begun.
func (v *Serving) Release() {
	v.release.Do(func() {
		v.released.Store(true)
		for _, l := range v.listeners {
			if err := l.Close(); err != nil {
				v.log.Debug("close a status listener", "error", err)
			}
		}
		for _, srv := range v.servers {
			srv.SetKeepAlivesEnabled(false)
		}
	})
}

// Close releases the listeners and waits until every connection has its
// answer. What is not done when ctx ends is cut: its request's context ends
// and its connection is closed. Close returns when no goroutine is left.
func (v *Serving) Close(ctx context.Context) {
	v.Release()
	done := make(chan struct{})
	go func() {
		v.loops.Wait()
		v.conns.Wait()
		close(done)
	}()
	select {
	case <-done:
		v.cut()
		return
	case <-ctx.Done():
	}
	v.cut()
	for _, srv := range v.servers {
		if err := srv.Close(); err != nil {
			v.log.Debug("close a status connection", "error", err)
		}
	}
	<-done
}
