package e2e_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"understudy.mesh/tests/lab"
)

const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"

	// maxFaultResponse is the largest response that the agent takes in these tests, and faultMemory is by how much it may grow.
	maxFaultResponse = 8 << 20
	faultMemory      = 64 << 20
	// largePush is what comes in one push of responses of largePart each, of one cluster that changes with each.
	largePush = 200 << 20
	largePart = 4 << 20
)

// istiodFault is something bad that istiod does, or the network on the way there.
type istiodFault struct {
	name string
	// strike does it, and returns once it is over; the agent then has a stream again, or gets one.
	strike func(*istiod, *rand.Rand)
	// says is what the log has of it, a regular expression, and page what /debug/istiod still has; "" is nothing.
	says, page string
}

// istiodFaults are those from which an agent comes back by itself.
func istiodFaults() []istiodFault {
	return []istiodFault{
		{"it dies", func(i *istiod, r *rand.Rand) { i.stop(); i.away(r); i.start() }, "no stream to istiod", ""},
		{"it ends the stream", func(i *istiod, _ *rand.Rand) { i.endStream(status.Error(codes.Unavailable, "going round")) }, "no stream to istiod.*going round", ""},
		{"it refuses the agent", func(i *istiod, r *rand.Rand) {
			i.set(status.Error(codes.PermissionDenied, "not today"), func() {})
			i.endStream(nil)
			i.resync()
			i.awaitPage("not today")
			i.set(nil, func() {})
		}, "no stream to istiod.*not today", ""},
		{"it says nothing", func(i *istiod, r *rand.Rand) {
			i.setMute(true)
			i.endStream(nil)
			i.away(r)
			i.setMute(false)
			i.resync()
		}, "no stream to istiod.*round again", ""},
		{"connections are reset", func(i *istiod, r *rand.Rand) { i.impostor(r, func(c *net.TCPConn) { _ = c.SetLinger(0) }) }, "no stream to istiod", ""},
		{"a proxy answers 503", func(i *istiod, r *rand.Rand) {
			i.impostor(r, func(c *net.TCPConn) { fmt.Fprint(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") })
		}, "no stream to istiod", ""},
		{"it speaks garbage", func(i *istiod, r *rand.Rand) {
			i.impostor(r, func(c *net.TCPConn) { fmt.Fprint(c, strings.Repeat("\x00\xff\x17", 1000)) })
		}, "no stream to istiod", ""},
		{"a cluster is no message", func(i *istiod, _ *rand.Rand) { i.pushBytes(typeCluster, "broken", []byte("\xff\xff no message")) }, "Envoy refused a response", "broken"},
		{"Envoy refuses a listener", func(i *istiod, _ *rand.Rand) {
			i.pushMessage(typeListener, "foreign", &listenerv3.Listener{Name: "foreign", Address: &corev3.Address{}})
		}, "Envoy refused a response.*foreign", "foreign"},
		{"a resource of another type", func(i *istiod, _ *rand.Rand) {
			i.push(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeCluster, Resources: []*discoveryv3.Resource{{Name: "odd", Resource: &anypb.Any{TypeUrl: typeListener}}}})
		}, "refused a response of istiod.*odd", "odd"},
		{"a type that nobody knows", func(i *istiod, _ *rand.Rand) {
			i.push(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/no.such.Type"})
		}, "refused a response of istiod.*no.such.Type", "no.such.Type"},
		{"a nonce twice", func(i *istiod, _ *rand.Rand) {
			for range 2 {
				i.push(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeCluster, Nonce: "twice"})
			}
			i.awaitAnswers("twice")
		}, "refused a response of istiod.*nonce of the one before", "nonce of the one before"},
		{"a large push", func(i *istiod, _ *rand.Rand) {
			for sent := 0; sent < largePush; sent += largePart {
				i.pushMessage(typeCluster, "large", largeCluster(sent, largePart))
			}
		}, "", ""},
		{"too large a response", func(i *istiod, _ *rand.Rand) {
			i.pushMessage(typeCluster, "large", largeCluster(0, maxFaultResponse+2000))
		}, "no stream to istiod.*larger than max", ""},
	}
}

// largeCluster is one of about this size, which is another one with another seed.
func largeCluster(seed, size int) *clusterv3.Cluster {
	text := fmt.Sprint(seed, strings.Repeat("x", size-1000))
	return &clusterv3.Cluster{Name: "large", Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"test": {Fields: map[string]*structpb.Value{"text": structpb.NewStringValue(text)}},
	}}}
}

