package envoy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/realenvoy"
)

// root is the repository.
const root = "../.."

// await polls a until its Envoy is live.
func await(t *testing.T, a *Admin, p *Process) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); ; {
		state, err := a.state(t.Context())
		if err == nil && state.server == live && state.workersStarted {
			return
		}
		if text := state.server.String(); strings.HasPrefix(text, "STATE_") {
			t.Fatalf("Envoy is in a state that we do not know: %s", text)
		}
		select {
		case <-tick.C:
		case <-p.Done():
			t.Fatalf("Envoy ended: %v", p.Exit())
		case <-deadline:
			t.Fatal("Envoy does not become live")
		}
	}
}

func bootstrapFile(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "bootstrap.json")
	text := fmt.Sprintf(`{"admin": {"address": {"pipe": {"path": %q}}}}`, filepath.Join(dir, "admin"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWithoutSharedMemory: a read-only /dev/shm, as under a read-only root, must not
// matter to an Envoy that does not take part in a hot restart. It has its gauges in the form for Prometheus under the names that are asked for.
func TestWithoutSharedMemory(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	args := append([]string{
		"--mount", "--propagation", "private", "/bin/sh", "-c",
		`mount -t tmpfs -o ro none /dev/shm && ! touch /dev/shm/x 2>/dev/null && exec "$0" "$@"`, realenvoy.Path(t, root),
	}, Args(Options{ConfigPath: bootstrapFile(t, dir), Concurrency: 1})...)
	p, err := startProcess(Command{Path: "/usr/bin/unshare", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	a := NewAdmin(filepath.Join(dir, "admin"))
	defer a.Close()
	await(t, a, p)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err = a.do(ctx, http.MethodGet, "/stats/prometheus?type=Gauges", func(body io.Reader) error {
		samples, err := parseSamples(body)
		for _, g := range []gauge{gaugeWorkers, gaugeWarmingClusters, gaugeWarmingListeners} {
			if _, has := samples[g.prometheus]; !has {
				t.Errorf("Envoy has no %s, which is %s", g.prometheus, g.name)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	p.stop(ctx)
	if p.Exit() != (Exit{}) {
		t.Errorf("after SIGTERM: %v, want exit status 0", p.Exit())
	}
}

// TestRealArguments: Envoy takes every flag that Args can give.
func TestRealArguments(t *testing.T) {
	dir := t.TempDir()
	output, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	args := Args(Options{
		ConfigPath: bootstrapFile(t, dir), DrainDuration: time.Second, LogLevel: "info,misc:error", ComponentLogLevel: "http:debug",
		Concurrency: 1, LocalIPv6: true, SkipDeprecatedLogs: true, CoreDump: true,
		OverrideYAML: `{"node": {"id": "overridden", "cluster": "c"}}`, FileFlushMinSizeKB: 4,
	})
	p, err := startProcess(Command{Path: realenvoy.Path(t, root), Args: args, Stdout: output, Stderr: output})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { p.kill(); <-p.Done() }()
	a := NewAdmin(filepath.Join(dir, "admin"))
	defer a.Close()
	await(t, a, p)
	version, err := a.Version(t.Context())
	if err != nil || !strings.Contains(version, "/1.") {
		t.Errorf("version %q, %v", version, err)
	}
	p.stop(t.Context())
	if p.Exit() != (Exit{}) {
		log, _ := os.ReadFile(output.Name())
		t.Errorf("%v\n%s", p.Exit(), log)
	}
}
