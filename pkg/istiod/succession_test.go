package istiod

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// told is what an agent tells its successor.
type told struct {
	state map[string][]byte
	files map[string][]byte
}

func (a *agent) tells() told {
	a.t.Helper()
	all := told{a.Export(), map[string][]byte{}}
	for component, write := range a.ExportFiles() {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			a.t.Fatal(err)
		}
		all.files[component] = b.Bytes()
	}
	return all
}

// successor is the next generation, which waits for istiod no longer than patience.
func successor(t *testing.T, f *fake, from told, patience time.Duration) *agent {
	t.Helper()
	return newAgent(t, f, func(i *Istiod) {
		i.loop.patience = patience
		i.Import(from.state, func(component string) io.Reader {
			if b, ok := from.files[component]; ok {
				return bytes.NewReader(b)
			}
			return nil
		})
	})
}

// inherits has Envoy take what the generation before had.
func (a *agent) inherits() *envoy {
	a.t.Helper()
	e := a.envoy()
	e.asks(clusterType)
	e.gets("Cluster +a", "")
	e.asks(endpointType, "a")
	e.gets("ClusterLoadAssignment +a", "")
	e.asks(listenerType)
	e.gets("Listener +virtualOutbound", "")
	return e
}

// givesUp wants a newcomer to give up, and returns why.
func (a *agent) givesUp() string {
	a.t.Helper()
	select {
	case err := <-a.Unfit():
		return err.Error()
	case <-time.After(deadline):
		a.t.Fatal("the newcomer goes on")
	}
	return ""
}

// goesOn wants it not to.
func (a *agent) goesOn() {
	a.t.Helper()
	select {
	case err := <-a.Unfit():
		a.t.Errorf("the newcomer gives up: %v", err)
	default:
	}
}

// TestSuccession: a newcomer's Envoy has what the generation before had before there is a stream; istiod then says what is
// different, which is nothing; and the stream of the generation before is open until somebody closes it.
func TestSuccession(t *testing.T) {
	f, a, _, s := cold(t)
	s.send(nameTable("t1", "a.example=10.0.0.1", "v.example=240.240.0.1"))
	s.asked("NameTable ack t1")
	a.answers("a.example=10.0.0.1", "v.example=240.240.0.1")
	a.pending("ready")

	b := successor(t, f, a.tells(), deadline)
	e := b.inherits()
	next := f.stream()
	next.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	b.answers("a.example=10.0.0.1", "v.example=240.240.0.1")
	b.pending("config: waiting: istiod has not said yet what is different")
	next.give(clusterType, "a=1")
	next.asked("Cluster ack n1")
	next.give(endpointType, "a=2")
	e.gets("ClusterLoadAssignment +a", "")
	next.asked("ClusterLoadAssignment ack n2")
	next.give(listenerType, "virtualOutbound=1")
	next.asked("Listener ack n3")
	b.pending("ready")
	b.goesOn()
	select {
	case <-s.gone:
		t.Error("the stream of the generation before is closed")
	default:
	}
	a.stop()
	<-s.gone

	b.Served() // from here on nobody else serves what this generation lacks
	e.close()
	again := b.envoy()
	again.asks(clusterType)
	again.gets("Cluster +a", "Error adding/updating cluster(s) a: no such extension")
	answers := b.relay.Answers(listenerType)
	again.asks(listenerType)
	again.gets("Listener +virtualOutbound", "")
	for end := time.Now().Add(deadline); b.relay.Answers(listenerType) == answers && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	b.goesOn()
}

// TestSuccessionWithoutIstiod: a newcomer does not wait for an istiod that is away.
func TestSuccessionWithoutIstiod(t *testing.T) {
	f, a, _, s := cold(t)
	s.send(nameTable("t1", "v.example=240.240.0.1"))
	s.asked("NameTable ack t1")
	a.answers("v.example=240.240.0.1")
	a.pending("ready")
	f.stop()
	<-s.gone
	for end := time.Now().Add(deadline); a.now().Connected && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	b := successor(t, f, a.tells(), moment)
	b.inherits()
	b.pending("ready")
	b.answers("v.example=240.240.0.1")
	if age := time.Since(b.now().Since); b.now().Connected || b.now().Since.After(a.now().Since) {
		t.Errorf("its configuration is said to be %v old, that of the generation before %v", age, time.Since(a.now().Since))
	}
}

// TestSuccessionAnswersNames: a newcomer is not ready before it answers what the generation before does, however long its Envoy
// warms.
func TestSuccessionAnswersNames(t *testing.T) {
	f, a, _, s := cold(t)
	s.send(nameTable("t1", "a.example=10.0.0.1", "v.example=240.240.0.1"))
	s.asked("NameTable ack t1")
	a.answers("a.example=10.0.0.1", "v.example=240.240.0.1")
	a.pending("ready")
	b := successor(t, f, a.tells(), moment)
	b.setWarming(1)
	b.inherits()
	b.answers("a.example=10.0.0.1") // after patience
	b.pending("dns: waiting")
	b.setWarming(0)
	b.answers("a.example=10.0.0.1", "v.example=240.240.0.1")
	b.pending("ready")
}

// TestSuccessionRefused: where istiod refuses the newcomer and serves the generation before, that one serves on; where it serves
// neither, the upgrade goes on.
func TestSuccessionRefused(t *testing.T) {
	f, a, _, _ := cold(t)
	f.mu.Lock()
	f.refuse = func() error { return status.Error(codes.PermissionDenied, "not this version") }
	f.mu.Unlock()
	from := a.tells()
	b := successor(t, f, from, deadline)
	b.inherits()
	if why := b.givesUp(); !strings.Contains(why, "not this version") || !strings.Contains(why, f.addr) {
		t.Errorf("the newcomer gives up: %s", why)
	}
	from.state[stateHealth] = []byte(`{"connected":false,"since":"2026-01-02T03:04:05Z"}`)
	c := successor(t, f, from, moment)
	c.inherits()
	c.ready.Done(taskDNS) // no table ever came
	c.pending("ready")
	c.goesOn()
}

