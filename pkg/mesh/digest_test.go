package mesh

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDigest: what is read without parsing is what a registry was made of, in every process; names count as bytes do.
func TestDigest(t *testing.T) {
	files := map[string]string{"a.yaml": doc("name: a", "hosts: [a.x], ports: [{number: 80, name: p}]"), "b.yaml": "# nothing\n"}
	dir := writeFiles(t, files)
	digest := func() Digest {
		t.Helper()
		s, _ := newTestSource(t, dir, testOptions())
		d, err := s.Digest()
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		if r.MadeOf() != d {
			t.Errorf("made of %x, the files are %x", r.MadeOf(), d)
		}
		return d
	}
	seen := map[Digest]string{digest(): "at first"}
	for _, step := range []struct {
		what   string
		change func()
	}{
		{"a comment more", func() { writeFile(t, filepath.Join(dir, "b.yaml"), "# nothing at all\n") }},
		{"a file more", func() { writeFile(t, filepath.Join(dir, "c.yaml"), "") }},
		{"another name", func() {
			if err := os.Rename(filepath.Join(dir, "c.yaml"), filepath.Join(dir, "d.yaml")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		step.change()
		d := digest()
		if before, is := seen[d]; is || d == (Digest{}) {
			t.Errorf("%s: %x, as %s", step.what, d, before)
		}
		seen[d] = step.what
	}
}

// TestMadeOfMoreThanTheFiles: a registry that another process would not make of the same files has no digest.
func TestMadeOfMoreThanTheFiles(t *testing.T) {
	good := doc("name: a", "hosts: [a.x], ports: [{number: 80, name: p}]")
	dir := writeFiles(t, map[string]string{"a.yaml": good})
	s, _ := newTestSource(t, dir, testOptions())
	load := func(want bool, what string) {
		t.Helper()
		r, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.MadeOf() != (Digest{}); got != want {
			t.Errorf("%s: it has a digest: %v", what, got)
		}
	}
	load(true, "a good document")
	writeFile(t, filepath.Join(dir, "a.yaml"), doc("name: a", "hosts: [''], ports: [{number: 80, name: p}]"))
	load(false, "its version before")
	writeFile(t, filepath.Join(dir, "a.yaml"), good)
	load(true, "good again")
	if err := os.Mkdir(filepath.Join(dir, "b.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	load(false, "a file that cannot be read")
	if d, err := s.Digest(); err == nil {
		t.Errorf("a directory has the digest %x", d)
	}
}
