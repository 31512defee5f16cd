package xds

import (
	"slices"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// wholeClient is an Envoy that asks for whole states, and does nothing of its own accord.
type wholeClient struct {
	t         *testing.T
	stream    discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	responses chan *discoveryv3.DiscoveryResponse
}

func connectWhole(t *testing.T, path string) *wholeClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &wholeClient{t, stream, make(chan *discoveryv3.DiscoveryResponse, 16)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			c.responses <- resp
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return c
}

// asks is a request for names, which answers resp unless that is nil; refusal "" is an ACK.
func (c *wholeClient) asks(url string, resp *discoveryv3.DiscoveryResponse, refusal string, names ...string) {
	c.t.Helper()
	req := &discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: names, ResponseNonce: resp.GetNonce(), VersionInfo: resp.GetVersionInfo()}
	if refusal != "" {
		req.ErrorDetail = &rpcstatus.Status{Message: refusal}
	}
	if err := c.stream.Send(req); err != nil {
		c.t.Fatal(err)
	}
}

// gets takes the next response, whose bodies must be these, in this order.
func (c *wholeClient) gets(url string, want ...string) *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	select {
	case resp := <-c.responses:
		var got []string
		for _, r := range resp.GetResources() {
			got = append(got, string(r.GetValue()))
		}
		if resp.GetTypeUrl() != url || !slices.Equal(got, want) {
			c.t.Fatalf("Envoy gets %s %q, want %s %q", kindOf(resp.GetTypeUrl()), got, kindOf(url), want)
		}
		return resp
	case <-time.After(patience):
		c.t.Fatalf("Envoy gets nothing, want %s %q", kindOf(url), want)
	}
	return nil
}

// TestWholeStates: an Envoy that asks for whole states gets all clusters with each change, without those that are gone, and of what
// it names what has changed; the upstream speaks in increments all the same.
func TestWholeStates(t *testing.T) {
	r := startRelay(t)
	e := connectWhole(t, r.path)
	e.asks(clusterType, nil, "")
	r.told("Cluster first")
	r.give(clusterType, "a=a1", "b=b1")
	resp := e.gets(clusterType, "a1", "b1")
	e.asks(clusterType, resp, "")
	r.told("Cluster ack n1")

	e.asks(endpointType, nil, "", "a", "b")
	r.told("ClusterLoadAssignment first +a +b")
	r.give(endpointType, "a=ea", "b=eb")
	resp = e.gets(endpointType, "ea", "eb")
	e.asks(endpointType, resp, "", "a", "b")
	r.told("ClusterLoadAssignment ack n2")
	r.give(endpointType, "b=eb2")
	resp = e.gets(endpointType, "eb2")
	e.asks(endpointType, resp, "", "a", "b")
	r.told("ClusterLoadAssignment ack n3")

	r.give(clusterType, "c=c1", "-a")
	resp = e.gets(clusterType, "b1", "c1")
	e.asks(clusterType, resp, "")
	r.told("Cluster ack n4")
	e.asks(endpointType, nil, "", "b", "c") // with a nonce of the past, or none
	r.told("ClusterLoadAssignment +c -a")
	r.give(endpointType, "-c")
	resp = e.gets(endpointType)
	e.asks(endpointType, resp, "", "b", "c")
	r.told("ClusterLoadAssignment ack n5")
}

// TestWholeStatesRefused: what Envoy refuses is not sent again with each change of something else, what is new beside it is taken,
// and of what it had a version it keeps that.
func TestWholeStatesRefused(t *testing.T) {
	const words = "Error adding/updating cluster(s) "
	r := startRelay(t)
	e := connectWhole(t, r.path)
	e.asks(clusterType, nil, "")
	r.told("Cluster first")
	r.give(clusterType, "a=a1", "bad=bad1", "b=b1")
	resp := e.gets(clusterType, "a1", "b1", "bad1")
	e.asks(clusterType, resp, words+"bad: no good")
	r.told("Cluster nack n1 " + words + "bad: no good")

	r.give(clusterType, "b=b2")
	resp = e.gets(clusterType, "a1", "b2")
	r.give(clusterType, "c=c1") // before Envoy has answered
	next := e.gets(clusterType, "a1", "b2", "c1")
	e.asks(clusterType, resp, words+"b: no good")
	r.told("Cluster nack n2 " + words + "b: no good")
	e.asks(clusterType, next, words+"b: no good") // which is in it only because all is
	r.told("Cluster ack n3")
	r.give(clusterType, "d=d1", "-a")
	resp = e.gets(clusterType, "b1", "c1", "d1")
	e.asks(clusterType, resp, "no message at all")
	r.told("Cluster nack n4 no message at all")
	r.give(clusterType, "f=f1")
	e.gets(clusterType, "a1", "b1", "c1", "f1")
	if got := r.Status()[clusterType]; got.Refused["bad"] == "" || got.Refused["b"] == "" || got.Refused["d"] == "" || got.Refused["c"] != "" {
		t.Errorf("refused are %q", got.Refused)
	}
}

// TestWholeStatesOrder: listeners that hand connections on come first.
func TestWholeStatesOrder(t *testing.T) {
	r := makeRelay(t, func(r *Relay) { r.SendFirst("virtualOutbound") })
	r.Begin()
	e := connectWhole(t, r.path)
	e.asks(listenerType, nil, "")
	r.told("Listener first")
	r.give(listenerType, "a=a", "virtualOutbound=v", "z=z")
	e.asks(listenerType, e.gets(listenerType, "v", "a", "z"), "")
	r.told("Listener ack n1")
	r.give(listenerType, "b=b")
	e.gets(listenerType, "v", "a", "b", "z")
}

// TestWholeStatesLater: an Envoy that starts anew gets what there is, and the upstream notices nothing.
func TestWholeStatesLater(t *testing.T) {
	r := startRelay(t)
	e := connectWhole(t, r.path)
	e.asks(clusterType, nil, "")
	r.told("Cluster first")
	r.give(clusterType, "a=a1")
	e.asks(clusterType, e.gets(clusterType, "a1"), "")
	r.told("Cluster ack n1")
	e = connectWhole(t, r.path)
	e.asks(clusterType, &discoveryv3.DiscoveryResponse{VersionInfo: "7"}, "")
	e.asks(clusterType, e.gets(clusterType, "a1"), "")
	r.give(clusterType, "-a")
	e.asks(clusterType, e.gets(clusterType), "")
	r.told("Cluster ack n2")
}
