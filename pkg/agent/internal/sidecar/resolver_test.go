package sidecar

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
)

// TestLookupsOfResources wants what Envoy looks up without its bootstrap's resolver to go to the same server as all else.
func TestLookupsOfResources(t *testing.T) {
	dir := t.TempDir()
	const text = `{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "a"}, "spec": {
		"hosts": ["*.a.x"], "ports": [{"number": 80, "name": "h", "protocol": "HTTP"}], "resolution": "DYNAMIC_DNS"}}`
	if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &Sidecar{cfg: &config.Config{IPv4: true, PodNamespace: "default", ConnectTimeout: time.Second}}
	source, err := mesh.NewSource(dir, meshOptions(s.cfg), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	reg, err := source.Load()
	if err != nil {
		t.Fatal(err)
	}
	const server = "127.0.0.77"
	s.names = &names{resolver: &resolver{addr: netip.MustParseAddrPort(server + ":53053")}}
	out, err := build.New(s.options()).Build(reg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range append(out.Resources[build.ClusterType], out.Resources[build.ListenerType]...) {
		needs := m.Name == "outbound|80||*.a.x" || m.Name == "0.0.0.0_80"
		if asks := bytes.Contains(bodyOf(m), []byte(server)); asks != needs {
			t.Errorf("%s asks the agent: %v", m.Name, asks)
		}
	}
}
