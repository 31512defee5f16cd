package e2e_test

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/tests/catest"
	"understudy.mesh/tests/lab"
)

// istiodAddress is where the stand-in for istiod is, in plain text.
const istiodAddress = lab.OutIP + ":15010"

const namesType = "type.googleapis.com/istio.networking.nds.v1.NameTable"

// istiod is a stand-in that gives every stream what the files of a pod say.
type istiod struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t         *testing.T
	out       *lab.Namespace
	resources map[string][]*discoveryv3.Resource // by type URL
	ca        *catest.CA                         // which it is as well

	mu      sync.Mutex
	server  *grpc.Server // nil: it is away
	open    int          // streams
	total   int          // of them, with those that have ended
	most    int          // of them at once
	last    []string     // the types of the responses to the newest stream
	refusal error        // what a new stream is answered with
	opened  func()       // is called for a new stream

	// For faults: see istiod_faults_test.go.
	pod      *slotPod
	tolerant bool           // of what Envoy refuses
	mute     bool           // new streams get no answer
	newest   *istiodStream  // nil: none is of use
	pushed   int            // responses that nobody asked for
	answers  map[string]int // by nonce
}

// istiodStream is one that may be pushed on, and ended.
type istiodStream struct {
	conn    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	sending sync.Mutex
	end     chan error
}

// newIstiodPod makes a slotPod under a stand-in for istiod; nothing runs in the slots.
func newIstiodPod(t *testing.T, env ...string) (*slotPod, *istiod) {
	t.Helper()
	p := newSlotPod(t, lab.SlotsOptions{
		Command: []string{"proxy", "sidecar", "--domain", "default.svc.cluster.local"},
		Env: append(env, "PROXY_CONFIG={discoveryAddress: '"+istiodAddress+"', controlPlaneAuthPolicy: NONE, concurrency: 2, "+
			fmt.Sprintf("terminationDrainDuration: %s}", lab.TerminationDrain)),
	})
	i := &istiod{t: t, out: p.Out, resources: resources(t, p.slots.HostConfig+"/mesh"), ca: catest.New(t, "root"), opened: func() {}, answers: make(map[string]int)}
	i.start()
	t.Cleanup(i.stop)
	return p, i
}

// resources are what the files of a directory say, as istiod would give it: with a VIP for each host.
func resources(t *testing.T, dir string) map[string][]*discoveryv3.Resource {
	t.Helper()
	o := mesh.Options{
		Namespace: "default", IPv4: true, InboundPort: 15006, OutboundPort: 15001, ReservedPorts: []uint16{15000, 15001, 15006, 15020, 15021, 15053, 15090},
		AutoAllocate: true, VIPRanges: []netip.Prefix{iptables.VIPRangeV4}, ConnectTimeout: 10 * time.Second,
	}
	source, err := mesh.NewSource(dir, o, slog.New(slog.DiscardHandler))
	must(t, err)
	registry, err := source.Load()
	must(t, err)
	vips := make(map[string][]netip.Addr)
	next := iptables.VIPRangeV4.Addr().Next()
	for _, host := range registry.AutoHosts() {
		vips[host] = []netip.Addr{next}
		next = next.Next()
	}
	out, err := build.New(o).Build(registry, vips, nil)
	must(t, err)
	all := map[string][]*discoveryv3.Resource{namesType: {{Resource: &anypb.Any{TypeUrl: namesType, Value: nameTable(out.Hosts)}}}}
	for url, list := range out.Resources {
		for _, r := range list {
			body, err := r.Body()
			must(t, err)
			all[url] = append(all[url], &discoveryv3.Resource{Name: r.Name, Resource: &anypb.Any{TypeUrl: url, Value: body}})
		}
	}
	return all
}

// nameTable is a NameTable of Istio's: of each host a name, and its addresses.
func nameTable(hosts []table.Host) (b []byte) {
	field := func(b []byte, number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
	}
	for _, h := range hosts {
		var info []byte
		for _, a := range h.Addrs {
			info = field(info, 1, []byte(a.String()))
		}
		b = field(b, 1, field(field(nil, 1, []byte(h.Name)), 2, info))
	}
	return b
}

func (i *istiod) start() {
	l := i.out.Listen(i.t, istiodAddress)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, i)
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, i.ca)
	i.mu.Lock()
	i.server = server
	i.mu.Unlock()
	go func() { _ = server.Serve(l) }() // it ends with stop
}

