package xds

import (
	"slices"
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
