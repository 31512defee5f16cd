package mesh

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// testOptions are those of a pod with both families, DNS capture and VIPs.
func testOptions() Options {
	return Options{
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

func newTestSource(t testing.TB, dir string, o Options) (*Source, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s, err := NewSource(dir, o, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

// load reads one file and returns its registry and report.
func load(t testing.TB, text string, o Options) (*Registry, Report) {
	t.Helper()
	s, _ := newTestSource(t, writeFiles(t, map[string]string{"x.yaml": text}), o)
	r, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return r, s.Report()
}

// doc is a ServiceEntry with metadata and spec in flow style.
func doc(metadata, spec string) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {%s}\nspec: {%s}\n---\n", metadata, spec)
}
