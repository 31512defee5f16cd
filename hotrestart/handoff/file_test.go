package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newFile(t *testing.T, component, text string) *os.File {
	t.Helper()
	f, err := NewFile(component, func(w io.Writer) error { _, err := io.WriteString(w, text); return err })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFiles: a newcomer gets the files that it takes, whole and sealed, beside the state; one that takes none gets the state.
func TestFiles(t *testing.T) {
	for name, takes := range map[string][]string{"takes": {"xds", "unknown"}, "takes none": nil} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			path := t.TempDir()
			text := strings.Repeat("resource ", 1<<16)
			startParent(t, path, "old", func(o *oldGeneration) {
				o.files = Files{"xds": newFile(t, "xds", text), "other": newFile(t, "other", "of another release")}
			})
			c, err := dial(testContext(t), openTestDir(t, path, "new"), "old", dialOptions{timing: quick(), protocols: ownProtocols(), files: takes})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			defer c.Files().Close()
			if got := string(c.State()["vips"]); got != "240.240.0.1 a" {
				t.Errorf("vips: %q", got)
			}
			if len(takes) == 0 {
				if len(c.Files()) > 0 {
					t.Errorf("files: %v", c.Files())
				}
				return
			}
			for range 2 { // from its start each time
				if got, err := io.ReadAll(c.Files().Open("xds")); err != nil || string(got) != text {
					t.Errorf("%d bytes of %d, %v", len(got), len(text), err)
				}
			}
			if c.Files().Open("other") != nil {
				t.Error("a file came that was not taken")
			}
			if _, err := c.Files()["xds"].WriteAt([]byte("x"), 0); err == nil {
				t.Error("it can be changed")
			}
		})
	}
}

// TestParts: a newcomer that takes a component gets the parts of it, each as a file, and who hands it over leaves out what no newcomer takes.
func TestParts(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	const parts = 40 // more than come in one piece
	startParent(t, path, "old", func(o *oldGeneration) {
		o.files = Files{"module/directory": dir, "other/a": newFile(t, "other", "of another release")}
		for i := range parts {
			name := fmt.Sprint("module/", i)
			o.files[name] = newFile(t, "module", name)
		}
		if gone := o.files.Fit(); len(gone) != 1 || gone["module/directory"] == nil || !strings.Contains(gone["module/directory"].Error(), "regular") {
			t.Errorf("%v does not fit", gone)
		}
	})
	c, err := dial(testContext(t), openTestDir(t, path, "new"), "old", dialOptions{timing: quick(), protocols: ownProtocols(), files: []string{"module"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer c.Files().Close()
	if len(c.Files()) != parts || len(c.Files().Parts("module")) != parts || len(c.Files().Parts("other")) != 0 {
		t.Errorf("%v came", c.Files())
	}
	for part, file := range c.Files().Parts("module") {
		if got, err := io.ReadAll(file); err != nil || string(got) != "module/"+part {
			t.Errorf("part %s: %q, %v", part, got, err)
		}
	}
}

// TestTooManyFiles: nobody sends more than a newcomer takes, nor takes more.
func TestTooManyFiles(t *testing.T) {
	noLeaks(t)
	files, r := Files{}, stateReader{}
	f := newFile(t, "module", "text")
	defer f.Close()
	var err error
	for i := range maxFiles + 1 {
		name := fmt.Sprintf("module/%03d", i)
		fd, dupErr := dupDescriptor(f)
		if dupErr != nil {
			t.Fatal(dupErr)
		}
		files[name] = os.NewFile(uintptr(fd), name)
		if fd, dupErr = dupDescriptor(f); dupErr != nil {
			t.Fatal(dupErr)
		}
		if err = r.add(frame{kind: msgState, head: []byte(`{"component":"` + name + `"}`), fds: []int{fd}}); err != nil && i < maxFiles {
			t.Fatal(err)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("one more is taken: %v", err)
	}
	if gone := files.Fit(); len(files) != maxFiles || len(gone) != 1 || gone["module/256"] == nil {
		t.Errorf("%d files are left, %v are not", len(files), gone)
	}
	files.Close()
	r.files.Close()
}

// TestFileThatFails: what cannot be written, or is more than a newcomer takes, is no file.
func TestFileThatFails(t *testing.T) {
	noLeaks(t)
	fault := errors.New("no more")
	if _, err := NewFile("xds", func(io.Writer) error { return fault }); !errors.Is(err, fault) || !strings.Contains(err.Error(), "xds") {
		t.Errorf("got %v", err)
	}
	if _, err := NewFile("xds", func(w io.Writer) error { return w.(*os.File).Truncate(maxFile + 1) }); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("got %v", err)
	}
}

// TestStrangeFiles: what is no regular file, too large, or there already, ends the hand-off and leaves nothing open.
func TestStrangeFiles(t *testing.T) {
	noLeaks(t)
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{large, "/dev/null", "/"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var r stateReader
		fd, err := dupDescriptor(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.add(frame{kind: msgState, head: []byte(`{"component":"xds"}`), fds: []int{fd}}); err == nil || !strings.Contains(err.Error(), "xds") {
			t.Errorf("%s: %v", path, err)
		}
		f.Close()
	}
	f := newFile(t, "xds", "text")
	defer f.Close()
	r := stateReader{state: State{"xds": nil}}
	r.state["xds"] = []byte("bytes")
	fd, err := dupDescriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.add(frame{kind: msgState, head: []byte(`{"component":"xds"}`), fds: []int{fd}}); err == nil {
		t.Error("bytes and a file of one name")
	}
}

func dupDescriptor(f *os.File) (int, error) { return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) }
