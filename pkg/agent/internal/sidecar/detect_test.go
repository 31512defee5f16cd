package sidecar

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/xds"
)

// TestDetectionTimeoutOfZeroWaitsForEver wants what docs/settings.md says of protocolDetectionTimeout: 0s is no default.
func TestDetectionTimeoutOfZeroWaitsForEver(t *testing.T) {
	cfg, _, err := config.Load(config.Sources{
		Environ: []string{"POD_NAME=a", "POD_NAMESPACE=b", "INSTANCE_IP=10.0.0.1", "UNDERSTUDY_CONFIG_DIR=" + t.TempDir()},
		ReadFile: func(path string) ([]byte, error) {
			if path == "./etc/istio/config/mesh" {
				return []byte("protocolDetectionTimeout: 0s\n"), nil
			}
			return nil, os.ErrNotExist
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := meshOptions(cfg)
	s, err := mesh.NewSource(cfg.ConfigDir, o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	out, err := build.New(o).Build(r, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range out.Resources[build.ListenerType] {
		var l listenerv3.Listener
		if err := proto.Unmarshal(bodyOf(m), &l); err != nil {
			t.Fatal(err)
		}
		if m.Name == build.InboundListener {
			if l.ListenerFiltersTimeout == nil || l.ListenerFiltersTimeout.AsDuration() != 0 { // none is 15 s to Envoy
				t.Errorf("Envoy waits %v, want for ever (0)", l.ListenerFiltersTimeout.AsDuration())
			}
		}
	}
}

// TestConnectTimeoutOfZeroIsRefused wants a value that Envoy would refuse refused here, not replaced by another.
func TestConnectTimeoutOfZeroIsRefused(t *testing.T) {
	cfg := &config.Config{IPv4: true, PodNamespace: "default"}
	_, err := mesh.NewSource(t.TempDir(), meshOptions(cfg), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "connectTimeout is 0s") {
		t.Error(err)
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
