package istiod

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// keeping has an agent keep what istiod says in a file, and look for it at once.
func keeping(path string) func(*Istiod) {
	return func(i *Istiod) {
		i.loop.lastGood.store, i.loop.lastGood.every = &store{path: path, maxAge: time.Hour}, moment
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

// TestLastGoodSparesTheDisk: the more there is to write, the longer nothing is written after it.
func TestLastGoodSparesTheDisk(t *testing.T) {
	for size, want := range map[int64]time.Duration{0: 0, storeRate / 2: 500 * time.Millisecond, 10 << 20: 80 * time.Second} {
		if got := restAfter(size); got != want {
			t.Errorf("after %d bytes: %v, want %v", size, got, want)
		}
	}
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
				i.loop.lastGood = lastGood{store: &store{path: path, maxAge: time.Hour}, every: time.Hour, rest: time.Now().Add(time.Hour)}
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
	other := &store{path: path}
	if err := other.save(storedHead{Key: "other"}, func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	has("v.example")
}

// TestLastGoodIsRefused: what is damaged, old or somebody else's is not used.
func TestLastGoodIsRefused(t *testing.T) {
	node := &corev3.Node{Id: "a"}
	key := storedKey(node, "istiod:15012")
	path := filepath.Join(t.TempDir(), "f")
	s := &store{path: path, maxAge: 2 * time.Hour}
	head := storedHead{Key: key, Names: []byte(`[]`)}
	resources := func(w io.Writer) error { _, err := io.WriteString(w, "resources"); return err }
	if err := s.save(head, resources); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, tc := range map[string]struct {
		content []byte
		key     string
		at      time.Time
		words   string
	}{
		"as it was":         {whole, key, now, ""},
		"another address":   {whole, storedKey(node, "other:15012"), now, "of another proxy"},
		"another proxy":     {whole, storedKey(&corev3.Node{Id: "b"}, "istiod:15012"), now, "of another proxy"},
		"old":               {whole, key, now.Add(-2*time.Hour - time.Minute), "old, at most 2h0m0s"},
		"not that old":      {whole, key, now.Add(-2*time.Hour + time.Minute), ""},
		"of the future":     {whole, key, now.Add(time.Hour), "old, at most"},
		"a bit":             {append([]byte("?"), whole[1:]...), key, now, "damaged"},
		"cut off":           {whole[:len(whole)-1], key, now, "damaged"},
		"empty":             {nil, key, now, "damaged"},
		"only its checksum": {make([]byte, checksumSize), key, now, "damaged"},
	} {
		if err := os.WriteFile(path, tc.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.touch(tc.at); err != nil {
			t.Fatal(err)
		}
		got := ""
		_, err := s.load(tc.key, now, func(names []byte, from io.Reader) error {
			b, err := io.ReadAll(from)
			got = string(names) + string(b)
			return err
		})
		if tc.words == "" && (err != nil || got != "[]resources") || tc.words != "" && (err == nil || !strings.Contains(err.Error(), tc.words) || got != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := (&store{path: path + "x"}).load(key, now, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestStoreFails: what cannot be written, or is too much, leaves the file as it was, and nothing beside it.
func TestStoreFails(t *testing.T) {
	dir := t.TempDir()
	s := &store{path: filepath.Join(dir, "f")}
	if err := s.save(storedHead{}, func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	fault := errors.New("no more")
	if err := s.save(storedHead{}, func(io.Writer) error { return fault }); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
	part := make([]byte, maxStored/2)
	if err := s.save(storedHead{}, func(w io.Writer) error {
		_, first := w.Write(part)
		_, second := w.Write(part)
		return errors.Join(first, second)
	}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	after, err := os.ReadFile(s.path)
	if entries, _ := os.ReadDir(dir); err != nil || !bytes.Equal(before, after) || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
	if err := (&store{path: filepath.Join(dir, "no", "such")}).save(storedHead{}, nil); err == nil {
		t.Error("a directory that is not there")
	}
}
