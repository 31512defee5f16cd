package istiod

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is one for what ought to take less than a second, and moment is how long a test looks on before it says that
// nothing happens.
const (
	deadline = 30 * time.Second
	moment   = 100 * time.Millisecond
)

// fake is an istiod that does nothing of its own accord.
type fake struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	addr    string
	options []grpc.ServerOption
	server  *grpc.Server
	served  discoveryv3.AggregatedDiscoveryServiceServer // f itself, unless a test has another one
	streams chan *fakeStream
	refuse  func() error // what a stream is answered with; nil: it is served
	mu      sync.Mutex
}

// fakeStream is one stream of an agent's, as the test plays it.
type fakeStream struct {
	t        *testing.T
	conn     discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	headers  metadata.MD
	requests chan *discoveryv3.DeltaDiscoveryRequest
	end      chan error
	gone     chan struct{}
	nonces   int
}

func startFake(t *testing.T, options ...grpc.ServerOption) *fake {
	t.Helper()
	f := &fake{t: t, addr: "127.0.0.1:0", options: options, streams: make(chan *fakeStream, 16)}
	f.served = f
	f.start()
	t.Cleanup(f.stop)
	return f
}

// start listens, at the address of before.
func (f *fake) start() {
	f.t.Helper()
	var l net.Listener
	var err error
	for range 100 {
		if l, err = net.Listen("tcp", f.addr); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond) // somebody has the port for a moment
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = l.Addr().String()
	f.server = grpc.NewServer(f.options...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(f.server, f.served)
	go func(s *grpc.Server) { _ = s.Serve(l) }(f.server)
}

func (f *fake) stop() { f.server.Stop() }

func (f *fake) DeltaAggregatedResources(conn discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	f.mu.Lock()
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		if err := refuse(); err != nil {
			return err
		}
	}
	headers, _ := metadata.FromIncomingContext(conn.Context())
	s := &fakeStream{t: f.t, conn: conn, headers: headers, requests: make(chan *discoveryv3.DeltaDiscoveryRequest, 64), end: make(chan error, 1), gone: make(chan struct{})}
	defer close(s.gone)
	go func() {
		for {
			req, err := conn.Recv()
			if err != nil {
				close(s.requests)
				return
			}
			s.requests <- req
		}
	}()
	f.streams <- s
	select {
	case err := <-s.end:
		return err
	case <-conn.Context().Done():
		return nil
	}
}

// stream is the next one that an agent opens.
func (f *fake) stream() *fakeStream {
	f.t.Helper()
	select {
	case s := <-f.streams:
		return s
	case <-time.After(deadline):
		f.t.Fatal("no stream was opened")
	}
	return nil
}

// next is the agent's next request.
func (s *fakeStream) next() *discoveryv3.DeltaDiscoveryRequest {
	s.t.Helper()
	select {
	case req, open := <-s.requests:
		if !open {
			s.t.Fatal("the agent ended the stream")
		}
		return req
	case <-time.After(deadline):
		s.t.Fatal("no request")
	}
	return nil
}

// asked wants the next requests to be these: "Cluster node +a held:b", "Cluster ack n1", "Cluster nack n1".
func (s *fakeStream) asked(want ...string) {
	s.t.Helper()
	for _, w := range want {
		if got := request(s.next()); got != w {
			s.t.Fatalf("the agent says %q, want %q", got, w)
		}
	}
}

func (s *fakeStream) quiet() {
	s.t.Helper()
	select {
	case req := <-s.requests:
		s.t.Fatalf("the agent says %q, want nothing", request(req))
	case <-time.After(moment):
	}
}

func request(req *discoveryv3.DeltaDiscoveryRequest) string {
	words := []string{req.GetTypeUrl()[strings.LastIndexByte(req.GetTypeUrl(), '.')+1:]}
	if req.GetNode() != nil {
		words = append(words, "node")
	}
	switch {
	case req.GetErrorDetail() != nil:
		words = append(words, "nack", req.GetResponseNonce())
	case req.GetResponseNonce() != "":
		words = append(words, "ack", req.GetResponseNonce())
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		words = append(words, "+"+name)
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		words = append(words, "-"+name)
	}
	var held []string
	for name := range req.GetInitialResourceVersions() {
		held = append(held, "held:"+name)
	}
	slices.Sort(held)
	return strings.Join(append(words, held...), " ")
}

// give is a response: "name=body" is a resource, "-name" one that is gone.
func (s *fakeStream) give(url string, specs ...string) (nonce string) {
	s.t.Helper()
	s.nonces++
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Nonce: fmt.Sprint("n", s.nonces)}
	for _, spec := range specs {
		if gone, is := strings.CutPrefix(spec, "-"); is {
			resp.RemovedResources = append(resp.RemovedResources, gone)
			continue
		}
		name, body, _ := strings.Cut(spec, "=")
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: url, Value: []byte(body)}})
	}
	s.send(resp)
	return resp.Nonce
}

