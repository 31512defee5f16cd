package xds_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/xds"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/realenvoy"
)

// patience is a deadline for what ought to take less than a second.
const patience = 60 * time.Second

// proxy is a real Envoy with the xDS server that feeds it.
type proxy struct {
	t       *testing.T
	server  *xds.Server
	admin   *envoy.Admin
	process *realenvoy.Process
	log     *bytes.Buffer
	dir     string
}

// root is the repository.
const root = "../.."

// newProxy makes directory, server and client; launch starts Envoy.
func newProxy(t *testing.T) *proxy {
	t.Helper()
	realenvoy.Path(t, root)
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "xds"))
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	p := &proxy{t: t, dir: dir, log: log, admin: envoy.NewAdmin(filepath.Join(dir, "admin"))}
	p.server = xds.New(l, []string{clusterType, listenerType}, slog.New(slog.NewTextHandler(log, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.server.Run(ctx) }()
	t.Cleanup(func() {
		p.admin.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *proxy) bootstrap(change func(*bootstrapv3.Bootstrap)) *bootstrapv3.Bootstrap {
	p.t.Helper()
	b, err := bootstrap.Build(bootstrap.Config{
		Node:      bootstrap.Node{ID: "sidecar~127.0.0.1~a.b~c", Cluster: "test"},
		AdminPath: filepath.Join(p.dir, "admin"), XDSPath: filepath.Join(p.dir, "xds"),
		StatsPort: freeport.Get(p.t), StatsLoopbackOnly: true, IPv4: true,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if change != nil {
		change(b)
	}
	return b
}

// launch starts Envoy with b; text chooses the form of the file.
func (p *proxy) launch(b *bootstrapv3.Bootstrap, text bool) {
	p.t.Helper()
	marshal, name := bootstrap.MarshalBinary, "bootstrap.pb"
	if text {
		marshal, name = func(b *bootstrapv3.Bootstrap) ([]byte, error) { return protojson.Marshal(b) }, "bootstrap.json"
	}
	raw, err := marshal(b)
	if err != nil {
		p.t.Fatal(err)
	}
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		p.t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer output.Close()
	p.process = realenvoy.Start(p.t, filepath.Join(p.dir, "admin"), output, realenvoy.Path(p.t, root),
		envoy.Args(envoy.Options{ConfigPath: path, Concurrency: 1, DrainDuration: time.Second})...)
	p.t.Cleanup(func() {
		p.process.Stop()
		if p.t.Failed() {
			text, _ := os.ReadFile(output.Name())
			p.t.Logf("Envoy: %v\n%s\nagent:\n%s", p.process.Err(), text, p.log)
		}
	})
}

// ready waits until Envoy serves.
func (p *proxy) ready() {
	p.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !p.process.Ready(p.t.Context()); {
		select {
		case <-tick.C:
		case <-p.process.Done():
			p.t.Fatalf("Envoy ended: %v", p.process.Err())
		case <-deadline:
			p.t.Fatal("Envoy does not serve")
		}
	}
}

func (p *proxy) apply(snap pair) error {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	return p.server.Applied(ctx, p.server.Set(snap.snapshot()))
}

func (p *proxy) stats(filter string) map[string]uint64 {
	p.t.Helper()
	stats, err := p.process.Stats(p.t.Context(), filter)
	if err != nil {
		p.t.Fatal(err)
	}
	return stats
}

// upstream is a server that says its name and closes.
func upstream(t *testing.T, name string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			conn.Close()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func ask(t *testing.T, port uint16) string {
	t.Helper()
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(answer)
}

func tcpAddress(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

func newCluster(name string, port uint16) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: tcpAddress("127.0.0.1", port)},
			}}},
		}}},
	}
}

func newListener(name, host string, port uint16, cluster string, inbound bool) *listenerv3.Listener {
	filter, _ := anypb.New(&tcpv3.TcpProxy{StatPrefix: name, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: cluster}})
	l := &listenerv3.Listener{
		Name: name, Address: tcpAddress(host, port), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.tcp_proxy", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: filter},
		}}}},
	}
	if inbound {
		l.TrafficDirection = corev3.TrafficDirection_INBOUND
	}
	return l
}

func resource(name string, m proto.Message) *xds.Stored {
	body, err := proto.Marshal(m)
	if err != nil {
		panic(err) // a message of ours
	}
	return xds.NewStored(name, body)
}

