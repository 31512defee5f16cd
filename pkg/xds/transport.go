package xds

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"understudy.mesh/internal/grpcsock"
)

const (
	// maxRequest bounds a request of Envoy's. The largest is the first one of a new
	// stream: it has name and version of every resource, about 100 bytes each, so that
	// this is enough for 160,000. (gRPC's default, 4 MiB, is Istio's.)
	maxRequest = 16 << 20
	// maxStreams bounds the streams of one connection; Envoy opens one.
	maxStreams = 16
)

// envoyStream is a configuration stream of Envoy's, as gRPC gives it.
type envoyStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// deltaRequests is the reading half of one, or of a stream that is shown as one.
type deltaRequests = grpcsock.Stream[discoveryv3.DeltaDiscoveryRequest]

// transport is what Server and Relay have in common: gRPC on a Unix socket, and counters.
type transport struct {
	sock     *grpcsock.Server
	log      *slog.Logger
	counters counters
	first    []string // see SendFirst
}

func newTransport(l net.Listener, log *slog.Logger) *transport {
	return &transport{sock: grpcsock.New(l, "xDS", grpcsock.Limits{Request: maxRequest, Streams: maxStreams}), log: log}
}

// SendFirst has the resources of these names come before all others of their type in a
// response. Envoy keeps its listeners in the order in which it got them, and stops them in that
// order: one that hands connections on must stop before those that take them
// (ListenerManagerImpl::stopListeners). It must be called before Run.
func (t *transport) SendFirst(names ...string) { t.first = names }

// End closes every stream in good order (gRPC status OK), those too that are opened afterwards.
func (t *transport) End() { t.sock.End() }

// receive gives the requests of a stream; it is closed when the stream has ended.
func (t *transport) receive(conn deltaRequests) <-chan *discoveryv3.DeltaDiscoveryRequest {
	return grpcsock.Receive(t.sock, countedStream{conn, &t.counters})
}

// countedStream counts its requests, and its end.
type countedStream struct {
	deltaRequests
	counters *counters
}

func (s countedStream) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	req, err := s.deltaRequests.Recv()
	switch {
	case err == nil:
		s.counters.requests.Add(1)
	case errors.Is(err, io.EOF), status.Code(err) == codes.Canceled:
		s.counters.cancelled.Add(1)
	default:
		s.counters.broken.Add(1)
	}
	return req, err
}

type counters struct {
	streams, cancelled, broken, requests, responses, resources, suppressed, pushes, nacks atomic.Uint64
}

// Stats are counters since the server was made.
type Stats struct {
	// Streams were opened by Envoy, Requests came on them, and Responses went.
	Streams, Requests, Responses uint64
	// Cancelled streams were ended by Envoy, or by its end, or by the server; Broken ones by an error.
	Cancelled, Broken uint64
	// Resources were sent or removed by name.
	Resources uint64
	// Suppressed resources were not sent, because Envoy has them: a new stream of the upstream's gives everything again.
	Suppressed uint64
	// Pushes were completed: every response to it answered.
	Pushes uint64
	// NACKs are responses that Envoy refused.
	NACKs uint64
}

// Stats gives the counters.
func (t *transport) Stats() Stats {
	c := &t.counters
	return Stats{
		Streams: c.streams.Load(), Requests: c.requests.Load(), Responses: c.responses.Load(),
		Cancelled: c.cancelled.Load(), Broken: c.broken.Load(),
		Resources: c.resources.Load(), Suppressed: c.suppressed.Load(), Pushes: c.pushes.Load(), NACKs: c.nacks.Load(),
	}
}
