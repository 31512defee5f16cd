package files

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// TestOverview: what is not in force is there with its reason, whether a document is bad or Envoy refuses what is made of it, and
// where a good one leads.
func TestOverview(t *testing.T) {
	const entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: NAME}\n" +
		"spec: {hosts: [NAME.example], resolution: DNS, ports: [{number: NUMBER, name: http, protocol: HTTP}]}\n"
	dir := t.TempDir()
	for name, number := range map[string]string{"good": "80", "bad": "70000"} {
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(strings.NewReplacer("NAME", name, "NUMBER", number).Replace(entry)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	source, err := mesh.NewSource(dir, mesh.Options{
		Namespace: "default", IPv4: true, AutoAllocate: true, InboundPort: 15006, OutboundPort: 15001, ConnectTimeout: time.Second,
		VIPRanges: []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16")},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f := &Files{source: source, compiled: &compiled{}, filters: &filters{}, wasm: ecds.New(ecds.Config{Ready: &status.Readiness{}}), publisher: new(publish.Publisher), latest: latest{changed: make(chan struct{}, 1)}, c: Config{Ready: &status.Readiness{}, InForce: func() {}}}
	if got := f.LeadsTo("good.example"); got != "" {
		t.Errorf("before the first registry it leads to %q", got)
	}
	registry, err := source.Load()
	if err != nil {
		t.Fatal(err)
	}
	f.latest.put(registry)
	f.answered(&xds.RejectedError{
		Resources: []xds.ID{{Type: build.ClusterType, Name: "a"}, {Type: build.ClusterType, Name: "b"}}, Reasons: []string{`Cluster "a": no such field`},
	})
	bad := overview.Error{Where: "bad.yaml: document 1 (line 1)", Reason: "spec.ports[0].number: is 70000, should be 1 to 65535"}
	want := overview.Config{Directory: dir, Hosts: 1, Errors: []overview.Error{bad, {Where: "refused by Envoy", Reason: `Cluster "a": no such field`}}, ErrorsCount: 3}
	if diff := cmp.Diff(want, f.Overview()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := f.LeadsTo("good.example"); got != "80 -> good.example:80 (DNS)" {
		t.Errorf("it leads to %q", got)
	}

	f.answered(nil)
	want.Errors, want.ErrorsCount = []overview.Error{bad}, 1
	if diff := cmp.Diff(want, f.Overview()); diff != "" {
		t.Errorf("once Envoy takes all (-want +got):\n%s", diff)
	}
	for _, s := range f.Samples() {
		if s.Name == "config_documents" && s.Value != map[string]float64{"ok": 1, "error": 1}[s.Labels["status"]] {
			t.Errorf("%v documents are %s", s.Value, s.Labels["status"])
		}
	}
}
