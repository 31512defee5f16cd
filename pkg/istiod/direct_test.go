package istiod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

type (
	wholeServer = discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	wholeClient = discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
)

// wholes gives each stream of whole states to the test, which serves it until it answers end.
type wholes struct {
	*fake
	streams chan *wholeFake
}

type wholeFake struct {
	wholeServer
	end  chan error
	gone chan struct{}
}

func (w *wholes) StreamAggregatedResources(conn wholeServer) error {
	s := &wholeFake{conn, make(chan error, 1), make(chan struct{})}
	defer close(s.gone)
	w.streams <- s
	select {
	case err := <-s.end:
		return err
	case <-conn.Context().Done():
		return nil
	}
}

// startWholes is a fake that knows streams of both kinds.
func startWholes(t *testing.T) *wholes {
	t.Helper()
	f := startFake(t)
	f.stop()
	w := &wholes{f, make(chan *wholeFake, 2*maxClients)}
	f.served = w
	f.start()
	return w
}

// startDirect returns where a Direct serves that reaches an istiod in plain text.
func startDirect(t *testing.T, addr string) (d *Direct, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "apps.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d = NewDirect(l, Dial{Address: addr, Plain: true, KeepaliveTime: time.Hour, MaxMessage: 1 << 20, Headers: map[string]string{"ClusterID": "c1"}}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d, socket
}

// dialSocket connects to a socket until the test ends.
func dialSocket(t *testing.T, socket string) discoveryv3.AggregatedDiscoveryServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
}

// openWhole opens a stream and says hello on it, which istiod gets on a stream of the client's own.
func openWhole(t *testing.T, w *wholes, socket, id string) (wholeClient, *wholeFake, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	client, err := dialSocket(t, socket).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hello := &discoveryv3.DiscoveryRequest{TypeUrl: listenerType, Node: &corev3.Node{Id: id}, ResourceNames: []string{id}}
	if err := client.Send(hello); err != nil {
		t.Fatal(err)
	}
	var s *wholeFake
	select {
	case s = <-w.streams:
	case <-time.After(deadline):
		t.Fatal("istiod got no stream")
	}
	if got, err := s.Recv(); err != nil || !proto.Equal(got, hello) {
		t.Fatalf("istiod hears %v, %v; want %v", got, err, hello)
	}
	return client, s, cancel
}

// talk has istiod say something, the client answer, and both hear the same bytes.
func talk(t *testing.T, client wholeClient, s *wholeFake, text string) {
	t.Helper()
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: listenerType, Nonce: text, Resources: []*anypb.Any{{TypeUrl: listenerType, Value: []byte(text)}}}
	resp.ProtoReflect().SetUnknown([]byte{0xfa, 0x7f, 1, 'x'}) // a field that this agent knows nothing of
	if err := s.Send(resp); err != nil {
		t.Fatal(err)
	}
	got, err := client.Recv()
	if err != nil || !proto.Equal(got, resp) || !bytes.Equal(got.ProtoReflect().GetUnknown(), resp.ProtoReflect().GetUnknown()) {
		t.Fatalf("the client gets %v, %v; want %v", got, err, resp)
	}
	ack := &discoveryv3.DiscoveryRequest{TypeUrl: listenerType, ResponseNonce: text}
	if err := client.Send(ack); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Recv(); err != nil || !proto.Equal(got, ack) {
		t.Fatalf("istiod hears %v, %v; want %v", got, err, ack)
	}
}

