package istiod

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/pkg/istiod/internal/store"
)

// keeping has an agent keep what istiod says in a file, and look for it at once.
func keeping(path string) func(*Istiod) {
	return func(i *Istiod) {
		i.loop.lastGood.store, i.loop.lastGood.every = store.New(path, time.Hour), moment
	}
}

// keptUnder has an agent under f keep its first configuration, and returns the file.
func keptUnder(t *testing.T, f *fake) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "istiod.resources")
	a := newAgent(t, f, keeping(path))
	_, s := a.first(f)
	s.send(nameTable("t1", "v.example=240.240.0.1"))
	a.pending("ready")
	for end := time.Now().Add(deadline); ; time.Sleep(5 * time.Millisecond) {
		// The names may come after the first look.
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("v.example")) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is kept")
		}
	}
	a.stop()
	return path
}

// TestLastGood: an agent that starts while istiod is away gives Envoy what the one before it had, and is ready; istiod then says
// what is different.
func TestLastGood(t *testing.T) {
	f := startFake(t)
	path := keptUnder(t, f)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	f.stop()
	b := newAgent(t, f, keeping(path))
	e := b.inherits()
	b.answers("v.example=240.240.0.1")
	b.pending("ready")
	if since := b.now().Since; time.Since(since) < moment/2 && b.now().Connected {
		t.Errorf("its configuration is of %v", since)
	}
	f.start()
	s := f.stream()
	s.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	s.give(clusterType, "a=1", "b=1")
	e.gets("Cluster +b", "")
}

// TestLastGoodSparesTheDisk: nothing is written while the disk rests.
func TestLastGoodSparesTheDisk(t *testing.T) {
	f := startFake(t)
	path := keptUnder(t, f)
	f.stop()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.start()
	a := newAgent(t, f, func(i *Istiod) {
		keeping(path)(i)
		i.loop.lastGood.rest = time.Now().Add(time.Hour)
	})
	a.first(f)
	<-time.After(2 * moment)
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written in the time of rest")
	}
}

// TestLastGoodWarnsOnce: a volume that is missing is said once, and what istiod says is kept once there is one.
func TestLastGoodWarnsOnce(t *testing.T) {
	f := startFake(t)
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "istiod.resources")
	var mu sync.Mutex
	var log bytes.Buffer
	a := newAgent(t, f, func(i *Istiod) {
		keeping(path)(i)
		i.loop.lastGood.every = time.Millisecond
		i.log = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))
	})
	a.first(f)
	const words = "is not kept"
	said := func() int {
		mu.Lock()
		defer mu.Unlock()
		return strings.Count(log.String(), words)
	}
	for end := time.Now().Add(deadline); said() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	<-time.After(moment)
	if got := said(); got != 1 {
		t.Errorf("it was said %d times", got)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing is kept")
		}
	}
}

// lockedWriter writes for several goroutines.
type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// TestLastGoodIsNotNeeded: an istiod that answers is what counts.
func TestLastGoodIsNotNeeded(t *testing.T) {
	f := startFake(t)
	path := keptUnder(t, f)
	b := newAgent(t, f, keeping(path))
	e := b.envoy()
	e.asks(clusterType)
	s := f.stream()
	s.asked("Cluster node")
	s.give(clusterType, "new=1")
	e.gets("Cluster +new", "")
	s.asked("Cluster ack n1")
	<-time.After(storedAfter + moment) // not a synchronisation: nothing is to happen
	e.asks(endpointType, "a")
	s.asked("ClusterLoadAssignment +a") // which was kept, too
}

// TestLastGoodAtTheEnd: what Envoy has is written as its generation ends, whenever the last look was, and when it was written last.
func TestLastGoodAtTheEnd(t *testing.T) {
	for name, end := range map[string]func(a *agent){
		"in a drain":   func(a *agent) { a.Keep() },
		"without time": func(a *agent) { a.Keep(); a.Keep(); a.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t)
			path := filepath.Join(t.TempDir(), "istiod.resources")
			a := newAgent(t, f, func(i *Istiod) {
				i.loop.lastGood = lastGood{store: store.New(path, time.Hour), every: time.Hour, rest: time.Now().Add(time.Hour)}
			})
			_, s := a.first(f)
			s.send(nameTable("t1", "v.example=240.240.0.1"))
			a.pending("ready")
			if _, err := os.Stat(path); err == nil {
				t.Fatal("it is written already")
			}
			end(a)
			for late := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
				if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
					break
				}
				if time.Now().After(late) {
					t.Fatal("nothing is kept")
				}
			}
		})
	}
}

