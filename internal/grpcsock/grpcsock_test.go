package grpcsock

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is one for what ought to take less than a second.
const deadline = 20 * time.Second

// echo answers each request with its names as the version.
type echo struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	sock *Server
}

func (e *echo) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	requests := Receive(e.sock, stream)
	for {
		select {
		case req, open := <-requests:
			if !open {
				return nil
			}
			if err := stream.Send(&discoveryv3.DiscoveryResponse{VersionInfo: strings.Join(req.GetResourceNames(), " ")}); err != nil {
				return err
			}
		case <-e.sock.Ending():
			return nil
		}
	}
}

// serve runs a server, and returns it with what ends it and gives how Run returned.
func serve(t *testing.T, limits Limits) (s *Server, l net.Listener, end func() error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s = New(l, "echoes", limits)
	secretv3.RegisterSecretDiscoveryServiceServer(s, &echo{sock: s})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return s, l, func() error { cancel(); return <-ended }
}

func open(t *testing.T, l net.Listener) secretv3.SecretDiscoveryService_StreamSecretsClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	stream, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestStreams: requests come in order; End closes a stream in good order, and Run returns when all is gone.
func TestStreams(t *testing.T) {
	s, l, end := serve(t, Limits{Request: 1 << 10, Streams: 4})
	stream := open(t, l)
	for _, name := range []string{"a", "b"} {
		if err := stream.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{name}}); err != nil {
			t.Fatal(err)
		}
		if resp, err := stream.Recv(); err != nil || resp.GetVersionInfo() != name {
			t.Fatalf("%v, %v; want the answer to %s", resp, err, name)
		}
	}
	s.End()
	s.End()
	if _, err := stream.Recv(); err != io.EOF { // as a client sees the gRPC status OK
		t.Errorf("the stream ends with %v, want it closed in good order", err)
	}
	if err := end(); err != nil {
		t.Errorf("Run returns %v at the end of its context", err)
	}
}

// TestLimit: a request that is too large ends its stream, and no other.
func TestLimit(t *testing.T) {
	_, l, end := serve(t, Limits{Request: 1 << 10, Streams: 4})
	large, small := open(t, l), open(t, l)
	if err := large.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{strings.Repeat("x", 2<<10)}}); err != nil {
		t.Fatal(err)
	}
	if resp, err := large.Recv(); err == nil {
		t.Errorf("a request beyond the limit is answered by %v", resp)
	}
	if err := small.Send(&discoveryv3.DiscoveryRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := small.Recv(); err != nil {
		t.Errorf("another stream: %v", err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestCut: the end of Run's context cuts a stream that is open; a socket that breaks is an error with its name.
func TestCut(t *testing.T) {
	_, l, end := serve(t, Limits{Request: 1 << 10, Streams: 4})
	stream := open(t, l)
	if err := stream.Send(&discoveryv3.DiscoveryRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v", err)
	}

	broken, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	broken.Close()
	err = New(broken, "echoes", Limits{}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "serve echoes on "+broken.Addr().String()) {
		t.Errorf("a socket that is closed: %v", err)
	}
}

// TestMarshal gives the bytes that protobuf's own marshaller gives.
func TestMarshal(t *testing.T) {
	m := &discoveryv3.DiscoveryResponse{VersionInfo: "1", Nonce: "2", TypeUrl: "t"}
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Marshal(m); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
