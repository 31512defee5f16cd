package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const most = 1 << 20

func load(t testing.TB, path string) (snapshot string, records []string, damaged error) {
	t.Helper()
	c, err := New(path, most).Load(most)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range c.Records {
		records = append(records, string(r))
	}
	return string(c.Snapshot), records, c.Damaged
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expect loads what is at path.
func expect(t testing.TB, path, snapshot string, records ...string) {
	t.Helper()
	gotSnapshot, gotRecords, damaged := load(t, path)
	if gotSnapshot != snapshot || !slices.Equal(gotRecords, records) || damaged != nil {
		t.Errorf("have %q and %q (%v), want %q and %q", gotSnapshot, gotRecords, damaged, snapshot, records)
	}
}

func TestAppendAndRewrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := New(path, 100)
	if _, err := s.Load(most); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	if err := s.Append([]byte("x")); !errors.Is(err, ErrRewrite) {
		t.Errorf("without a snapshot: %v", err)
	}
	must(t, s.Rewrite([]byte("one")))
	expect(t, path, "one")
	must(t, s.Append([]byte("a")))
	must(t, s.Append(nil))
	must(t, s.Append([]byte("c")))
	expect(t, path, "one", "a", "", "c")
	if err := s.Append(make([]byte, 50)); !errors.Is(err, ErrRewrite) {
		t.Errorf("beyond the limit: %v", err)
	}
	expect(t, path, "one", "a", "", "c")
	must(t, s.Rewrite([]byte("two")))
	expect(t, path, "two")
	must(t, s.Append([]byte("d")))
	expect(t, path, "two", "d")
	if err := New(path, 100).Append([]byte("e")); !errors.Is(err, ErrRewrite) {
		t.Errorf("another store's snapshot: %v", err)
	}
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) != 2 {
		t.Errorf("files are %q, %v", names, err)
	}
}

// TestOthersWrite: other agents, of releases with and without a journal, use the same files.
func TestOthersWrite(t *testing.T) {
	for name, write := range map[string]func(path string) error{
		"a snapshot, in place": func(path string) error { return os.WriteFile(path, []byte("old release"), 0o600) },
		"a snapshot, renamed":  func(path string) error { _, err := replace(path, []byte("old release")); return err },
		"the same snapshot":    func(path string) error { _, err := replace(path, []byte("mine")); return err },
		"snapshot and record": func(path string) error {
			o := New(path, most)
			return errors.Join(o.Rewrite([]byte("its")), o.Append([]byte("r")))
		},
		"no snapshot": os.Remove,
		"no journal":  func(path string) error { return os.Remove(path + suffix) },
		"more in the journal": func(path string) error {
			data, err := os.ReadFile(path + suffix)
			return errors.Join(err, os.WriteFile(path+suffix, append(data, "x"...), 0o600))
		},
		"a journal that is a link": func(path string) error {
			return errors.Join(os.Rename(path+suffix, path+".real"), os.Symlink(path+".real", path+suffix))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			s := New(path, most)
			must(t, s.Rewrite([]byte("mine")))
			must(t, s.Append([]byte("a")))
			must(t, write(path))
			if err := s.Append([]byte("b")); err == nil {
				t.Fatal("a record went to a journal that is void")
			}
			must(t, s.Rewrite([]byte("mine again")))
			must(t, s.Append([]byte("c")))
			expect(t, path, "mine again", "c")
		})
	}
}

// TestVoidJournal: a snapshot that somebody else wrote counts, and nothing of the journal.
func TestVoidJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := New(path, most)
	must(t, s.Rewrite([]byte("mine")))
	must(t, s.Append([]byte("a")))
	must(t, os.WriteFile(path, []byte("an older release's"), 0o600))
	expect(t, path, "an older release's")
}