// TestLastGoodIsAnothers: a file that another generation has written is replaced, not taken for one's own.
func TestLastGoodIsAnothers(t *testing.T) {
	f := startFake(t)
	path := filepath.Join(t.TempDir(), "istiod.resources")
	a := newAgent(t, f, keeping(path))
	_, s := a.first(f)
	s.send(nameTable("t1", "v.example=240.240.0.1"))
	a.pending("ready")
	has := func(text string) {
		t.Helper()
		for late := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(text)) {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("the file never has %q", text)
			}
		}
	}
	has("v.example")
	other := store.New(path, time.Hour)
	if _, err := other.Save(store.Head{Key: "other"}, func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	has("v.example")
}

// TestLastGoodIsDamaged: what an agent has in the file alone, and cannot read again, it fetches anew.
func TestLastGoodIsDamaged(t *testing.T) {
	f := startFake(t)
	path := filepath.Join(t.TempDir(), "istiod.resources")
	a := newAgent(t, f, keeping(path))
	e, s := a.first(f)
	s.send(nameTable("t1", "v.example=240.240.0.1"))
	a.pending("ready")
	s.asked("NameTable ack t1")
	for late := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("v.example")) {
			break
		}
		if time.Now().After(late) {
			t.Fatal("nothing is kept")
		}
	}
	if err := os.Truncate(path, 1); err != nil { // the file itself, and not another one in its place
		t.Fatal(err)
	}
	e.close()
	e = a.envoy()
	e.asks(clusterType)
	s = f.stream()
	s.asked("Cluster node")
	s.give(clusterType, "a=1")
	for { // none at all, first
		resp, err := e.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetResources()) == 1 && resp.GetResources()[0].GetName() == "a" {
			break
		}
	}
}

// TestLastGoodSpills: what Envoy has taken of a large response is in a file at once, of which only this process knows, and an Envoy that
// starts anew gets it from there. Where no file can be made it stays in memory.
func TestLastGoodSpills(t *testing.T) {
	for _, tc := range []struct {
		name, dir string
		spills    bool
	}{{"there is room", "", true}, {"there is no volume", "missing", false}} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tc.dir, "istiod.resources")
			_, a, e, s := coldWith(t, func(i *Istiod) {
				keeping(path)(i)
				i.loop.lastGood.every, i.c.Dial.MaxMessage = time.Hour, 2*muchTaken
			})
			s.quiet()
			body := strings.Repeat("x", muchTaken)
			s.give(clusterType, "big="+body)
			e.gets("Cluster +big", "")
			s.asked("Cluster ack n4")
			if tc.spills {
				for end := time.Now().Add(deadline); len(unnamed(t, path)) != 1; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("the resources are in no file")
					}
				}
			}
			e.close()
			again := a.envoy()
			again.asks(clusterType)
			resp, err := again.stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range resp.GetResources() {
				if got := string(r.GetResource().GetValue()); r.Name == "big" && got != body || len(resp.GetResources()) != 2 {
					t.Errorf("Envoy gets %d resources, and of %s %d bytes", len(resp.GetResources()), r.Name, len(got))
				}
			}
			if files, _ := filepath.Glob(path + "*"); len(files) > 0 || !tc.spills && len(unnamed(t, path)) > 0 {
				t.Errorf("left behind: %q, %q", files, unnamed(t, path))
			}
		})
	}
}

// unnamed are the files of this process beside path that have no name any more.
func unnamed(t *testing.T, path string) (targets []string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err == nil && strings.HasPrefix(target, path+".") && strings.HasSuffix(target, " (deleted)") {
			targets = append(targets, target)
		}
	}
	return targets
}