// TestServesAndUpdates pushes two services, changes one, and looks at Envoy's own
// counters for what it was told.
func TestServesAndUpdates(t *testing.T) {
	p := newProxy(t)
	first, second, third := upstream(t, "first"), upstream(t, "second"), upstream(t, "third")
	port1, port2 := freeport.Get(t), freeport.Get(t)
	listeners := []*xds.Stored{
		resource("l1", newListener("l1", "127.0.0.1", port1, "c1", false)),
		resource("l2", newListener("l2", "127.0.0.1", port2, "c2", true)),
	}
	c2 := resource("c2", newCluster("c2", second))
	p.server.Set(pair{Clusters: []*xds.Stored{resource("c1", newCluster("c1", first)), c2}, Listeners: listeners}.snapshot())
	p.launch(p.bootstrap(nil), true)
	p.ready()
	if got := ask(t, port1) + ask(t, port2); got != "firstsecond" {
		t.Fatalf("got %q", got)
	}

	if err := p.apply(pair{Clusters: []*xds.Stored{resource("c1", newCluster("c1", third)), c2}, Listeners: listeners}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, port1) + ask(t, port2); got != "thirdsecond" {
		t.Errorf("got %q", got)
	}
	stats := p.stats(`^(cluster_manager|listener_manager)\.(cluster|listener)_(added|modified|removed)$`)
	for name, want := range map[string]uint64{
		// xds-grpc and prometheus_stats, and the stats listener, are static.
		"cluster_manager.cluster_added": 4, "cluster_manager.cluster_modified": 1, "cluster_manager.cluster_removed": 0,
		"listener_manager.listener_added": 3, "listener_manager.listener_modified": 0,
	} {
		if stats[name] != want {
			t.Errorf("%s is %d, want %d (of %v)", name, stats[name], want, stats)
		}
	}
	if clusters, listeners, err := p.admin.Warming(t.Context()); clusters != 0 || listeners != 0 || err != nil {
		t.Errorf("warming %d, %d, %v", clusters, listeners, err)
	}
	if version, err := p.admin.Version(t.Context()); err != nil || strings.Count(version, "/") < 2 {
		t.Errorf("version %q, %v", version, err)
	}
}

// TestRefusedAndRepaired: Envoy's reason arrives with the resource's name, the good
// neighbour is in force, and the repair is.
func TestRefusedAndRepaired(t *testing.T) {
	p := newProxy(t)
	port, other := freeport.Get(t), freeport.Get(t)
	c := resource("c", newCluster("c", upstream(t, "here")))
	good := resource("good", newListener("good", "127.0.0.1", other, "c", false))
	p.server.Set(pair{Clusters: []*xds.Stored{c}}.snapshot())
	p.launch(p.bootstrap(nil), false)
	p.ready()

	bad := newListener("broken", "127.0.0.1", port, "c", false)
	bad.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{
		TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/no.such.Filter"},
	}
	err := p.apply(pair{Clusters: []*xds.Stored{c}, Listeners: []*xds.Stored{good, resource("broken", bad)}})
	if err == nil || !strings.Contains(err.Error(), `Listener "broken"`) || !strings.Contains(err.Error(), "no.such.Filter") {
		t.Fatalf("got %v", err)
	}
	if got := ask(t, other); got != "here" {
		t.Errorf("the good listener says %q", got)
	}
	fixed := resource("broken", newListener("broken", "127.0.0.1", port, "c", false))
	if err := p.apply(pair{Clusters: []*xds.Stored{c}, Listeners: []*xds.Stored{good, fixed}}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, port); got != "here" {
		t.Errorf("the repaired listener says %q", got)
	}
}

// TestDrainLeavesOutboundAndStats: a drain of what comes in closes nothing else.
func TestDrainLeavesOutboundAndStats(t *testing.T) {
	p := newProxy(t)
	in, out := freeport.Get(t), freeport.Get(t)
	p.server.Set(pair{
		Clusters: []*xds.Stored{resource("c", newCluster("c", upstream(t, "here")))},
		Listeners: []*xds.Stored{
			resource("in", newListener("in", "127.0.0.1", in, "c", true)),
			resource("out", newListener("out", "127.0.0.1", out, "c", false)),
		},
	}.snapshot())
	b := p.bootstrap(nil)
	stats := uint16(b.StaticResources.Listeners[0].Address.GetSocketAddress().GetPortValue())
	p.launch(b, true)
	p.ready()
	if got := ask(t, in) + ask(t, out); got != "herehere" {
		t.Fatalf("before the drain: %q", got)
	}
	if err := p.admin.Drain(t.Context(), envoy.DrainOptions{InboundOnly: true}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ask(t, in) == "here"; {
		if time.Now().After(deadline) {
			t.Fatal("the inbound listener stays open")
		}
	}
	if got := ask(t, out); got != "here" {
		t.Errorf("outbound: %q", got)
	}
	for path, want := range map[string]int{
		"/stats/prometheus": 200, "/stats/prometheus?usedonly": 200,
		"/stats": 404, "/stats/prometheusx": 404, "/quitquitquit": 404, "/config_dump": 404, "/": 404,
	} {
		if got := get(t, stats, path); got != want {
			t.Errorf("GET %s on the stats port: %d, want %d", path, got, want)
		}
	}
}

// The types of the tests, in the order of New.
const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

// pair is a snapshot of the two.
type pair struct{ Clusters, Listeners []*xds.Stored }

func (p pair) snapshot() xds.Snapshot {
	return xds.Snapshot{clusterType: p.Clusters, listenerType: p.Listeners}
}