// TestDamage: of a damaged journal what comes before the damage counts.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	s := New(path, most)
	must(t, s.Rewrite([]byte("snapshot")))
	want := []string{"first", "second", "third"}
	for _, r := range want {
		must(t, s.Append([]byte(r)))
	}
	whole, err := os.ReadFile(path + suffix)
	must(t, err)
	for i := range whole {
		for kind, data := range map[string][]byte{
			"cut":     whole[:i],
			"flipped": slices.Concat(whole[:i], []byte{whole[i] ^ 0x10}, whole[i+1:]),
		} {
			must(t, os.WriteFile(path+suffix, data, 0o600))
			snapshot, records, damaged := load(t, path)
			if snapshot != "snapshot" || len(records) > len(want) || !slices.Equal(records, want[:len(records)]) {
				t.Fatalf("%s at %d: %q and %q", kind, i, snapshot, records)
			}
			if damaged == nil && (kind == "flipped" || !onBoundary(whole, i)) {
				t.Fatalf("%s at %d: nobody says so", kind, i)
			}
		}
	}
}

// onBoundary tells whether a record begins at i.
func onBoundary(whole []byte, i int) bool {
	for at := whole; ; {
		if len(whole)-len(at) == i {
			return i > 0
		}
		_, rest, err := next(at)
		if err != nil || len(at) == 0 {
			return false
		}
		at = rest
	}
}

func TestOddPlaces(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "state"), []byte("s"), 0o600))
	for name, make := range map[string]func(path string) error{
		"fifo":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"too long":  func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), most+1), 0o600) },
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		must(t, make(path))
		if _, err := New(path, most).Load(most); err == nil {
			t.Errorf("%s as the snapshot: no error", name)
		}
		must(t, os.RemoveAll(path))
		must(t, make(filepath.Join(dir, "state"+suffix)))
		if snapshot, records, damaged := load(t, filepath.Join(dir, "state")); snapshot != "s" || records != nil || damaged == nil {
			t.Errorf("%s as the journal: %q, %q, %v", name, snapshot, records, damaged)
		}
		must(t, os.RemoveAll(filepath.Join(dir, "state"+suffix)))
	}
}

// TestDiskFull: what was written stays, and later records are not hidden by half a one.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount a small file system: %v", err)
		}
		t.Skipf("mount a small file system: %v", err)
	}
	defer func() { must(t, syscall.Unmount(dir, 0)) }()
	path, other := filepath.Join(dir, "state"), filepath.Join(dir, "other")
	must(t, os.WriteFile(other, make([]byte, 16<<10), 0o600))
	s := New(path, most)
	must(t, s.Rewrite([]byte("snapshot")))
	want := []string{"first"}
	must(t, s.Append([]byte("first")))
	var err error
	for i := 0; err == nil; i++ {
		record := fmt.Sprintf("%d%s", i, strings.Repeat("x", 3000))
		if err = s.Append([]byte(record)); err == nil {
			want = append(want, record)
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	expect(t, path, "snapshot", want...)
	if err := s.Rewrite(bytes.Repeat([]byte("x"), 50<<10)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a snapshot for which there is no room: %v", err)
	}
	expect(t, path, "snapshot", want...)
	must(t, s.Append([]byte("x"))) // as much as still fits
	expect(t, path, "snapshot", append(want, "x")...)
	must(t, os.Remove(other)) // there is room again
	must(t, s.Rewrite([]byte("small")))
	must(t, s.Append([]byte("later")))
	expect(t, path, "small", "later")
}

// FuzzParse: whatever is in the file, what is read is a part of it.
func FuzzParse(f *testing.F) {
	f.Add(framed(framed(nil, header(7)), []byte("record")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parse(data, 7)
		again := framed(nil, header(7))
		for _, r := range all {
			again = framed(again, r)
		}
		if len(all) > 0 && !bytes.HasPrefix(data, again) || len(all) > 0 && err == nil && len(again) != len(data) {
			t.Fatalf("%d records of %q, %v", len(all), data, err)
		}
	})
}
