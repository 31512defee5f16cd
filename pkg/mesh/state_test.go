package mesh

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// se is a ServiceEntry for one TCP port of one host.
func se(name, host string, port int) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s}\nspec:\n  hosts: [%s]\n  ports: [{number: %d, name: p, protocol: TCP}]\n  resolution: DNS\n", name, host, port)
}

// statuses describes a source's state: the hosts and ports in force, and each document's status.
func statuses(s *Source) string {
	var b strings.Builder
	for _, svc := range s.registry.services {
		for _, p := range svc.Ports {
			fmt.Fprintf(&b, "%s:%d ", svc.Host, p.Number)
		}
	}
	b.WriteString("|")
	for _, d := range s.Report().Documents {
		fmt.Fprintf(&b, " %s", d.Name+"="+string(d.Status))
	}
	return b.String()
}

// TestTransitions steps a file through its life, and compares the whole state at each step.
func TestTransitions(t *testing.T) {
	a, b, c := se("a", "a.x", 1), se("b", "b.x", 2), se("c", "c.x", 3)
	badB := strings.Replace(b, "TCP", "NOPE", 1)
	broken := "kind: [\n"
	join := func(docs ...string) string { return strings.Join(docs, "---\n") }
	for _, tt := range []struct {
		name  string
		steps []string // content of the file; "-" removes it
		want  []string
	}{
		{"A, A again, B, empty", []string{a, a, b, "# nothing\n"},
			[]string{"a.x:1 | a=ok", "a.x:1 | a=ok", "b.x:2 | b=ok", "| =ignored"}},
		{"bad field keeps the last good", []string{join(a, b), join(a, badB), join(a, b)},
			[]string{"a.x:1 b.x:2 | a=ok b=ok", "a.x:1 b.x:2 | a=ok b=stale", "a.x:1 b.x:2 | a=ok b=ok"}},
		{"bad from the start", []string{join(a, badB), join(a, b)},
			[]string{"a.x:1 | a=ok b=error", "a.x:1 b.x:2 | a=ok b=ok"}},
		{"bad, bad again, removed", []string{join(a, b), join(a, badB), join(a, badB), a},
			[]string{"a.x:1 b.x:2 | a=ok b=ok", "a.x:1 b.x:2 | a=ok b=stale", "a.x:1 b.x:2 | a=ok b=stale", "a.x:1 | a=ok"}},
		{"bad and worse", []string{b, badB, broken, b},
			[]string{"b.x:2 | b=ok", "b.x:2 | b=stale", "b.x:2 | b=stale", "b.x:2 | b=ok"}},
		{"unreadable document, others change", []string{join(a, b), join(strings.Replace(a, "number: 1", "number: 9", 1), broken)},
			[]string{"a.x:1 b.x:2 | a=ok b=ok", "a.x:9 b.x:2 | a=ok b=stale"}},
		{"unreadable document swallows two", []string{join(a, b, c), join(a, broken)},
			[]string{"a.x:1 b.x:2 c.x:3 | a=ok b=ok c=ok", "a.x:1 b.x:2 c.x:3 | a=ok b=stale c=stale"}},
		{"order does not matter", []string{join(a, b), join(b, a)}, []string{"a.x:1 b.x:2 | a=ok b=ok", "a.x:1 b.x:2 | b=ok a=ok"}},
		{"file removed and back", []string{a, "-", a}, []string{"a.x:1 | a=ok", "|", "a.x:1 | a=ok"}},
		{"name twice", []string{join(a, strings.Replace(b, "name: b", "name: a", 1)), b},
			[]string{"a.x:1 | a=ok a=error", "b.x:2 | b=ok"}},
		{"list", []string{"{apiVersion: v1, kind: List, items: [" + flow("a", "a.x") + ", " + flow("b", "b.x") + "]}",
			"{apiVersion: v1, kind: List, items: [" + flow("a", "a.x") + ", " + flow("b", "-") + "]}"},
			[]string{"a.x:1 b.x:1 | a=ok b=ok", "a.x:1 b.x:1 | a=ok b=stale"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := newTestSource(t, dir, testOptions())
			for i, text := range tt.steps {
				path := filepath.Join(dir, "x.yaml")
				if text == "-" {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				} else {
					writeFile(t, path, text)
				}
				step(t, s, i == 0)
				if got := statuses(s); got != tt.want[i] {
					t.Fatalf("step %d: %q, want %q", i+1, got, tt.want[i])
				}
			}
		})
	}
}

