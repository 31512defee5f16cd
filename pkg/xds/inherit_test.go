package xds

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// exported is what a relay tells the next generation.
func (r *relaying) exported() []byte {
	r.t.Helper()
	var b bytes.Buffer
	if _, err := r.Export(&b); err != nil {
		r.t.Fatal(err)
	}
	return b.Bytes()
}

// successor is the next generation's relay, with its Envoy, which has asked for clusters.
func successor(t *testing.T, state []byte) (*relaying, *client) {
	t.Helper()
	r := makeRelay(t, func(r *Relay) {
		if err := r.Import(bytes.NewReader(state)); err != nil {
			t.Fatal(err)
		}
	})
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	return r, envoy
}

// TestInherit: the next generation's Envoy has what this one's has taken, before there is an upstream; which is then told of it,
// and the same again does not reach Envoy.
func TestInherit(t *testing.T) {
	before, envoy := relayed(t)
	envoy.subscribe(endpointType, "none")
	before.told("ClusterLoadAssignment +none")
	before.give(endpointType, "-none")
	envoy.expect("ClusterLoadAssignment -none")
	before.told("ClusterLoadAssignment ack n5")
	before.give(clusterType, "b=bad", "refused=bad")
	envoy.nack(envoy.next(), "Error adding/updating cluster(s) b: bad lb, refused: bad lb")
	before.told("Cluster nack n6 Error adding/updating cluster(s) b: bad lb, refused: bad lb")
	before.give(clusterType, "new=1")
	envoy.next() // and it says nothing of it

	r, next := successor(t, before.exported())
	next.expect("Cluster +a +b")
	next.subscribe(endpointType, "a", "none", "new")
	next.expect("ClusterLoadAssignment +a -none")
	next.subscribe(listenerType)
	next.expect("Listener +l")
	next.subscribe(endpointType, "a") // once more: the relay has heard what was said before
	next.expect("ClusterLoadAssignment +a")
	if r.Reconciled() {
		t.Error("reconciled without an upstream")
	}
	r.Begin()
	r.told("Cluster first held:a held:b", "ClusterLoadAssignment first +a +new +none held:a", "Listener first held:l")
	r.give(clusterType, edsCluster("a", "", "1"), "b=", "new=1")
	next.expect("Cluster +new")
	r.give(endpointType, "a=1", "new=1", "-none")
	next.expect("ClusterLoadAssignment +new")
	r.give(listenerType, "l=1")
	r.told("Cluster ack n1", "ClusterLoadAssignment ack n2", "Listener ack n3")
	if !r.Reconciled() {
		t.Error("not reconciled")
	}
	next.subscribe(routeURL, "other")
	r.told("RouteConfiguration first +other") // r would count as asked for
	next.subscribe(routeURL, "r")
	next.expect("RouteConfiguration +r")
	r.told("RouteConfiguration +r")
	r.Forget()
	if got := r.Status()[routeURL].Held; got != 1 {
		t.Errorf("%d routes are held, want 1", got)
	}
}

// TestImportLate: an Envoy that waits for an upstream gets what there is, but not of what the upstream has said.
func TestImportLate(t *testing.T) {
	before, _ := relayed(t)
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	envoy.subscribe(endpointType, "a", "new")
	r.told("Cluster first", "ClusterLoadAssignment first +a +new")
	r.give(clusterType, "b=2")
	envoy.expect("Cluster +b")
	var state bytes.Buffer
	if _, err := before.Export(&state, routeURL); err != nil {
		t.Fatal(err)
	}
	if err := r.Import(&state); err != nil {
		t.Fatal(err)
	}
	envoy.expect("ClusterLoadAssignment +a")
	envoy.nothing()
	envoy.subscribe(listenerType)
	envoy.expect("Listener +l")
	envoy.subscribe(routeURL, "r") // which was left out
	envoy.nothing()
}

// TestInheritForgets: what Envoy does not ask for is dropped.
func TestInheritForgets(t *testing.T) {
	before, _ := relayed(t)
	r, envoy := successor(t, before.exported())
	envoy.expect("Cluster +a +b")
	r.Forget()
	for url, want := range map[string]int{clusterType: 2, routeURL: 0} {
		if got := r.Status()[url].Held; got != want {
			t.Errorf("%d of %s are held, want %d", got, url, want)
		}
	}
}

// TestLost: an Envoy that refuses what the one before it had lacks it, and what refuses something new does not lose anything.
func TestLost(t *testing.T) {
	before, _ := relayed(t)
	r, envoy := successor(t, before.exported())
	const words = "Error adding/updating cluster(s) b: no such extension"
	envoy.nack(envoy.next(), words)
	envoy.subscribe(listenerType)
	envoy.expect("Listener +l")
	r.Begin()
	r.told("Cluster first held:a", "Listener first held:l")
	if name, why := r.Lost(); name != "Cluster b" || why != "no such extension" {
		t.Errorf("lost: %q, %q", name, why)
	}
	if got := r.Status()[clusterType].Lacking; len(got) != 1 || got[0] != "b" {
		t.Errorf("lacking: %q", got)
	}
	r.give(clusterType, edsCluster("a", "", "1"), "b=2", "c=")
	envoy.nack(envoy.next(), "Error adding/updating cluster(s) c: bad lb")
	r.told("Cluster nack n1 Error adding/updating cluster(s) c: bad lb")
	if name, _ := r.Lost(); name != "" {
		t.Errorf("lost: %q", name)
	}
}

// TestImportRefuses: what is cut off, or makes no sense, leaves the relay as it was.
func TestImportRefuses(t *testing.T) {
	before, _ := relayed(t)
	whole := before.exported()
	for name, state := range map[string][]byte{"cut off": whole[:len(whole)-1], "of no type": {2, 2<<3 | 2, 0}} {
		r := makeRelay(t, func(r *Relay) {
			if err := r.Import(bytes.NewReader(state)); err == nil || !strings.Contains(err.Error(), "generation before") {
				t.Errorf("%s: %v", name, err)
			}
		})
		if got := r.Status(); len(got) > 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
	if _, err := before.Export(failing{}); !errors.Is(err, errFailing) {
		t.Errorf("export: %v", err)
	}
}

var errFailing = errors.New("no space")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFailing }

// FuzzImport: whatever another release, or a broken disk, hands over, an import ends, and what it takes can be exported.
func FuzzImport(f *testing.F) {
	f.Add([]byte{3, 1<<3 | 2, 1, 'x', 6, 2<<3 | 2, 1, 'n', 3<<3 | 2, 1, 'b', 3, 4<<3 | 2, 1, 'a'})
	f.Fuzz(func(t *testing.T, state []byte) {
		r := &Relay{ledgers: make(map[string]*ledger)}
		if err := r.Import(bytes.NewReader(state)); err == nil {
			if _, err := r.Export(io.Discard); err != nil {
				t.Error(err)
			}
		}
	})
}
