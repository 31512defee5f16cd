package security

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"understudy.mesh/pkg/security/credential"
	"understudy.mesh/tests/catest"
)

// written is the set of files in a directory, which has to be one: the key belongs to the certificate, the root has signed it.
func written(t *testing.T, directory string) map[string]string {
	t.Helper()
	set := make(map[string]string)
	for _, name := range []string{KeyFile, ChainFile, RootFile} {
		data, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			t.Fatal(err)
		}
		set[name] = string(data)
	}
	if _, err := credential.Pair([]byte(set[ChainFile]), []byte(set[KeyFile])); err != nil {
		t.Fatal(err)
	}
	return set
}

// TestOutput: the certificate lies in a directory for others, with each rotation anew, though nobody asks for it by SDS. What was there
// before is replaced, and nothing is left behind.
func TestOutput(t *testing.T) {
	for name, mode := range map[string]fs.FileMode{"for the owner": 0, "for all": 0o644} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			write(t, directory, KeyFile, "of another agent")
			synctest.Test(t, func(t *testing.T) {
				c := config(nil)
				c.Output, c.OutputMode, c.Mounted = directory, mode, []string{directory}
				b := newBench(t, c)
				b.start()
				defer func() { b.stop() }()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { b.m.follow(ctx, b.m.output); close(done) }()
				defer func() { cancel(); <-done }()
				synctest.Wait()
				first := written(t, directory)
				pass(13 * time.Hour)
				second := written(t, directory)
				if first[KeyFile] == second[KeyFile] || first[ChainFile] == second[ChainFile] {
					t.Error("the certificate is the one before the rotation")
				}
			})
			want := fs.FileMode(0o600)
			if mode != 0 {
				want = mode
			}
			for _, name := range []string{KeyFile, ChainFile, RootFile} {
				info, err := os.Stat(filepath.Join(directory, name))
				if err != nil || info.Mode() != want {
					t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
				}
			}
		})
	}
}

// TestOutputOfASuccessor: a generation that drains writes nothing any more.
func TestOutputOfASuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := catest.New(t, "root")
		c := config(nil)
		c.Output = filepath.Join(t.TempDir(), "certs")
		m := newManager(t, c)
		m.admit(issued(t, ca, workload, 0, time.Hour), time.Now())
		ended := make(chan struct{})
		go func() { m.follow(t.Context(), m.output); close(ended) }()
		synctest.Wait()
		before := written(t, c.Output)
		m.Retire()
		<-ended
		m.admit(issued(t, ca, workload, 0, time.Hour), time.Now())
		synctest.Wait()
		if got := written(t, c.Output); got[KeyFile] != before[KeyFile] {
			t.Error("what the successor has written is overwritten")
		}
	})
}

