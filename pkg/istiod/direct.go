package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"understudy.mesh/internal/grpcsock"
)

const (
	// maxClients bounds the streams of clients other than Envoy: each is a stream of istiod's.
	maxClients = 64
	// maxClientRequest bounds one request of theirs, as Envoy's is bounded.
	maxClientRequest = 16 << 20
)

// Direct gives each stream of an xDS client other than Envoy, such as a proxyless gRPC application, a stream to istiod of its own:
// what comes on one goes on the other, and the end of one is the end of the other. No stream ends for another's sake. It is made by
// NewDirect.
type Direct struct {
	dial Dial
	log  *slog.Logger
	sock *grpcsock.Server

	mu    sync.Mutex
	shown clients
}

// clients is what there is of xDS clients other than Envoy.
type clients struct {
	Open    int    `json:"open"`            // streams
	Total   int    `json:"total"`           // of them, with those that have ended
	Refused int    `json:"refused"`         // because there were too many
	Error   string `json:"error,omitempty"` // that a stream to istiod has ended with last
}

// NewDirect returns one for l, a Unix listener whose file mode (0600) says who may connect. It starts nothing; Run owns l from
// then on.
func NewDirect(l net.Listener, dial Dial, log *slog.Logger) *Direct {
	d := &Direct{dial: dial, log: log, sock: grpcsock.New(l, "xDS clients", grpcsock.Limits{Request: maxClientRequest, Streams: maxClients})}
	service := discoveryv3.AggregatedDiscoveryService_ServiceDesc
	service.HandlerType = (*any)(nil)
	service.Streams = nil
	for _, s := range discoveryv3.AggregatedDiscoveryService_ServiceDesc.Streams { // of whole states, and of increments
		s.Handler = d.serve
		service.Streams = append(service.Streams, s)
	}
	d.sock.RegisterService(&service, d)
	return d
}

// Run serves until ctx ends, and returns once every stream is closed and every goroutine gone: nil when ctx was cancelled,
// else why it could not serve. It closes the listener.
func (d *Direct) Run(ctx context.Context) error { return d.sock.Run(ctx) }

// End closes every stream in good order (gRPC status OK), those too that are opened afterwards.
func (d *Direct) End() { d.sock.End() }

// clients is what there is now; a nil Direct has none.
func (d *Direct) clients() clients {
	if d == nil {
		return clients{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shown
}

// enter counts a stream that begins, unless there are too many.
func (d *Direct) enter() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shown.Open >= maxClients {
		d.shown.Refused++
		return grpcstatus.Errorf(codes.ResourceExhausted, "%d further xDS clients have a stream to istiod of their own already, which is the most", maxClients)
	}
	d.shown.Open++
	d.shown.Total++
	return nil
}

func (d *Direct) leave(err error) {
	d.mu.Lock()
	d.shown.Open--
	if err != nil {
		d.shown.Error = err.Error()
	}
	d.mu.Unlock()
	if err != nil {
		d.log.Warn("the stream of a further xDS client has ended", "err", err)
	}
}

// errEnding ends the streams of an agent that ends.
var errEnding = errors.New("the agent ends")

// serve serves one stream; gRPC calls it.
func (d *Direct) serve(_ any, client grpc.ServerStream) (err error) {
	if err := d.enter(); err != nil {
		return err
	}
	defer func() { d.leave(err) }()
	method, _ := grpc.MethodFromServerStream(client)
	c, err := begin(client.Context(), &d.dial, d.log, func(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
		return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(grpcsock.Codec()))
	})
	if err != nil {
		return grpcstatus.Errorf(codes.Unavailable, "istiod at %s: %v", d.dial.Address, err)
	}
	defer c.close(nil)
	d.sock.Go(func() {
		select {
		case <-d.sock.Ending():
			c.cancel(errEnding)
		case <-c.ctx.Done():
		}
	})
	d.sock.Go(func() {
		if errors.Is(pass(client, c.stream), io.EOF) {
			_ = c.stream.CloseSend() // what is on its way to the client still comes
		}
		// Any other end is the client's context's, or istiod's, which is read below.
	})
	err = pass(c.stream, client)
	switch {
	case errors.Is(err, io.EOF), errors.Is(context.Cause(c.ctx), errEnding), client.Context().Err() != nil:
		return nil
	}
	return fmt.Errorf("istiod at %s: %w", d.dial.Address, err)
}

// messages is either side of a stream.
type messages interface {
	RecvMsg(m any) error
	SendMsg(m any) error
}

// pass passes on messages, one at a time, until one side does not go on: io.EOF is the end of what from says. A side that does not
// read is waited for, and so the other one by it.
func pass(from, to messages) error {
	for {
		var f grpcsock.Frame
		if err := from.RecvMsg(&f); err != nil {
			return err
		}
		if err := to.SendMsg(&f); err != nil {
			return err
		}
	}
}