func (s *fakeStream) send(resp *discoveryv3.DeltaDiscoveryResponse) {
	s.t.Helper()
	if err := s.conn.Send(resp); err != nil {
		s.t.Fatal(err)
	}
}

// agent is an Istiod with what it stands between.
type agent struct {
	*Istiod
	t       *testing.T
	relay   *xds.Relay
	socket  string
	ready   *status.Readiness
	inForce chan struct{}

	mu      sync.Mutex
	warming uint64
	known   map[string]string // what DNS answers
	renewed chan struct{}     // holds a token when that has changed
	stop    func()
}

// newAgent makes one that reaches f in plain text, but for what change does to it before it runs.
func newAgent(t *testing.T, f *fake, change func(*Istiod)) *agent {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "xds.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	a := &agent{
		t: t, relay: xds.NewRelay(l, log), socket: socket, ready: &status.Readiness{}, inForce: make(chan struct{}, 64),
		known: make(map[string]string), renewed: make(chan struct{}, 1),
	}
	c := Config{
		Dial:  Dial{Address: f.addr, Plain: true, KeepaliveTime: 30 * time.Second, KeepaliveTimeout: 10 * time.Second, MaxMessage: 1 << 20, Headers: map[string]string{"ClusterID": "c1"}},
		Relay: a.relay, Vital: []string{"virtualOutbound"}, Ready: a.ready, InForce: func() { a.inForce <- struct{}{} },
		Names: a.names, Pod: Pod{Namespace: "default", Domain: "svc.cluster.local"}, VIPs: []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16")},
		Warming: func(context.Context) (uint64, uint64, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.warming, 0, nil
		},
		Log: func(string) *slog.Logger { return log },
	}
	a.Istiod = New(c)
	a.loop.backoff.random = func(n time.Duration) time.Duration { return n / 20 } // tests have no time
	if change != nil {
		change(a.Istiod)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent says %+v", a.now())
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = a.relay.Run(ctx) })
	work.Go(func() { a.Publish(ctx) })
	a.stop = sync.OnceFunc(func() { cancel(); work.Wait() })
	t.Cleanup(a.stop)
	return a
}

func (a *agent) names(set []table.Host, gone []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range gone {
		delete(a.known, name)
	}
	for _, h := range set {
		a.known[h.Name] = h.Addrs[0].String()
	}
	select {
	case a.renewed <- struct{}{}:
	default:
	}
}

// answers waits until DNS answers these, "name=address".
func (a *agent) answers(want ...string) {
	a.t.Helper()
	timeout := time.After(deadline)
	for {
		if got := a.table(); slices.Equal(got, want) {
			return
		}
		select {
		case <-a.renewed:
		case <-timeout:
			a.t.Fatalf("DNS answers %q, want %q", a.table(), want)
		}
	}
}

func (a *agent) table() (all []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, addr := range a.known {
		all = append(all, name+"="+addr)
	}
	slices.Sort(all)
	return all
}

func (a *agent) setWarming(n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.warming = n
}

// pending waits until the readiness is want, its tasks or "ready".
func (a *agent) pending(want string) {
	a.t.Helper()
	got := ""
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		ready, tasks := a.ready.Check()
		var lines []string
		for _, p := range tasks {
			lines = append(lines, p.String())
		}
		if got = strings.Join(lines, "\n"); ready && want == "ready" || want != "ready" && strings.Contains(got, want) {
			return
		}
	}
	a.t.Fatalf("readiness says %q, want %q", got, want)
}

// envoy is one that does nothing of its own accord.
type envoy struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	close  func()
}

func (a *agent) envoy() *envoy {
	a.t.Helper()
	conn, err := grpc.NewClient("unix://"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	e := &envoy{t: a.t, stream: stream, close: func() { cancel(); conn.Close() }}
	a.t.Cleanup(e.close)
	return e
}

func (e *envoy) asks(url string, names ...string) {
	e.t.Helper()
	e.say(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: names, Node: &corev3.Node{Id: "sidecar~1.1.1.1~app.default~x"}})
}

func (e *envoy) say(req *discoveryv3.DeltaDiscoveryRequest) {
	e.t.Helper()
	if err := e.stream.Send(req); err != nil {
		e.t.Fatal(err)
	}
}

// gets takes the next response, which must be "Cluster +a -b", and answers for it; refusal "" is an ACK.
func (e *envoy) gets(want, refusal string) {
	e.t.Helper()
	resp, err := e.stream.Recv()
	if err != nil {
		e.t.Fatal(err)
	}
	words := []string{resp.GetTypeUrl()[strings.LastIndexByte(resp.GetTypeUrl(), '.')+1:]}
	for _, r := range resp.GetResources() {
		words = append(words, "+"+r.Name)
	}
	for _, name := range resp.GetRemovedResources() {
		words = append(words, "-"+name)
	}
	if got := strings.Join(words, " "); got != want {
		e.t.Fatalf("Envoy gets %q, want %q", got, want)
	}
	answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if refusal != "" {
		answer.ErrorDetail = &rpcstatus.Status{Code: 13, Message: refusal}
	}
	e.say(answer)
}
