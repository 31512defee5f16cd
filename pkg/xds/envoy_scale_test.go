package xds_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func get(t *testing.T, port uint16, path string) int {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	client := http.Client{Transport: transport, Timeout: patience}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// rounds makes TestStartTime a measurement: one round on a busy machine is none.
var rounds = flag.Int("rounds", 1, "rounds of TestStartTime")

// services is how many clusters and listeners a large mesh of the tests has.
const services = 1000

// mesh makes them; each listener has an address of its own and binds no port, as
// listeners for virtual addresses do.
func mesh(b *bootstrapv3.Bootstrap) (snap pair) {
	for i := range services {
		cluster := newCluster(fmt.Sprintf("outbound|443||svc-%d.example.com", i), 443)
		host := fmt.Sprintf("240.240.%d.%d", i/250, i%250+1)
		listener := newListener(host+"_443", host, 443, cluster.Name, false)
		listener.BindToPort = wrapperspb.Bool(false)
		snap.Clusters = append(snap.Clusters, resource(cluster.Name, cluster))
		snap.Listeners = append(snap.Listeners, resource(listener.Name, listener))
		if b != nil {
			b.StaticResources.Clusters = append(b.StaticResources.Clusters, cluster)
			b.StaticResources.Listeners = append(b.StaticResources.Listeners, listener)
		}
	}
	return snap
}

// TestStartTime compares, and only reports, how long Envoy takes from its start to
// serving everything, over xDS and from one static file.
func TestStartTime(t *testing.T) {
	overXDS := func() time.Duration {
		p := newProxy(t)
		version := p.server.Set(mesh(nil).snapshot())
		b := p.bootstrap(nil)
		begin := time.Now()
		p.launch(b, false)
		p.ready()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := p.server.Applied(ctx, version); err != nil {
			t.Fatal(err)
		}
		elapsed := time.Since(begin)
		stats := p.stats(`^(cluster_manager\.cluster_added|listener_manager\.listener_create_success|listener_manager\.listener_added)$`)
		if stats["cluster_manager.cluster_added"] != services+2 || stats["listener_manager.listener_added"] != services+1 {
			t.Errorf("Envoy has %v", stats)
		}
		p.process.Kill()
		return elapsed
	}
	fromFile := func(text bool) time.Duration {
		p := newProxy(t)
		b := p.bootstrap(nil)
		b.DynamicResources = nil
		mesh(b)
		begin := time.Now()
		p.launch(b, text)
		p.ready()
		elapsed := time.Since(begin)
		p.process.Kill()
		return elapsed
	}
	for range *rounds {
		x, pb, json := overXDS(), fromFile(false), fromFile(true)
		t.Logf("%d clusters and listeners: xDS %v, static .pb %v, static .json %v: xDS takes %.2f of .pb, %.2f of .json",
			services, x.Round(time.Millisecond), pb.Round(time.Millisecond), json.Round(time.Millisecond),
			x.Seconds()/pb.Seconds(), x.Seconds()/json.Seconds())
	}
}

// TestOneOfManyChanges: of a thousand services, one that changes is what is sent.
func TestOneOfManyChanges(t *testing.T) {
	p := newProxy(t)
	snap := mesh(nil)
	p.server.Set(snap.snapshot())
	p.launch(p.bootstrap(nil), false)
	p.ready()
	if err := p.apply(snap); err != nil {
		t.Fatal(err)
	}
	before := p.server.Stats()
	snap.Clusters[7] = resource(snap.Clusters[7].Name, newCluster(snap.Clusters[7].Name, 444))
	if err := p.apply(snap); err != nil {
		t.Fatal(err)
	}
	after := p.server.Stats()
	if sent := after.Resources - before.Resources; sent != 1 {
		t.Errorf("%d resources were sent, want 1", sent)
	}
	if n := p.stats(`^cluster_manager\.cluster_modified$`)["cluster_manager.cluster_modified"]; n != 1 {
		t.Errorf("Envoy modified %d clusters, want 1", n)
	}
}
