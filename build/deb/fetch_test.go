package deb

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// fakeApt puts an apt-get into the PATH that runs a script, with $archives where it is to put packages, and logs what it
// was asked for. The function returned reads that log.
func fakeApt(t *testing.T, script string) func() string {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	text := `#!/bin/sh
for word; do case $word in Dir::Cache=*) archives=${word#*=}/archives ;; APT::Architecture=*) arch=${word#*=} ;; update | install) verb=$word ;; esac; done
echo "$verb $arch" >>` + log + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		content, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(content), "\n", ", ")
	}
}

func TestFetchAsksOnce(t *testing.T) {
	asked := fakeApt(t, `if [ $verb = install ]; then touch $archives/b_$arch.deb $archives/a_$arch.deb $archives/lock; fi`)
	cache := t.TempDir()
	fetch := func(arch string, packages ...string) []string {
		t.Helper()
		files, err := Fetch(t.Context(), cache, arch, packages)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, file := range files {
			names = append(names, filepath.Base(file))
		}
		return names
	}
	for range 2 {
		if got, want := fetch("arm64", "a", "b"), []string{"a_arm64.deb", "b_arm64.deb"}; !slices.Equal(got, want) {
			t.Errorf("fetched %q, want %q", got, want)
		}
	}
	const once = "update arm64, install arm64, "
	if got := asked(); got != once {
		t.Errorf("apt-get was asked for %q, want %q", got, once)
	}
	fetch("arm64", "a")
	fetch("amd64", "a", "b")
	if got, want := asked(), once+once+strings.ReplaceAll(once, "arm64", "amd64"); got != want {
		t.Errorf("apt-get was asked for %q, want %q", got, want)
	}
	// What was fetched by other rules is fetched again.
	if err := os.WriteFile(filepath.Join(cache, "arm64", "a", "recipe"), []byte("an older one"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := asked()
	fetch("arm64", "a")
	if got := asked(); got != before+once {
		t.Errorf("apt-get was asked for %q after %q", got, before)
	}
}

func TestFetchLeavesNoHalf(t *testing.T) {
	fakeApt(t, `if [ $verb = install ]; then touch $archives/a.deb; echo "E: Unable to locate package b" >&2; exit 100; fi`)
	cache := t.TempDir()
	_, err := Fetch(t.Context(), cache, "arm64", []string{"a", "b"})
	want := "packages a b of Debian for arm64: apt-get install: exit status 100: E: Unable to locate package b"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	wantOnly(t, filepath.Join(cache, "arm64"), "lists")
}

func TestFetchIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(t.TempDir(), "started")
	if err := syscall.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	fakeApt(t, "exec cat "+started) // for ever: nobody writes
	cache := t.TempDir()
	done := make(chan error, 1)
	go func() {
		_, err := Fetch(ctx, cache, "amd64", []string{"a"})
		done <- err
	}()
	file, err := os.OpenFile(started, os.O_WRONLY, 0) // waits for the cat
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cancel()
	if err := <-done; err == nil {
		t.Error("an interrupted download is no error")
	}
	wantOnly(t, filepath.Join(cache, "amd64"), "lists")
}

// wantOnly wants nothing else in a directory.
func wantOnly(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != name {
			t.Errorf("%s is left in %s", entry.Name(), dir)
		}
	}
}
