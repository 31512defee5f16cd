package istiod

import (
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// wholes is the next stream of whole states.
func (w *wholes) next() *wholeFake {
	w.t.Helper()
	select {
	case s := <-w.streams:
		return s
	case <-time.After(deadline):
		w.t.Fatal("no stream was opened")
	}
	return nil
}

// asked wants the next request to be "Cluster node version nonce names".
func (s *wholeFake) asked(t *testing.T, want string) {
	t.Helper()
	req, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	words := []string{kind(req.GetTypeUrl())}
	if req.GetNode() != nil {
		words = append(words, "node")
	}
	if req.GetErrorDetail() != nil {
		words = append(words, "nack")
	}
	words = append(words, "v:"+req.GetVersionInfo(), "n:"+req.GetResponseNonce())
	if got := strings.Join(append(words, req.GetResourceNames()...), " "); got != want {
		t.Fatalf("istiod hears %q, want %q", got, want)
	}
}

func (s *wholeFake) give(t *testing.T, url, version string, bodies ...[]byte) {
	t.Helper()
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: url, VersionInfo: version, Nonce: "n" + version}
	for _, body := range bodies {
		resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: url, Value: body})
	}
	if err := s.Send(resp); err != nil {
		t.Fatal(err)
	}
}

// clusterBody is a resource of any of Envoy's types, with something besides its name.
func clusterBody(t *testing.T, name, more string) []byte {
	t.Helper()
	b, err := proto.Marshal(&clusterv3.Cluster{Name: name, AltStatName: more})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWholeStates: istiod is asked for whole states, as its protocol wants it, and Envoy, the names and a new stream are served as by
// increments.
func TestWholeStates(t *testing.T) {
	w := startWholes(t)
	a := newAgent(t, w.fake, func(i *Istiod) { i.c.Dial.WholeStates = true })
	e := a.envoy()
	e.asks(clusterType)
	s := w.next()
	s.asked(t, "Cluster node v: n:")
	s.give(t, clusterType, "1", clusterBody(t, "a", ""), clusterBody(t, "b", ""))
	e.gets("Cluster +a +b", "")
	s.asked(t, "Cluster v:1 n:n1")
	e.asks(endpointType, "a", "b")
	s.asked(t, "ClusterLoadAssignment v: n: a b")
	s.give(t, endpointType, "2", clusterBody(t, "a", ""), clusterBody(t, "b", ""))
	e.gets("ClusterLoadAssignment +a +b", "")
	s.asked(t, "ClusterLoadAssignment v:2 n:n2 a b")
	e.asks(listenerType)
	s.asked(t, "Listener v: n:")
	s.asked(t, "NameTable v: n:")
	s.give(t, listenerType, "3", clusterBody(t, "virtualOutbound", ""))
	e.gets("Listener +virtualOutbound", "")
	s.asked(t, "Listener v:3 n:n3")
	s.give(t, namesType, "4", nameTable("", "svc.default.svc.cluster.local=10.0.0.1").GetResources()[0].GetResource().GetValue())
	s.asked(t, "NameTable v:4 n:n4")
	a.pending("ready")

	s.give(t, clusterType, "5", clusterBody(t, "b", "new"), clusterBody(t, "c", ""))
	e.gets("Cluster +b +c -a", "no good")
	s.asked(t, "Cluster nack v:1 n:n5")
	e.say(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: endpointType, ResourceNamesSubscribe: []string{"c"}, ResourceNamesUnsubscribe: []string{"a"}})
	s.asked(t, "ClusterLoadAssignment v:2 n:n2 b c")

	s.end <- nil
	s = w.next()
	s.asked(t, "Cluster node v: n:")
	s.asked(t, "ClusterLoadAssignment v: n: b c")
	s.asked(t, "Listener v: n:")
	s.asked(t, "NameTable v: n:")
	s.give(t, clusterType, "6", clusterBody(t, "b", "")) // which Envoy has
	e.gets("Cluster +b -a", "")
	s.asked(t, "Cluster v:6 n:n6")
}

// TestWholeStatesGarbage: what is no resource is refused whole, and Envoy gets nothing of it.
func TestWholeStatesGarbage(t *testing.T) {
	w := startWholes(t)
	a := newAgent(t, w.fake, func(i *Istiod) { i.c.Dial.WholeStates = true })
	e := a.envoy()
	e.asks(clusterType)
	s := w.next()
	s.asked(t, "Cluster node v: n:")
	s.give(t, clusterType, "0", clusterBody(t, "a", ""), clusterBody(t, "c", ""))
	e.gets("Cluster +a +c", "")
	s.asked(t, "Cluster v:0 n:n0")
	s.give(t, clusterType, "1", clusterBody(t, "a", ""), slices.Concat(clusterBody(t, "b", ""), []byte{0xff}))
	s.asked(t, "Cluster nack v:0 n:n1")
	s.give(t, clusterType, "2", clusterBody(t, "a", ""))
	e.gets("Cluster +a -c", "")
	s.asked(t, "Cluster v:2 n:n2")
}
