package build

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/xds"
	"understudy.mesh/tests/realenvoy"
)

// testOptions are those of a pod with both families, DNS capture and VIPs.
func testOptions() mesh.Options {
	return mesh.Options{
		Namespace: "default", IPv4: true, IPv6: true, AutoAllocate: true,
		InboundPort: 15006, OutboundPort: 15001, ConnectTimeout: 10 * time.Second, DetectionTimeout: 100 * time.Millisecond,
		VIPRanges:     []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")},
		ReservedPorts: []uint16{15000, 15020, 15021, 15053, 15090},
	}
}

// writeFiles makes a directory with the given files.
func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

// writeFile replaces a file as editors and kubelets do, by a rename.
func writeFile(t testing.TB, path, text string) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func newTestSource(t testing.TB, dir string, o mesh.Options) (*mesh.Source, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s, err := mesh.NewSource(dir, o, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

// load reads one file and returns its registry and report.
func load(t testing.TB, text string, o mesh.Options) (*mesh.Registry, mesh.Report) {
	t.Helper()
	s, _ := newTestSource(t, writeFiles(t, map[string]string{"x.yaml": text}), o)
	r, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return r, s.Report()
}

// giveVIPs gives each host that wants one the next address of both ranges.
func giveVIPs(hosts []string) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	v4, v6 := netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("2001:2::1")
	for _, h := range hosts {
		out[h] = []netip.Addr{v4, v6}
		v4, v6 = v4.Next(), v6.Next()
	}
	return out
}

func build(t testing.TB, r *mesh.Registry, o mesh.Options) *Output {
	t.Helper()
	out, err := New(o).Build(r, giveVIPs(r.AutoHosts()), filterSet(r))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// filterSet is the EnvoyFilters of r for a pod of the manual's details-v1.
func filterSet(r *mesh.Registry) *envoyfilter.Set {
	p := envoyfilter.Proxy{
		Namespace: "default", RootNamespace: "istio-system", Labels: map[string]string{"app": "details", "version": "v1"},
		Metadata: map[string]any{"ISTIO_VERSION": "1.28.0", "CLUSTER_ID": "Kubernetes"},
	}
	return envoyfilter.NewSet(r.EnvoyFilters(), p, func(*envoyfilter.Filter) string { return "" })
}

func parseClusters(t testing.TB, msgs []*xds.Stored) []*clusterv3.Cluster {
	t.Helper()
	var out []*clusterv3.Cluster
	for _, m := range msgs {
		c := &clusterv3.Cluster{}
		if err := proto.Unmarshal(bodyOf(m), c); err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func parseListeners(t testing.TB, msgs []*xds.Stored) []*listenerv3.Listener {
	t.Helper()
	var out []*listenerv3.Listener
	for _, m := range msgs {
		l := &listenerv3.Listener{}
		if err := proto.Unmarshal(bodyOf(m), l); err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

// readable returns m as indented JSON that does not change from run to run, which protojson's own does.
func readable(t testing.TB, m proto.Message) string {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	text, err = json.MarshalIndent(tree, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// root is the repository.
const root = "../../.."

// needs skips a test whose surroundings are missing; in CI that is a failure.
func needs(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("needs " + what)
	}
	t.Skip("needs " + what)
}

// bootstrapFile writes a bootstrap that carries out as static resources.
func bootstrapFile(t testing.TB, out *Output) string {
	t.Helper()
	b := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{
		Clusters: parseClusters(t, out.Resources[ClusterType]), Listeners: parseListeners(t, out.Resources[ListenerType]),
	}}
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// validate has the real Envoy check out, and fails on any warning: each would be logged 10,000 times.
func validate(t testing.TB, out *Output) {
	t.Helper()
	cmd := exec.Command(realenvoy.Path(t, root), "--mode", "validate", "-c", bootstrapFile(t, out), "-l", "warning", "--service-node", "n", "--service-cluster", "c")
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("envoy --mode validate: %v\n%s", err, text)
	}
	if bytes.Contains(text, []byte("[warning]")) {
		t.Fatalf("envoy warns:\n%s", text)
	}
}

// bodyOf is the body of a resource, which is in memory.
func bodyOf(r *xds.Stored) []byte {
	body, err := r.Body()
	if err != nil {
		panic(err)
	}
	return body
}