// TestSuccessionLost: a newcomer whose Envoy refuses what the generation before serves does not take over.
func TestSuccessionLost(t *testing.T) {
	f, a, _, _ := cold(t)
	b := successor(t, f, a.tells(), moment)
	e := b.envoy()
	e.asks(clusterType)
	e.gets("Cluster +a", "Error adding/updating cluster(s) a: no such extension")
	e.asks(listenerType)
	e.gets("Listener +virtualOutbound", "")
	if why := b.givesUp(); !strings.Contains(why, "Cluster a: no such extension") {
		t.Errorf("the newcomer gives up: %s", why)
	}
}

// TestSuccessionLacks: a newcomer whose Envoy lacks an extension by which the one before has taken what it has gives up before it
// gets anything; what that one has taken without such an extension needs none.
func TestSuccessionLacks(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, nil)
	e := a.envoy()
	e.say(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: listenerType, Node: knowing(tcpProxy, exchange, stats)})
	s := f.stream()
	s.asked("Listener node", "NameTable")
	s.give(listenerType, "virtualOutbound="+filtered(t, "virtualOutbound", []string{exchange, tcpProxy, alpn}))
	e.gets("Listener +virtualOutbound", "")
	s.asked("Listener ack n1")
	from := a.tells()
	if got, want := string(from.state[stateExtensions]), `["`+tcpProxy+`","`+exchange+`"]`; got != want {
		t.Errorf("told of %s, want %s", got, want)
	}
	starts := func(node *corev3.Node, from told) *agent {
		b := successor(t, f, from, moment)
		b.envoy().say(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterType, Node: node})
		return b
	}
	if why := starts(knowing(tcpProxy, alpn), from).givesUp(); !strings.HasPrefix(why, "this Envoy lacks the extensions "+exchange+", which are in force") {
		t.Errorf("the newcomer gives up: %s", why)
	}
	fit := []*agent{starts(knowing(tcpProxy, exchange), from), starts(&corev3.Node{Id: "names none"}, from)}
	delete(from.state, stateExtensions) // an earlier release
	for _, b := range append(fit, starts(knowing(tcpProxy), from)) {
		f.stream() // it goes on, and calls istiod
		b.goesOn()
	}
}

// TestSuccessionChanges: what has changed, and when, outlives the generation that has seen it.
func TestSuccessionChanges(t *testing.T) {
	f, a, _, _ := cold(t)
	before := a.relay.Changes()
	if len(before) == 0 {
		t.Fatal("nothing has changed")
	}
	b := successor(t, f, a.tells(), deadline)
	e := b.inherits()
	next := f.stream()
	next.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	next.give(clusterType, "a=2")
	e.gets("Cluster +a", "")
	got := b.relay.Changes()
	if len(got) != len(before)+1 || got[len(before)].Change != "changed" || got[len(before)].Name != "a" {
		t.Fatalf("%v, want one more than %v", got, before)
	}
	for k, c := range before {
		if !c.Time.Equal(got[k].Time) || c.Name != got[k].Name || c.Type != got[k].Type || c.Change != got[k].Change {
			t.Errorf("%v has become %v", c, got[k])
		}
	}
	from := a.tells()
	from.state[StateChanges] = []byte("{")
	if got := successor(t, f, from, deadline).relay.Changes(); len(got) != 0 {
		t.Errorf("what cannot be read is %v", got)
	}
}

// TestSuccessionSlow: an Envoy that waits for what only istiod has gets it.
func TestSuccessionSlow(t *testing.T) {
	f, a, _, _ := cold(t)
	b := successor(t, f, a.tells(), moment)
	e := b.envoy()
	e.asks(clusterType)
	e.gets("Cluster +a", "")
	e.asks(endpointType, "new")
	select {
	case <-f.streams:
		t.Error("the newcomer calls istiod before its Envoy has what it inherits")
	case <-time.After(moment):
	}
	f.stream().asked("Cluster node held:a", "ClusterLoadAssignment +new") // after inheritPatience
}

// TestImportBroken: of what another release may tell, what cannot be read is left out, and the newcomer starts without.
func TestImportBroken(t *testing.T) {
	f, a, _, s := cold(t)
	s.send(nameTable("t1", "a.example=10.0.0.1"))
	a.pending("ready")
	t.Run("names and health", func(t *testing.T) {
		from := a.tells()
		from.state[stateNames], from.state[stateHealth] = []byte("?"), []byte("?")
		b := successor(t, f, from, deadline)
		b.inherits()
		next := f.stream()
		next.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
		b.pending("dns: waiting")
	})
	t.Run("resources", func(t *testing.T) {
		from := a.tells()
		from.files[StateResources] = []byte("?")
		b := successor(t, f, from, deadline)
		b.envoy().asks(clusterType)
		f.stream().asked("Cluster node")
	})
	t.Run("an older release", func(t *testing.T) {
		b := successor(t, f, told{}, deadline)
		b.envoy().asks(clusterType)
		f.stream().asked("Cluster node")
	})
}

// TestNamesOfStateStay: other releases know what a generation tells by these names.
func TestNamesOfStateStay(t *testing.T) {
	for got, want := range map[string]string{StateResources: "xds", stateNames: "names", stateHealth: "health", stateExtensions: "extensions", StateChanges: "changes"} {
		if got != want {
			t.Errorf("a component is called %q, want %q", got, want)
		}
	}
}
