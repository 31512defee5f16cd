package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// patience is a deadline for what ought to happen at once, and moment is how long a
// test looks on before it says that nothing happens.
const (
	patience = 20 * time.Second
	moment   = 50 * time.Millisecond
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startServer runs a server on a socket of its own until the test ends.
func startServer(t *testing.T, first ...string) (*Server, string) {
	t.Helper()
	return serveTypes(t, order, first...)
}

func serveTypes(t *testing.T, order []string, first ...string) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xds.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(l, order, slog.New(slog.NewTextHandler(io.Discard, nil)))
	s.SendFirst(first...)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s, path
}

// client is an Envoy that does nothing of its own accord.
type client struct {
	t         *testing.T
	stream    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	responses chan *discoveryv3.DeltaDiscoveryResponse // closed with the stream
	ended     error                                    // why it is closed
	close     func()
}

func connect(t *testing.T, path string) *client {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32))) // Envoy has no limit
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, stream: stream, responses: make(chan *discoveryv3.DeltaDiscoveryResponse)}
	go func() {
		defer close(c.responses)
		for {
			resp, err := stream.Recv()
			if err != nil {
				c.ended = err
				return
			}
			select {
			case c.responses <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	c.close = func() {
		cancel()
		for range c.responses { // until the reader is gone
		}
		conn.Close()
	}
	t.Cleanup(c.close)
	return c
}

func (c *client) send(req *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(req); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) subscribe(url string, names ...string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: names})
}

func (c *client) next() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	select {
	case resp, ok := <-c.responses:
		if !ok {
			c.t.Fatal("the stream has ended")
		}
		return resp
	case <-time.After(patience):
		c.t.Fatal("no response")
	}
	return nil
}

func (c *client) nothing() {
	c.t.Helper()
	select {
	case resp, ok := <-c.responses:
		c.t.Fatalf("unexpected response %v (open %v)", describe(resp), ok)
	case <-time.After(moment):
	}
}

func (c *client) ack(resp *discoveryv3.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce})
}

func (c *client) nack(resp *discoveryv3.DeltaDiscoveryResponse, message string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce, ErrorDetail: &status.Status{Code: 13, Message: message},
	})
}

// settle returns once the server has seen every request up to now: it handles those of
// a stream in their order, and answers for a type that it does not know.
func (c *client) settle(url string) {
	c.t.Helper()
	c.subscribe(url)
	c.expect(url)
}

// expect takes the next response, which must be want, and ACKs it.
func (c *client) expect(want string) *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	resp := c.next()
	if got := describe(resp); got != want {
		c.t.Fatalf("got response %q, want %q", got, want)
	}
	c.ack(resp)
	return resp
}

// describe is "Cluster +a +b -c".
func describe(resp *discoveryv3.DeltaDiscoveryResponse) string {
	words := []string{resp.GetTypeUrl()[strings.LastIndexByte(resp.GetTypeUrl(), '.')+1:]}
	for _, r := range resp.GetResources() {
		words = append(words, "+"+r.Name)
	}
	for _, name := range resp.GetRemovedResources() {
		words = append(words, "-"+name)
	}
	return strings.Join(words, " ")
}

// list makes resources of "name" or "name=body".
func list(specs ...string) []*Stored {
	var out []*Stored
	for _, spec := range specs {
		name, body, _ := strings.Cut(spec, "=")
		out = append(out, NewStored(name, []byte(body)))
	}
	return out
}

func applied(t *testing.T, s *Server, version uint64) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := s.Applied(ctx, version)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return err
}

// notApplied says what Applied is waiting for.
func notApplied(t *testing.T, s *Server, version uint64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), moment)
	defer cancel()
	err := s.Applied(ctx, version)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("version %d: got %v, want a wait", version, err)
	}
	return err.Error()
}

func start(t *testing.T, snap pair, first ...string) (*Server, *client) {
	t.Helper()
	s, path := startServer(t, first...)
	version := s.Set(snap.snapshot())
	c := connect(t, path)
	c.subscribe(clusterType)
	c.expect(describeAll("Cluster", snap.Clusters))
	c.subscribe(listenerType)
	c.expect(describeAll("Listener", snap.Listeners))
	if err := applied(t, s, version); err != nil {
		t.Fatal(err)
	}
	return s, c
}

func describeAll(kind string, resources []*Stored) string {
	var names []string
	for _, r := range resources {
		names = append(names, "+"+r.Name)
	}
	slices.Sort(names)
	return strings.Join(append([]string{kind}, names...), " ")
}

// The types of the tests, in the order of New.
const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

var order = []string{clusterType, listenerType}

// pair is a snapshot of the two.
type pair struct{ Clusters, Listeners []*Stored }

func (p pair) snapshot() Snapshot {
	return Snapshot{clusterType: p.Clusters, listenerType: p.Listeners}
}

func connected(s *Server) bool {
	is, _ := s.Connected()
	return is
}