// flow is a ServiceEntry in one line.
func flow(name, host string) string {
	return fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %s}, spec: {hosts: [%s], ports: [{number: 1, name: p, protocol: TCP}], resolution: DNS}}", name, host)
}

// step reads the directory; files that were just emptied count as old.
func step(t *testing.T, s *Source, first bool) {
	t.Helper()
	if first {
		if _, err := s.Load(); err != nil {
			t.Fatal(err)
		}
		return
	}
	if _, unsettled := s.rescan(); unsettled {
		s.dir.o.now = func() time.Time { return time.Now().Add(2 * emptyGrace) }
		s.rescan()
		s.dir.o.now = time.Now
	}
}

// TestSameIsNoChange wants no new registry from a directory that did not change, or changed in ways that do not count.
func TestSameIsNoChange(t *testing.T) {
	dir := writeFiles(t, map[string]string{"x.yaml": se("a", "a.x", 1), "notes.txt": "a"})
	s, _ := newTestSource(t, dir, testOptions())
	step(t, s, true)
	for _, change := range []func(){
		func() {},
		func() { writeFile(t, filepath.Join(dir, "notes.txt"), "b") },
		func() { writeFile(t, filepath.Join(dir, "y.yaml"), "kind: [") },
		func() { writeFile(t, filepath.Join(dir, "z.yaml"), se("a", "a.x", 1)) },
	} {
		change()
		if r, _ := s.rescan(); r != nil {
			t.Errorf("a new registry: %s", statuses(s))
		}
	}
}

// TestEmptiedInPlace wants a file that a writer has just truncated to keep its documents until it proves empty.
func TestEmptiedInPlace(t *testing.T) {
	dir := writeFiles(t, map[string]string{"x.yaml": se("a", "a.x", 1)})
	s, _ := newTestSource(t, dir, testOptions())
	step(t, s, true)
	if err := os.Truncate(filepath.Join(dir, "x.yaml"), 0); err != nil {
		t.Fatal(err)
	}
	r, unsettled := s.rescan()
	if r != nil || !unsettled || statuses(s) != "a.x:1 | a=ok" {
		t.Errorf("registry %v, unsettled %v, %s", r, unsettled, statuses(s))
	}
}

// TestBadFiles wants each file that is none reported, at once, and the good one in force.
func TestBadFiles(t *testing.T) {
	dir := writeFiles(t, map[string]string{"good.yaml": se("a", "a.x", 1), "empty.yaml": "", ".hidden.yaml": "kind: ["})
	at := func(name string) string { return filepath.Join(dir, name) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(unix.Mkfifo(at("fifo.yaml"), 0o666))
	check(os.Mkdir(at("dir.yaml"), 0o755))
	check(os.Symlink("loop.yaml", at("loop.yaml")))
	check(os.Symlink("nowhere", at("dangling.json")))
	check(os.Symlink("/proc/self/mem", at("unreadable.yml")))
	check(os.Symlink("/dev/zero", at("device.yaml")))
	check(os.WriteFile(at("huge.yaml"), nil, 0o644))
	check(os.Truncate(at("huge.yaml"), 100<<20))
	check(os.WriteFile(at("binary.yaml"), []byte("\x00\xff\xfe\x01"), 0o644))

	s, _ := newTestSource(t, dir, testOptions())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	step(t, s, true)
	runtime.ReadMemStats(&after)
	if spent := after.TotalAlloc - before.TotalAlloc; spent > 10<<20 {
		t.Errorf("reading allocated %d bytes", spent)
	}
	want := map[string]string{
		"fifo.yaml": "FIFO", "dir.yaml": "directory", "loop.yaml": "symbolic links", "dangling.json": "no such file",
		"unreadable.yml": "cannot be read", "device.yaml": "device", "huge.yaml": "104857600 bytes", "binary.yaml": "YAML",
		"empty.yaml": "no document", "good.yaml": "",
	}
	documents := s.Report().Documents
	if len(documents) != len(want) {
		t.Errorf("%d documents reported, want %d", len(documents), len(want))
	}
	for _, d := range documents {
		reason, known := want[d.File]
		if !known || !strings.Contains(d.Reason, reason) || (d.Status == statusOK) != (d.File == "good.yaml") {
			t.Errorf("%s: %s: %s", d.File, d.Status, d.Reason)
		}
	}
	if got := s.registry.AutoHosts(); !slices.Equal(got, []string{"a.x"}) {
		t.Errorf("hosts %v", got)
	}
}

// TestFileTurnsBad wants the documents of a file that cannot be read any more kept.
func TestFileTurnsBad(t *testing.T) {
	dir := writeFiles(t, map[string]string{"x.yaml": se("a", "a.x", 1)})
	s, log := newTestSource(t, dir, testOptions())
	step(t, s, true)
	path := filepath.Join(dir, "x.yaml")
	if err := os.Truncate(path, 100<<20); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		step(t, s, false)
	}
	if got := statuses(s); got != "a.x:1 | =error a=stale" {
		t.Errorf("%s", got)
	}
	if n := bytes.Count(log.Bytes(), []byte("at most 16777216 are read")); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log)
	}
	writeFile(t, path, se("a", "a.x", 1))
	step(t, s, false)
	if got := statuses(s); got != "a.x:1 | a=ok" {
		t.Errorf("%s", got)
	}
}