// TestFaultsOfIstiod does something bad on istiod's side in every round, under traffic: no request fails, the agent says what it was,
// does not grow, and is served by istiod again afterwards.
func TestFaultsOfIstiod(t *testing.T) {
	t.Parallel()
	random := chance(t)
	p, i := newIstiodPod(t, fmt.Sprint("UNDERSTUDY_ISTIOD_MAX_RESPONSE=", maxFaultResponse))
	i.pod, i.tolerant = p, true
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	i.mustBeServed()
	before := rssOf(t, p.slot(0).Agent().PID())
	faults, largest := istiodFaults(), 0
	var order []int
	for round := range max(rounds(t), len(faults)) {
		if len(order) == 0 {
			order = random.Perm(len(faults))
		}
		f := faults[order[0]]
		order = order[1:]
		begin, said := time.Now(), p.slot(0).Log.Len()
		f.strike(i, random)
		p.slot(0).Log.WaitForAfter(t, said, f.says)
		if f.page != "" {
			i.awaitPage(f.page)
		}
		i.mustBeServed()
		rss := rssOf(t, p.slot(0).Agent().PID())
		largest = max(largest, rss)
		t.Logf("round %d: %s, %v, %d MiB", round, f.name, time.Since(begin).Round(time.Millisecond), rss>>20)
		if rss > before+faultMemory {
			t.Errorf("the agent has grown from %d MiB to %d MiB", before>>20, rss>>20)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("the agent had %d MiB before, %d MiB at most", before>>20, largest>>20)
	load.check(t)
}

// away is for how long istiod is.
func (i *istiod) away(r *rand.Rand) { <-time.After(time.Duration(r.Int64N(int64(time.Second)))) }

// setMute has new streams get no answer.
func (i *istiod) setMute(mute bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mute = mute
}

// endStream ends the newest stream, once there is one.
func (i *istiod) endStream(why error) {
	i.t.Helper()
	lab.Eventually(i.t, settleWithin, "there is a stream to end", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.newest == nil {
			return errors.New("none")
		}
		i.newest.end <- cmp.Or(why, status.Error(codes.Unavailable, "round again"))
		i.newest = nil
		return nil
	})
}

// impostor is in istiod's place for a while, and does this to each connection.
func (i *istiod) impostor(r *rand.Rand, do func(*net.TCPConn)) {
	i.stop()
	l := i.out.Listen(i.t, istiodAddress)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			do(conn.(*net.TCPConn))
			conn.Close()
		}
	}()
	i.away(r)
	l.Close()
	<-done
	i.start()
}

// push sends a response on the newest stream, with a nonce of its own unless it has one.
func (i *istiod) push(resp *discoveryv3.DeltaDiscoveryResponse) (nonce string) {
	i.t.Helper()
	i.mu.Lock()
	newest := i.newest
	i.pushed++
	resp.Nonce = cmp.Or(resp.Nonce, fmt.Sprint("push ", i.pushed))
	i.mu.Unlock()
	if newest == nil {
		i.t.Fatal("there is no stream to push on")
	}
	newest.sending.Lock()
	defer newest.sending.Unlock()
	if err := newest.conn.Send(resp); err != nil {
		i.t.Logf("push: %v", err) // the fault may be that the agent ends the stream
	}
	return resp.GetNonce()
}

func (i *istiod) pushBytes(url, name string, body []byte) {
	i.t.Helper()
	i.push(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Resources: []*discoveryv3.Resource{{Name: name, Resource: &anypb.Any{TypeUrl: url, Value: body}}}})
}

func (i *istiod) pushMessage(url, name string, m proto.Message) {
	i.t.Helper()
	body, err := proto.Marshal(m)
	must(i.t, err)
	i.pushBytes(url, name, body)
}

// awaitAnswers waits for the one answer to a nonce; another one would come at once.
func (i *istiod) awaitAnswers(nonce string) {
	i.t.Helper()
	lab.Eventually(i.t, settleWithin, "the answer comes", func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.answers[nonce] == 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

// awaitPage waits until /debug/istiod says something.
func (i *istiod) awaitPage(want string) {
	i.t.Helper()
	lab.Eventually(i.t, settleWithin, "the agent says "+want, func() error {
		code, page, err := i.pod.Pod.Get("http://127.0.0.1:15020/debug/istiod")
		if err == nil && (code != http.StatusOK || !strings.Contains(page, want)) {
			err = fmt.Errorf("%d:\n%s", code, page)
		}
		return err
	})
}

// resync has the agent open another stream now.
func (i *istiod) resync() {
	i.t.Helper()
	if _, _, err := i.pod.Pod.Request(http.MethodPost, "http://127.0.0.1:15020/debug/resync"); err != nil {
		i.t.Fatal(err)
	}
}

// mustBeServed demands that the agent is, on one stream that is of use, and never answered twice. It does not wait for the agent's
// pauses.
func (i *istiod) mustBeServed() {
	i.t.Helper()
	i.resync()
	var probed *istiodStream
	nonce := ""
	lab.Eventually(i.t, settleWithin, "istiod serves the agent", func() error {
		i.mu.Lock()
		newest, answered := i.newest, i.answers[nonce] > 0
		ready := slices.Contains(i.last, namesType) && !i.mute // all else was asked for before, and given
		i.mu.Unlock()
		switch {
		case answered:
			return nil
		case newest != nil && newest != probed && ready:
			probed = newest
			nonce = i.push(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeCluster, RemovedResources: []string{"large", "broken"}})
		}
		return errors.New("it has no answer yet")
	})
	i.mustHaveOneStream()
	i.mu.Lock()
	defer i.mu.Unlock()
	for nonce, n := range i.answers {
		if n > 1 {
			i.t.Errorf("the agent has answered %q %d times", nonce, n)
		}
	}
	clear(i.answers)
}
