package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// EchoPath is where the HTTP server sends back what it gets, as it comes; ClientPath is where it says from which address
	// it is asked; PeerPath is where it says whom a proxy before it knows the client as.
	EchoPath   = "/echo"
	ClientPath = "/client"
	PeerPath   = "/peer"
	// Streams of h2-stream are many on few connections; net/http's default is 250.
	maxStreams = 10_000
	// How long a server that is to end waits for the requests that it has.
	shutdownTimeout = 5 * time.Second
)

// ServeHTTP serves HTTP/1.1, and HTTP/2 with prior knowledge, until ctx is done; requests that it
// is at work on then, it finishes; connections that it has accepted and not read from, net/http drops, so
// that a server which is to be replaced under load is not this one. Every path answers 200 with
// "server=NAME\n" as the body, but EchoPath, which is for h2-stream, ClientPath, which answers "client=ADDRESS\n", and PeerPath, which
// answers with what a proxy says of the client's certificate.
func ServeHTTP(ctx context.Context, ln net.Listener, name string) error {
	mux := http.NewServeMux()
	body := []byte("server=" + name + "\n")
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	mux.HandleFunc(EchoPath, echoHTTP)
	mux.HandleFunc(ClientPath, func(w http.ResponseWriter, r *http.Request) {
		address, _, _ := net.SplitHostPort(r.RemoteAddr) // net/http's own, and whole
		_, _ = fmt.Fprintf(w, "client=%s\n", address)
	})
	mux.HandleFunc(PeerPath, func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "peer=%s\n", r.Header.Get("X-Forwarded-Client-Cert"))
	})
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams}}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)

	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	wait, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if server.Shutdown(wait) != nil {
		_ = server.Close() // cuts streams that have not ended by now
	}
	<-served
	return nil
}

// echoHTTP answers before the request is complete, as a bidirectional gRPC method does.
func echoHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // HTTP/2 always is
	w.WriteHeader(http.StatusOK)
	_ = control.Flush()
	buffer := make([]byte, bufferSize)
	for {
		n, err := r.Body.Read(buffer)
		if _, failed := w.Write(buffer[:n]); failed != nil || control.Flush() != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // so that the client does not see a clean end
		}
	}
}

// ServeEcho sends back what comes over TCP connections, until ctx is done; then it cuts them.
func ServeEcho(ctx context.Context, ln net.Listener) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before the wait
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
		connections.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			defer c.Close()
			// Not io.Copy, which would splice(2): two pipe descriptors for each connection.
			buffer := make([]byte, bufferSize)
			for {
				n, err := c.Read(buffer)
				if _, failed := c.Write(buffer[:n]); err != nil || failed != nil {
					return
				}
			}
		})
	}
}
