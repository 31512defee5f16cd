package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"understudy.mesh/build/oci"
)

// TestWhatCannotRunIsNoImage has executables that an image cannot have: each error names file, layer and what is wrong.
func TestWhatCannotRunIsNoImage(t *testing.T) {
	script := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const dynamic = "/bin/sh" // of this machine: linked with libc alone
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	library := oci.File{Path: "/usr/lib/libc.so.6", Mode: 0o644, Content: []byte("not looked into")}
	for _, tc := range []struct {
		name, arch string
		envoy      string
		base       []oci.File
		want       string // "": an image
	}{
		{"with its library", runtime.GOARCH, dynamic, []oci.File{library}, ""},
		{"without its library", runtime.GOARCH, dynamic, nil, "/envoy (layer): it is linked with libc.so.6, which is not in the image"},
		{"for another machine", other, dynamic, []oci.File{library}, "/envoy (layer): it is for "},
		{"no executable", runtime.GOARCH, script, nil, "/envoy (layer): " + script + ": want an executable"},
		{"none", runtime.GOARCH, "missing", nil, "/envoy (layer): open missing: "},
		{"for what nothing is built", "riscv64", dynamic, nil, `architecture "riscv64": want amd64 or arm64`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := check(oci.Image{Architecture: tc.arch, Layers: []oci.Layer{
				{Comment: "base", Files: tc.base},
				{Comment: "layer", Files: []oci.File{{Path: "/envoy", Mode: 0o755, Source: tc.envoy}}},
			}})
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