// stop ends it as a kill does.
func (i *istiod) stop() {
	i.mu.Lock()
	server := i.server
	i.server = nil
	i.mu.Unlock()
	if server != nil {
		server.Stop()
	}
}

// set changes what happens to new streams.
func (i *istiod) set(refusal error, opened func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.refusal, i.opened = refusal, opened
}

// DeltaAggregatedResources serves one agent; gRPC calls it.
func (i *istiod) DeltaAggregatedResources(conn discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	i.mu.Lock()
	refusal, opened := i.refusal, i.opened
	if refusal == nil {
		i.open++
		i.total++
		i.most = max(i.most, i.open)
		i.last = nil
	}
	i.mu.Unlock()
	if refusal != nil {
		return refusal
	}
	defer func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.open--
	}()
	opened()
	st := &istiodStream{conn: conn, end: make(chan error, 1)}
	defer i.leave(st)
	i.mu.Lock()
	i.newest, i.last = st, nil
	i.mu.Unlock()
	go func() { // it ends with the stream
		err := i.serve(st)
		select {
		case st.end <- err:
		default:
		}
	}()
	return <-st.end
}

// StreamAggregatedResources serves an agent that asks for whole states; gRPC calls it.
func (i *istiod) StreamAggregatedResources(conn discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return i.DeltaAggregatedResources(wholeStream{conn, conn})
}

// wholeStream shows a stream of whole states as one of increments, for an istiod whose first answers are all that there is.
type wholeStream struct {
	grpc.ServerStream
	conn discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (s wholeStream) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	req, err := s.conn.Recv()
	return &discoveryv3.DeltaDiscoveryRequest{TypeUrl: req.GetTypeUrl(), ResponseNonce: req.GetResponseNonce(), ErrorDetail: req.GetErrorDetail()}, err
}

func (s wholeStream) Send(resp *discoveryv3.DeltaDiscoveryResponse) error {
	whole := &discoveryv3.DiscoveryResponse{TypeUrl: resp.GetTypeUrl(), Nonce: resp.GetNonce(), VersionInfo: resp.GetNonce()}
	for _, r := range resp.GetResources() {
		whole.Resources = append(whole.Resources, r.GetResource())
	}
	return s.conn.Send(whole)
}

func (i *istiod) leave(st *istiodStream) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.newest == st {
		i.newest = nil
	}
}

// serve answers requests until the agent has gone.
func (i *istiod) serve(st *istiodStream) error {
	i.mu.Lock()
	mute, number := i.mute, i.total
	i.mu.Unlock()
	for n := 1; ; n++ {
		req, err := st.conn.Recv()
		if err != nil {
			return nil // it has gone
		}
		if req.GetErrorDetail() != nil && !i.tolerant {
			i.t.Errorf("Envoy refuses what istiod says of %s: %s", req.GetTypeUrl(), req.GetErrorDetail().GetMessage())
		}
		i.mu.Lock()
		if req.GetResponseNonce() != "" {
			i.answers[req.GetResponseNonce()]++
		} else if i.newest == st { // what was on its way on an older one is not of this one
			i.last = append(i.last, req.GetTypeUrl())
		}
		i.mu.Unlock()
		if mute || req.GetResponseNonce() != "" {
			continue
		}
		resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: fmt.Sprint(number, " ", n), Resources: i.resources[req.GetTypeUrl()]}
		st.sending.Lock()
		err = st.conn.Send(resp)
		st.sending.Unlock()
		if err != nil {
			return err
		}
	}
}

// mustHaveOneStream demands that one stream is left, that there never were more than two, and that each type was sent once on the
// newest one.
func (i *istiod) mustHaveOneStream() {
	i.t.Helper()
	lab.Eventually(i.t, settleWithin, "istiod has one stream", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.open != 1 || !slices.Contains(i.last, namesType) { // that is asked for last
			return fmt.Errorf("it has %d, and was asked for %q on the newest one", i.open, i.last)
		}
		return nil
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.most > 2 {
		i.t.Errorf("istiod had %d streams of one pod at once", i.most)
	}
	types := slices.Clone(i.last)
	slices.Sort(types)
	if len(slices.Compact(types)) != len(i.last) {
		i.t.Errorf("istiod was asked for %q on the newest stream, want each once", i.last)
	}
}
