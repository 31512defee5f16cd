package build

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"understudy.mesh/pkg/mesh"
)

var update = flag.Bool("update", false, "rewrite the goldens")

// TestBuildGolden builds each archive of testdata: its *.yaml are the configuration, its comment may name options, "want"
// is the readable output. The real Envoy has to take every one of them.
func TestBuildGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) { golden(t, path) })
	}
}

func golden(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files, want := map[string]string{}, ""
	at := len(archive.Files)
	for i, f := range archive.Files {
		if f.Name == "want" {
			want, at = string(f.Data), i
		} else {
			files[f.Name] = string(f.Data)
		}
	}
	o := optionsOf(t, string(archive.Comment))
	s, _ := newTestSource(t, writeFiles(t, files), o)
	r, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	out := build(t, r, o)
	got := describe(t, out, s.Report())
	if *update {
		archive.Files = append(archive.Files[:at:at], txtar.File{Name: "want", Data: []byte(got)})
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("output differs (-want +got), see -update:\n%s", diff)
	}
	validate(t, out)
}

// optionsOf reads the options that an archive's comment names, by words.
func optionsOf(t *testing.T, comment string) mesh.Options {
	o := testOptions()
	for _, line := range strings.Split(comment, "\n") {
		words, ok := strings.CutPrefix(line, "options:")
		if !ok {
			continue
		}
		for _, w := range strings.Fields(words) {
			switch w {
			case "ipv4-only":
				o.IPv6 = false
			case "ipv6-only":
				o.IPv4 = false
			case "no-vips":
				o.AutoAllocate, o.VIPRanges = false, nil
			case "registry-only":
				o.RegistryOnly = true
			case "transparent":
				o.TransparentMark = 1337
			case "access-log":
				o.AccessLog.Path = "/dev/null"
			case "json-access-log":
				o.AccessLog = mesh.AccessLog{Path: "/dev/null", JSON: true}
			default:
				t.Fatalf("unknown option %q", w)
			}
		}
	}
	return o
}

func describe(t *testing.T, out *Output, report mesh.Report) string {
	var b strings.Builder
	for _, d := range report.Documents {
		fmt.Fprintf(&b, "document %s %s/%s: %s", d.Kind, d.Namespace, d.Name, d.Status)
		if d.Reason != "" {
			fmt.Fprintf(&b, ": %s: %s", d.Field, d.Reason)
		}
		b.WriteString("\n")
	}
	for _, f := range out.Filters.Report(out.Patched) {
		for i, p := range f.Patches {
			fmt.Fprintf(&b, "filter %s/%s[%d] %s %s: %s %v %s\n", f.Namespace, f.Name, i, p.ApplyTo, p.Operation, p.Result, p.Names, p.Reason)
		}
	}
	for _, h := range out.Hosts {
		fmt.Fprintf(&b, "host %s %v vip=%v\n", h.Name, h.Addrs, h.VIP)
	}
	for _, c := range parseClusters(t, out.Resources[ClusterType]) {
		if strings.Contains(t.Name(), "/filter") {
			continue
		}
		if strings.HasPrefix(c.Name, "outbound|") || strings.HasSuffix(t.Name(), "/empty") || strings.Contains(t.Name(), "/empty-") {
			fmt.Fprintf(&b, "cluster %s %s\n", c.Name, readable(t, c))
		}
	}
	for _, l := range parseListeners(t, out.Resources[ListenerType]) {
		if !strings.HasPrefix(l.Name, "virtual") || strings.Contains(t.Name(), "/empty") || strings.Contains(t.Name(), "/filter") {
			fmt.Fprintf(&b, "listener %s %s\n", l.Name, readable(t, l))
		}
	}
	return b.String()
}
