package xds_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"understudy.mesh/pkg/xds"
	"understudy.mesh/tests/freeport"
)

// TestEveryRefusalHasAName: Envoy refuses resources in several forms, most of which name
// nothing; each refused one is known by name, every other one is in force.
func TestEveryRefusalHasAName(t *testing.T) {
	for kind, refused := range refusals(t) {
		t.Run(kind, func(t *testing.T) {
			p := newProxy(t)
			p.launch(p.bootstrap(nil), false)
			port := freeport.Get(t)
			snap := pair{
				Clusters:  []*xds.Stored{resource("good", newCluster("good", upstream(t, "here")))},
				Listeners: []*xds.Stored{resource("last", newListener("last", "127.0.0.1", port, "good", false))},
			}
			var want []xds.ID
			for _, r := range refused.Clusters {
				want = append(want, xds.ID{Type: clusterType, Name: r.Name})
			}
			for _, r := range refused.Listeners {
				want = append(want, xds.ID{Type: listenerType, Name: r.Name})
			}
			snap.Clusters = append(snap.Clusters, refused.Clusters...)
			snap.Listeners = append(snap.Listeners, refused.Listeners...)
			var rejected *xds.RejectedError
			if err := p.apply(snap); !errors.As(err, &rejected) {
				t.Fatalf("got %v", err)
			}
			if !slices.Equal(rejected.Resources, want) || !slices.Equal(rejected.Missing(), want) {
				t.Errorf("Envoy refuses %q and lacks %q, want %q", rejected.Resources, rejected.Missing(), want)
			}
			for i, reason := range rejected.Reasons[:min(len(want), 10)] {
				if !strings.Contains(reason, fmt.Sprintf("%q: ", want[i].Name)) || strings.HasSuffix(reason, ": ") {
					t.Errorf("no reason for %s: %q", want[i].Name, reason)
				}
			}
			if got := ask(t, port); got != "here" {
				t.Errorf("what is good: %q", got)
			}
			snap.Clusters, snap.Listeners = snap.Clusters[:1], snap.Listeners[:1]
			if err := p.apply(snap); err != nil {
				t.Errorf("without what it refused: %v", err)
			}
		})
	}
}

// refusals are resources that Envoy refuses, by the form in which it does.
func refusals(t *testing.T) map[string]pair {
	t.Helper()
	rule := newCluster("rule", 1)
	rule.ConnectTimeout = durationpb.New(-time.Second)
	chain := newListener("chain", "127.0.0.1", 1, "good", false)
	chain.FilterChains[0].Filters[0].Name = "" // at least one byte, says the rule
	unknown := newListener("unknown", "127.0.0.1", 1, "good", false)
	unknown.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/no.such.Filter"}}
	taken := newListener("taken", "127.0.0.1", upstream(t, "somebody"), "good", false)
	bytes := []byte("\xff\xff no message")
	many, long := pair{}, strings.Repeat("long", 20)
	for i := range 200 { // their names alone are more than Envoy's message may have
		name := fmt.Sprintf("%s-%03d", long, i)
		c := newCluster(name, 1)
		c.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{{Name: "no"}}
		c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED // only of a cluster type that has one
		many.Clusters = append(many.Clusters, resource(name, c))
	}
	return map[string]pair{
		"field rule":         {Clusters: []*xds.Stored{resource("rule", rule)}, Listeners: []*xds.Stored{resource("chain", chain)}},
		"no message":         {Clusters: []*xds.Stored{xds.NewStored("bytes", bytes)}, Listeners: []*xds.Stored{xds.NewStored("bytes-too", bytes)}},
		"nothing":            {Clusters: []*xds.Stored{xds.NewStored("empty", nil)}, Listeners: []*xds.Stored{xds.NewStored("empty-too", nil)}},
		"another type":       {Clusters: []*xds.Stored{resource("listener", unknown)}},
		"another name":       {Clusters: []*xds.Stored{resource("outside", named(rule, "inside"))}},
		"unknown extension":  {Listeners: []*xds.Stored{resource("unknown", unknown)}},
		"address in use":     {Listeners: []*xds.Stored{resource("taken", taken)}},
		"more than it tells": many,
		"all at once": {
			Clusters:  []*xds.Stored{xds.NewStored("bytes", bytes), resource("rule", rule)},
			Listeners: []*xds.Stored{xds.NewStored("bytes-too", bytes), resource("chain", chain), resource("taken", taken), resource("unknown", unknown)},
		},
	}
}

func named(c *clusterv3.Cluster, name string) *clusterv3.Cluster {
	c = proto.Clone(c).(*clusterv3.Cluster)
	c.Name, c.ConnectTimeout = name, nil
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	return c
}
