package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"understudy.mesh/internal/grpcsock"
	"understudy.mesh/pkg/xds"
)

// deltaStream is a stream to istiod.
type deltaStream interface {
	Send(*discoveryv3.DeltaDiscoveryRequest) error
	Recv() (*xds.Response, error)
	Context() context.Context
}

// incrementsStream is one of increments, as it mostly is.
type incrementsStream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (s incrementsStream) Recv() (*xds.Response, error) {
	resp := new(xds.Response)
	return resp, s.RecvMsg(resp)
}

// upstream is one stream to istiod, on a connection of its own. One goroutine reads and one writes: neither of them can
// keep the other, or whoever uses the stream, from going on.
type upstream struct {
	*call[deltaStream]
	opened time.Time
	work   sync.WaitGroup

	responses chan *xds.Response
	ended     chan error // gets why it has ended, once

	mu    sync.Mutex
	queue []*discoveryv3.DeltaDiscoveryRequest
	ready chan struct{} // holds a token when the queue has something
	node  *corev3.Node  // of the first request; nil once that was sent
}

// errSilent ends a stream on which istiod says nothing.
var errSilent = errors.New("istiod takes the stream, and says nothing of clusters or listeners")

// call is one call to istiod, on a connection of its own.
type call[S any] struct {
	stream S
	ctx    context.Context // the call's
	cancel context.CancelCauseFunc
	conn   *grpc.ClientConn
}

// begin connects to istiod and has start open a stream, in connectTimeout.
func begin[S any](ctx context.Context, dial *Dial, log *slog.Logger, start func(context.Context, *grpc.ClientConn) (S, error)) (*call[S], error) {
	conn, err := dial.connect(log)
	if err != nil {
		return nil, err
	}
	c := &call[S]{conn: conn}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	late := time.AfterFunc(connectTimeout, func() { c.cancel(fmt.Errorf("no connection within %v", connectTimeout)) })
	c.stream, err = start(metadata.AppendToOutgoingContext(c.ctx, dial.headers()...), conn)
	if err == nil && !late.Stop() {
		err = context.Cause(c.ctx)
	}
	if err != nil {
		if cause := context.Cause(c.ctx); cause != nil {
			err = cause
		}
		return nil, errors.Join(err, c.close(nil))
	}
	return c, nil
}

// close ends the call because of err.
func (c *call[S]) close(err error) error {
	c.cancel(err)
	return c.conn.Close()
}

// open connects to istiod and opens a stream for node.
func open(ctx context.Context, dial *Dial, node *corev3.Node, log *slog.Logger) (*upstream, error) {
	c, err := begin(ctx, dial, log, func(ctx context.Context, conn *grpc.ClientConn) (deltaStream, error) {
		client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
		if !dial.WholeStates {
			stream, err := client.DeltaAggregatedResources(ctx, grpc.ForceCodecV2(grpcsock.Codec()))
			return incrementsStream{stream}, err
		}
		stream, err := client.StreamAggregatedResources(ctx)
		return &wholeStream{ClientStream: stream, conn: stream, types: make(map[string]*wholeType)}, err
	})
	if err != nil {
		return nil, err
	}
	u := &upstream{
		call: c, opened: time.Now(), node: node,
		responses: make(chan *xds.Response), ended: make(chan error, 1), ready: make(chan struct{}, 1),
	}
	u.work.Go(u.write)
	u.work.Go(func() {
		err := u.read()
		if cause := context.Cause(c.ctx); cause != nil {
			err = cause
		}
		u.ended <- err
		_ = c.close(nil)
	})
	return u, nil
}

// read hands on responses, one at a time, until the stream ends.
func (u *upstream) read() error {
	for {
		resp, err := u.stream.Recv()
		if errors.Is(err, io.EOF) {
			return errEnded
		}
		if err != nil {
			return err
		}
		select {
		case u.responses <- resp:
		case <-u.stream.Context().Done():
			return u.stream.Context().Err()
		}
	}
}

// errEnded is a stream that istiod closed in good order.
var errEnded = errors.New("istiod closed the stream")

// write sends what is queued until the stream ends. Why that is, read learns.
func (u *upstream) write() {
	for {
		select {
		case <-u.ready:
		case <-u.stream.Context().Done():
			return
		}
		u.mu.Lock()
		queue := u.queue
		u.queue = nil
		u.mu.Unlock()
		for _, req := range queue {
			if u.stream.Send(req) != nil {
				return
			}
		}
	}
}

// send queues a request. The first one of a stream says who the agent is.
func (u *upstream) send(req *discoveryv3.DeltaDiscoveryRequest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	req.Node, u.node = u.node, nil
	u.queue = append(u.queue, req)
	select {
	case u.ready <- struct{}{}:
	default:
	}
}

// close ends the stream because of err, which it then has ended with; nil: it was not wanted any more.
func (u *upstream) close(err error) {
	u.cancel(err)
	u.work.Wait()
}