// TestOutputIsOneSet: whoever reads by the link sees one set, at any moment; old ones go after a while.
func TestOutputIsOneSet(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "deep", "certs")
	ca := catest.New(t, "root")
	c := config(nil)
	c.Output = directory
	m := newManager(t, c)
	sets := func() (n int) {
		entries, err := os.ReadDir(directory)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), setPrefix) {
				n++
			}
		}
		return n
	}
	for range 3 {
		m.admit(issued(t, ca, workload, 0, time.Hour), time.Now())
		if err := m.output(); err != nil {
			t.Fatal(err)
		}
		first, err := filepath.EvalSymlinks(filepath.Join(directory, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.output(); err != nil { // nothing new
			t.Fatal(err)
		}
		if again, err := filepath.EvalSymlinks(filepath.Join(directory, dataLink)); err != nil || again != first {
			t.Errorf("%s, %v; want %s, as nothing has changed", again, err, first)
		}
		written(t, directory)
	}
	if n := sets(); n != 3 {
		t.Errorf("%d sets, want 3: somebody may be reading", n)
	}
	current, err := os.Readlink(filepath.Join(directory, dataLink))
	if err != nil {
		t.Fatal(err)
	}
	if err := removeSets(directory, current, time.Now().Add(2*leftover)); err != nil {
		t.Fatal(err)
	}
	written(t, directory)
	if n := sets(); n != 1 {
		t.Errorf("%d sets, want one", n)
	}
}

// TestOutputFails: a directory that cannot be written is named once, and tried again.
func TestOutputFails(t *testing.T) {
	file := write(t, t.TempDir(), "file", "")
	for directory, want := range map[string]string{
		filepath.Join(file, "certs"): "OUTPUT_CERTS: mkdir " + file,
		"/proc/self":                 "OUTPUT_CERTS /proc/self: make a directory there: ",
	} {
		synctest.Test(t, func(t *testing.T) {
			c := config(nil)
			c.Output = directory
			b := newBench(t, c)
			b.m.admit(issued(t, b.ca, workload, 0, time.Hour), time.Now())
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { b.m.follow(ctx, b.m.output); close(done) }()
			defer func() { cancel(); <-done }()
			pass(2*rewriteEvery + time.Second)
			if said := b.log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, want) {
				t.Errorf("log %q, want one line with %q", said, want)
			}
			if directory == "/proc/self" {
				return
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			pass(rewriteEvery)
			written(t, directory)
		})
	}
}

// TestKeep: a container that is restarted has its certificate again, where that lay in memory; nobody else can read it.
func TestKeep(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "understudy-keep-")
	if err != nil {
		t.Skipf("no file system in memory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	ca := catest.New(t, "root")
	c := config(nil)
	c.Keep = filepath.Join(memory, "identity")
	first := newManager(t, c)
	first.admit(issued(t, ca, workload, 0, time.Hour), time.Now())
	if err := first.keep(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(c.Keep)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	second := newManager(t, c)
	second.recall()
	if s, err := second.Get(Workload); err != nil || string(s.Key) != string(first.newest().Key) {
		t.Errorf("%v, %v; want the one that was kept", s, err)
	}
	third := newManager(t, c)
	third.admit(issued(t, ca, workload, 0, time.Hour), time.Now())
	given := third.newest()
	third.recall()
	if third.newest() != given {
		t.Error("what was kept goes before what a predecessor has given")
	}
}

// TestRestart: a manager that runs writes for others and keeps; the next one has that, though its CA is away.
func TestRestart(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "understudy-keep-")
	if err != nil {
		t.Skipf("no file system in memory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	ca := catest.New(t, "root")
	c := config(ca.Serve())
	c.Keep, c.Output = filepath.Join(memory, "identity"), filepath.Join(memory, "certs")
	run := func() (*Manager, func()) {
		m := newManager(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = m.Run(ctx); close(done) }()
		return m, func() { cancel(); <-done }
	}
	first, stop := run()
	before := await(t, first, Workload, "a certificate", there)
	for late := time.Now().Add(deadline); !exists(c.Keep) || !exists(filepath.Join(c.Output, RootFile)); {
		if time.Now().After(late) {
			t.Fatal("nothing was written")
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	written(t, c.Output)
	ca.Answer(func(context.Context, *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
		return nil, status.Error(codes.Unavailable, "away")
	})
	second, stop := run()
	defer stop()
	if after := await(t, second, Workload, "the certificate that was kept", there); string(after.Key) != string(before.Key) {
		t.Error("the key is another one")
	}
}

// TestKeepRefuses: no key is written to a disk, and nothing that is no certificate is read.
func TestKeepRefuses(t *testing.T) {
	var log syncBuffer
	disk := t.TempDir()
	var info syscall.Statfs_t
	if err := syscall.Statfs(disk, &info); err != nil {
		t.Fatal(err)
	}
	if uint32(info.Type) == tmpfsMagic {
		t.Skipf("%s is in memory", disk)
	}
	c := config(nil)
	c.Keep, c.Log = filepath.Join(disk, "identity"), slog.New(slog.NewTextHandler(&log, nil))
	m := newManager(t, c)
	m.recall() // there is none
	m.admit(issued(t, catest.New(t, "root"), workload, 0, time.Hour), time.Now())
	if err := m.keep(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(disk); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v; want nothing on a disk", entries, err)
	}
	if err := os.Mkdir(c.Keep, 0o700); err != nil {
		t.Fatal(err)
	}
	m = newManager(t, c)
	m.recall()
	if said := log.String(); !strings.Contains(said, "is no regular file") || m.newest() != nil {
		t.Errorf("log %q", said)
	}
}