// TestDirectClientsAndEnvoy: five clients beside Envoy have a stream to istiod each, and none ends another's, whoever comes and goes.
func TestDirectClientsAndEnvoy(t *testing.T) {
	w := startWholes(t)
	a := newAgent(t, w.fake, nil)
	e := a.envoy()
	e.asks(clusterType)
	own := w.stream()
	own.asked("Cluster node")
	d, socket := startDirect(t, w.addr)

	const clients = 5
	var sides [clients]wholeClient
	var streams [clients]*wholeFake
	for i := range clients {
		sides[i], streams[i], _ = openWhole(t, w, socket, fmt.Sprint("grpc", i))
	}
	if md, _ := metadata.FromIncomingContext(streams[0].Context()); len(md.Get("ClusterID")) != 1 {
		t.Errorf("istiod gets the headers %v, want those of the agent's own stream", md)
	}
	for round := range 20 {
		for i := range clients {
			talk(t, sides[i], streams[i], fmt.Sprint(round, "-", i))
		}
		_, passer, leave := openWhole(t, w, socket, "passer")
		leave()
		<-passer.gone
		own.give(clusterType, fmt.Sprint("a=", round))
		e.gets("Cluster +a", "")
		own.asked(fmt.Sprint("Cluster ack n", round+1))
	}
	if got := d.clients(); got.Total != clients+20 || got.Refused != 0 || got.Error != "" {
		t.Errorf("%+v, want %d streams without an error", got, clients+20)
	}
	a.envoy().asks(clusterType) // one that starts anew
	for i := range clients {
		talk(t, sides[i], streams[i], fmt.Sprint("last-", i))
	}
}

// TestDirectDelta: a client of increments has a stream of its own as well, which is not taken for Envoy's.
func TestDirectDelta(t *testing.T) {
	w := startWholes(t)
	_, socket := startDirect(t, w.addr)
	client, err := dialSocket(t, socket).DeltaAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, ResourceNamesSubscribe: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	s := w.stream()
	s.asked("Cluster +a")
	s.give(clusterType, "a=1")
	if resp, err := client.Recv(); err != nil || resp.GetNonce() != "n1" {
		t.Errorf("the client gets %v, %v", resp, err)
	}
}

// TestDirectEnds: the end of one side is the other's, with what was said.
func TestDirectEnds(t *testing.T) {
	w := startWholes(t)
	d, socket := startDirect(t, w.addr)

	client, s, _ := openWhole(t, w, socket, "istiod refuses")
	s.end <- grpcstatus.Error(codes.PermissionDenied, "not you")
	if _, err := client.Recv(); grpcstatus.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "not you") {
		t.Errorf("the client gets %v, want istiod's words", err)
	}
	client, s, _ = openWhole(t, w, socket, "istiod closes")
	s.end <- nil
	if _, err := client.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the client gets %v, want the end in good order", err)
	}
	client, s, _ = openWhole(t, w, socket, "client closes")
	if err := client.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("istiod gets %v, want the end in good order", err)
	}
	s.end <- nil
	client, s, _ = openWhole(t, w, socket, "too much")
	if err := s.Send(&discoveryv3.DiscoveryResponse{VersionInfo: strings.Repeat("x", 2<<20)}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Recv(); grpcstatus.Code(err) != codes.ResourceExhausted {
		t.Errorf("the client gets %v, want that there is too much", err)
	}
	client, s, _ = openWhole(t, w, socket, "agent ends")
	d.End()
	if _, err := client.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the client gets %v, want the end in good order", err)
	}
	<-s.gone
}

// TestDirectIstiodAway: a client hears that, and the next one is served when istiod is back.
func TestDirectIstiodAway(t *testing.T) {
	w := startWholes(t)
	_, socket := startDirect(t, w.addr)
	w.stop()
	client, err := dialSocket(t, socket).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Recv(); grpcstatus.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), w.addr) {
		t.Errorf("the client gets %v, want that istiod is not there", err)
	}
	w.start()
	client, s, _ := openWhole(t, w, socket, "later")
	talk(t, client, s, "x")
}

// TestDirectBounds: there are so many streams at once, and the one too many takes nothing from the others.
func TestDirectBounds(t *testing.T) {
	w := startWholes(t)
	d, socket := startDirect(t, w.addr)
	var first wholeClient
	var firstStream *wholeFake
	var leave func()
	for i := range maxClients {
		client, s, cancel := openWhole(t, w, socket, fmt.Sprint(i))
		if i == 0 {
			first, firstStream = client, s
		}
		leave = cancel
	}
	client, err := dialSocket(t, socket).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Recv(); grpcstatus.Code(err) != codes.ResourceExhausted {
		t.Errorf("the client gets %v, want that there are too many", err)
	}
	talk(t, first, firstStream, "x")
	leave()
	for end := time.Now().Add(deadline); d.clients().Open >= maxClients; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stream of a client that has gone still counts")
		}
	}
	openWhole(t, w, socket, "again")
}
