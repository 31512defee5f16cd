package envoy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/tests/realenvoy"
)

// TestServerInfo: a real Envoy names its extensions, and has left nothing behind.
func TestServerInfo(t *testing.T) {
	dir := t.TempDir()
	info, err := ServerInfo(t.Context(), realenvoy.Path(t, root), dir)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(info), "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy") {
		t.Errorf("it names no extensions: %.500s", info)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it has left %v (%v)", left, err)
	}
}

func TestServerInfoOfNoEnvoy(t *testing.T) {
	if _, err := ServerInfo(t.Context(), filepath.Join(t.TempDir(), "none"), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
}
