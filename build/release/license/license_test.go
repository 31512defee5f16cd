package license

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/build/release/linked"
)

// moduleDir makes a module's directory; a content that begins with @ is a file of testdata, with what stands behind a +.
func moduleDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if source, ok := strings.CutPrefix(content, "@"); ok {
			source, more, _ := strings.Cut(source, "+")
			read, err := os.ReadFile(filepath.Join("testdata", source))
			if err != nil {
				t.Fatal(err)
			}
			content = string(read) + more
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var example = linked.Module{Path: "example.com/m", Version: "v1.0.0"}

func TestFind(t *testing.T) {
	for _, tc := range []struct {
		name     string
		files    map[string]string
		packages []string
		licenses []string
		texts    []string
		notices  []string
	}{
		{"one", map[string]string{"LICENSE": "@MIT", "license.go": "package m", "main.go": "package m"}, []string{"."}, []string{"MIT"}, []string{"LICENSE"}, nil},
		{"in small letters, with a notice and patents", map[string]string{"license.txt": "@MIT", "NOTICE": "by us", "PATENTS": "granted"},
			nil, []string{"MIT"}, []string{"PATENTS", "license.txt"}, []string{"NOTICE"}},
		{"another one for its documentation", map[string]string{"LICENSE": "@MIT", "LICENSE.docs": "all rights reserved"}, nil, []string{"MIT"}, []string{"LICENSE"}, nil},
		{"one above a linked package, none of another's", map[string]string{"COPYING": "@MIT", "a/b/b.go": "package b", "a/LICENSE": "@MIT", "c/LICENSE": "all rights reserved"},
			[]string{"a/b"}, []string{"MIT"}, []string{"COPYING", "a/LICENSE"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, p := range tc.packages {
				tc.files[p+"/p.go"] = "package p"
			}
			found, err := Find(example, moduleDir(t, tc.files), tc.packages)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(found.Licenses, tc.licenses) || !slices.Equal(names(found.Texts), tc.texts) || !slices.Equal(names(found.Notices), tc.notices) {
				t.Errorf("licences %q, texts %q, notices %q", found.Licenses, names(found.Texts), names(found.Notices))
			}
		})
	}
}

func names(texts []Text) []string {
	var all []string
	for _, text := range texts {
		all = append(all, text.Name)
	}
	return all
}

// TestRefused has modules that must not be shipped: each error names module, file and what is wrong with it.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		words []string
	}{
		{"none", map[string]string{"README": "free to use"}, []string{"no file LICENSE"}},
		{"one for its documentation alone", map[string]string{"LICENSE.docs": "@MIT"}, []string{"no file LICENSE"}},
		{"patents alone", map[string]string{"PATENTS": "granted"}, []string{"no file LICENSE"}},
		{"unknown", map[string]string{"LICENSE": "Whoever uses this buys the author a beer, and writes him a letter about it."}, []string{"LICENSE: unknown", "0 %"}},
		{"mostly unknown", map[string]string{"LICENSE": "@MIT", "LICENSE.more": "@MIT+" + strings.Repeat("Not for those who build weapons. ", 100)}, []string{"LICENSE.more: unknown"}},
		{"known and not allowed", map[string]string{"LICENSE": "@BSD-4-Clause"}, []string{"LICENSE: BSD-4-Clause is not among"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Find(example, moduleDir(t, tc.files), nil)
			for _, words := range append(tc.words, "example.com/m v1.0.0") {
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%v: no %q", err, words)
				}
			}
		})
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "doc")
	modules := []Module{
		{Module: linked.Module{Path: "example.com/z", Version: "v2.0.0"}, Licenses: []string{"Apache-2.0", "MIT"}, Texts: []Text{{"LICENSE", []byte("z")}}, Notices: []Text{{"NOTICE", []byte("z is by Z\n")}}},
		{Module: example, Licenses: []string{"MIT"}, Texts: []Text{{"LICENSE", []byte("m")}, {"a/LICENSE", []byte("a")}}},
	}
	if err := Write(dir, Product{License: []byte("ours"), Notice: "Product\n"}, modules); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"LICENSE":                                 "ours",
		"licenses/example.com/m@v1.0.0/LICENSE":   "m",
		"licenses/example.com/m@v1.0.0/a/LICENSE": "a",
		"licenses/example.com/z@v2.0.0/LICENSE":   "z",
		"licenses/example.com/z@v2.0.0/NOTICE":    "z is by Z\n",
		"NOTICE": "Product\n\nThe binaries contain packages of these Go modules. Their licences are below licenses/; the unchanged\n" +
			"source of each is what `go mod download MODULE@VERSION` brings.\n\n" +
			"  example.com/m v1.0.0 (MIT)\n  example.com/z v2.0.0 (Apache-2.0 AND MIT)\n\n--- NOTICE of example.com/z v2.0.0\n\nz is by Z\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if err := Write(dir, Product{}, nil); err == nil {
		t.Error("written over what is there")
	}
}
