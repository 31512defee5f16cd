// Package grpcsock owns a gRPC server on a Unix socket, for an Envoy in the same pod: its limits, its streams, and their end.
package grpcsock

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	// keepaliveTime and keepaliveTimeout find an Envoy that is stopped; keepaliveMin is
	// how often Envoy may do the same to us. The values are Istio's.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	keepaliveMin     = 15 * time.Second
	// readBuffer is the size of gRPC's read buffer for each connection, which it allocates at 32 KiB and keeps: a
	// system call on a Unix socket is cheap, an agent's memory is multiplied by the number of pods.
	readBuffer = 4 << 10
	// writeBuffer is that of its write buffer, which goes back to a pool each time that it is empty.
	writeBuffer = 64 << 10
)

// Limits bound what a client may do.
type Limits struct {
	Request int    // bytes of one request
	Streams uint32 // of one connection
}

// Server is made by New, given its services by RegisterService, and runs once.
type Server struct {
	listener net.Listener
	grpc     *grpc.Server
	what     string
	ending   chan struct{} // closed by End
	once     sync.Once     // closes ending
	streams  sync.WaitGroup
}

// New returns a server for l, a Unix listener whose file mode (0600) says who may connect. what it serves is named in
// errors. It starts nothing; Run owns l from then on.
func New(l net.Listener, what string, limits Limits) *Server {
	return &Server{
		listener: l, what: what, ending: make(chan struct{}),
		grpc: grpc.NewServer(
			grpc.ForceServerCodecV2(Codec()),
			grpc.MaxRecvMsgSize(limits.Request),
			grpc.MaxConcurrentStreams(limits.Streams),
			grpc.ReadBufferSize(readBuffer),
			grpc.WriteBufferSize(writeBuffer),
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMin, PermitWithoutStream: true}),
			grpc.WaitForHandlers(true),
		),
	}
}

// RegisterService adds a service; gRPC's generated code calls it, before Run.
func (s *Server) RegisterService(service *grpc.ServiceDesc, implementation any) {
	s.grpc.RegisterService(service, implementation)
}

// Run serves until ctx ends, and returns once every stream is closed and every goroutine gone: nil when ctx was cancelled,
// else why it could not serve. It closes the listener.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.grpc.Stop)
	err := s.grpc.Serve(s.listener)
	stop()
	s.grpc.Stop() // waits for the handlers, also when AfterFunc called it first
	s.streams.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve %s on %s: %w", s.what, s.listener.Addr(), err)
}

// End closes every stream in good order (gRPC status OK), those too that are opened afterwards: an Envoy that
// is about to end warns of a stream that breaks off, and says nothing of one that was closed.
func (s *Server) End() { s.once.Do(func() { close(s.ending) }) }

// Ending is closed by End: a handler returns nil then.
func (s *Server) Ending() <-chan struct{} { return s.ending }

// Go runs f, which ends with its stream; Run waits for it.
func (s *Server) Go(f func()) { s.streams.Go(f) }

// Stream is the reading half of a stream, as gRPC gives it to a handler.
type Stream[Request any] interface {
	Recv() (*Request, error)
	Context() context.Context
}

// Receive gives the requests of a stream; the channel is closed when the stream has ended.
func Receive[Request any](s *Server, stream Stream[Request]) <-chan *Request {
	requests := make(chan *Request)
	s.Go(func() {
		defer close(requests)
		for {
			req, err := stream.Recv() // fails, too, once the handler has returned
			if err != nil {
				return
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				return
			}
		}
	})
	return requests
}