// TestAliasBomb wants YAML aliases that explode refused within bounded memory.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		ref := fmt.Sprintf("*a%d", i-1)
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.Join(slices.Repeat([]string{ref}, 9), ", "))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	checkRefused(t, b.String(), "", "excessive aliasing")
	runtime.ReadMemStats(&after)
	if spent := after.TotalAlloc - before.TotalAlloc; spent > 256<<20 {
		t.Errorf("the bomb allocated %d MiB", spent>>20)
	}
}

func TestKinds(t *testing.T) {
	restricting := []string{
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n",
		"apiVersion: security.istio.io/v1\nkind: SomethingNew\nmetadata: {name: a}\n",
		"apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec: {}\n",
		"apiVersion: security.istio/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {}\n",
	}
	for _, text := range restricting {
		dir := writeFiles(t, map[string]string{"x.yaml": se("s", "s.x", 1) + "---\n" + text})
		s, _ := newTestSource(t, dir, testOptions())
		if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), "x.yaml: document 2") || !strings.Contains(err.Error(), "--allowIgnored") {
			t.Errorf("Load: %v", err)
		}
		o := testOptions()
		o.AllowIgnored = true
		s, _ = newTestSource(t, dir, o)
		if _, err := s.Load(); err != nil {
			t.Errorf("Load with AllowIgnored: %v", err)
		}
		if d := s.Report().Documents[1]; d.Status != statusIgnored {
			t.Errorf("%+v", d)
		}
	}
	s, log := newTestSource(t, writeFiles(t, map[string]string{"x.yaml": "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n"}), testOptions())
	step(t, s, true)
	step(t, s, false)
	if d := s.Report().Documents[0]; d.Status != statusIgnored || bytes.Count(log.Bytes(), []byte("document ignored")) != 1 {
		t.Errorf("%+v\n%s", d, log)
	}
	// At a later change it is a bad document like any other.
	writeFile(t, filepath.Join(s.dir.path, "y.yaml"), restricting[0])
	step(t, s, false)
	if d := s.Report().Documents[1]; d.Status != statusError {
		t.Errorf("%+v", d)
	}
}

func TestNewSourceErrors(t *testing.T) {
	file := filepath.Join(writeFiles(t, map[string]string{"f": ""}), "f")
	good := t.TempDir()
	for _, c := range []struct {
		dir   string
		spoil func(*Options)
		want  string
	}{
		{file, nil, "not a directory"}, {file + "/none", nil, "not a directory"},
		{good, func(o *Options) { o.IPv4, o.IPv6 = false, false }, "neither IPv4 nor IPv6"},
		{good, func(o *Options) { o.OutboundPort = 0 }, "capture ports"},
		{good, func(o *Options) { o.Namespace = "" }, "namespace"},
		{good, func(o *Options) { o.ConnectTimeout = 0 }, "connectTimeout is 0s"},
		{good, func(o *Options) { o.DetectionTimeout = -1 }, "protocolDetectionTimeout is -1ns"},
	} {
		o := testOptions()
		if c.spoil != nil {
			c.spoil(&o)
		}
		if _, err := NewSource(c.dir, o, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("NewSource(%s): %v, want %q", c.dir, err, c.want)
		}
	}
}
