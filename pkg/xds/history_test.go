package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// said are changes as "added Cluster a".
func said(changes []Change) (all []string) {
	for _, c := range changes {
		all = append(all, c.Change+" "+kindOf(c.Type)+" "+c.Name)
	}
	return all
}

// TestChanges: what was sent anew and is the same is none, nor is what nobody asked for.
func TestChanges(t *testing.T) {
	r := startRelay(t)
	e := connect(t, r.path)
	e.subscribe(clusterType)
	e.subscribe(endpointType, "a")
	r.told("Cluster first", "ClusterLoadAssignment first +a")
	before := time.Now()
	r.give(clusterType, "a=1", "b=1")
	r.give(endpointType, "a=1", "unasked=1")
	r.give(clusterType, "a=1", "b=2", "c=1", "-unknown")
	r.give(clusterType, "-a")
	want := []string{"added Cluster a", "added Cluster b", "added ClusterLoadAssignment a", "changed Cluster b", "added Cluster c", "removed Cluster a"}
	changes := r.Changes()
	if got := said(changes); !slices.Equal(got, want) {
		t.Errorf("the changes are %q, want %q", got, want)
	}
	for _, c := range changes {
		if c.Time.Before(before) || c.Time.After(time.Now()) {
			t.Errorf("%+v was not then", c)
		}
	}
}

// TestHistoryIsBounded: the last changes stay, however many there were at once.
func TestHistoryIsBounded(t *testing.T) {
	var h history
	long := strings.Repeat("x", 200)
	for i := range 10 {
		var changes []Change
		for k := range 1000 {
			changes = append(changes, Change{Change: added, Name: fmt.Sprintf("%s-%d-%d", long, i, k)})
		}
		h.add(changes)
	}
	size := 0
	for _, c := range h.changes {
		size += changeBytes + len(c.Name)
	}
	if size != h.bytes || size > maxHistory || size < maxHistory-1000 {
		t.Errorf("%d bytes are kept, and %d counted: want a little less than %d", size, h.bytes, maxHistory)
	}
	if last := h.changes[len(h.changes)-1].Name; !strings.HasSuffix(last, "-9-999") {
		t.Errorf("the last change is %q", last)
	}
	h.add([]Change{{Name: strings.Repeat("x", 2*maxHistory)}})
	if len(h.changes) != 0 || h.bytes != 0 {
		t.Errorf("%d changes of %d bytes are kept beside one that is too large", len(h.changes), h.bytes)
	}
}
