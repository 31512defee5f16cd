package sidecar

import (
	"log/slog"
	"testing"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/agent/internal/identity"
	"understudy.mesh/pkg/agent/internal/rundir"
)

// TestNameSecrets: Envoy gets its secrets from the agent; where another server has the workload's certificate, from that one, and
// istiod is told that files are the agent's all the same.
func TestNameSecrets(t *testing.T) {
	dir, err := rundir.New(t.TempDir(), "1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Remove() })
	for external, want := range map[string][2]string{"": {dir.SDSSocket(), ""}, "/spire": {"/spire", dir.SDSSocket()}} {
		settings := map[string]any{"NAME": "a"}
		c := bootstrap.Config{Node: bootstrap.Node{Metadata: settings}, Istiod: &bootstrap.Istiod{}}
		(&Sidecar{dir: dir, others: identity.Others{Workload: external, Credentials: external != ""}}).nameSecrets(&c)
		if got := [2]string{c.Istiod.SDSPath, c.Istiod.FilesPath}; got != want {
			t.Errorf("with another server at %q: sockets %q, want %q", external, got, want)
		}
		for _, key := range []string{"file-credential", "credential"} {
			if told := c.Node.Metadata[key] == "true"; told != (external != "") {
				t.Errorf("with another server at %q the node is %v", external, c.Node.Metadata)
			}
		}
		if len(settings) != 1 {
			t.Errorf("the settings themselves have changed: %v", settings)
		}
	}
}
