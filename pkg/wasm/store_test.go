package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// writeFile replaces a file at once, as a mounted ConfigMap is.
func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	s := newStore(t, nil)
	path := filepath.Join(t.TempDir(), "filter.wasm")
	src := Source{URL: "file://" + path}
	for salt := range uint64(3) {
		writeFile(t, path, sample(salt))
		if m, err := resolve(t, s, src); err != nil || m.SHA256 != sum(sample(salt)) || m.Path == path {
			t.Errorf("%+v, %v", m, err)
		}
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, make([]byte, s.cfg.MaxModule+1))
	for url, want := range map[string]string{"file:///none": "read as soon as it is there", "file://" + pipe: "no regular file", "file:///": "no regular file", src.URL: "ISTIO_WASM_MAX"} {
		if _, err := resolve(t, s, Source{URL: url}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// resolving runs Resolve beside the test, whose pauses have no end by themselves.
func resolving(t *testing.T, s *Store, src Source) <-chan Module {
	t.Helper()
	s.random = func(time.Duration) time.Duration { return time.Hour }
	done := make(chan Module, 1)
	go func() {
		m, err := s.Resolve(t.Context(), src)
		if err == nil {
			done <- m
		}
	}()
	await(t, "a failure", func() bool { st := s.status(); return len(st) == 1 && st[0].Failures > 0 })
	return done
}

func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

func arrives(t *testing.T, done <-chan Module) Module {
	t.Helper()
	select {
	case m := <-done:
		return m
	case <-time.After(patience):
		t.Fatal("it is not resolved")
		return Module{}
	}
}

// TestWhatChangesIsTriedAtOnce: a file that comes, a secret that is mounted or replaced, an authority.
func TestWhatChangesIsTriedAtOnce(t *testing.T) {
	t.Run("a file", func(t *testing.T) {
		s, path := newStore(t, nil), filepath.Join(t.TempDir(), "not", "yet", "filter.wasm")
		done := resolving(t, s, Source{URL: "file://" + path})
		writeFile(t, path, sample(1))
		arrives(t, done)
	})
	t.Run("a secret", func(t *testing.T) {
		s, r := newStore(t, nil), newRegistry(t, false)
		r.user = "user:word"
		r.push("v1", typeImage, layer{typeWasm, sample(1)})
		done := resolving(t, s, Source{URL: r.host() + "/a:v1", Secret: "s"})
		path := filepath.Join(s.cfg.SecretsDir, "s", secretFile)
		writeFile(t, path, []byte(opens(r, "user:guess")))
		await(t, "second failure", func() bool { return s.status()[0].Failures == 2 && strings.Contains(s.status()[0].Reason, "401") })
		writeFile(t, path, []byte(opens(r, "user:word")))
		arrives(t, done)
	})
	t.Run("an authority", func(t *testing.T) {
		r, path := newRegistry(t, true), filepath.Join(t.TempDir(), "ca")
		s := newStore(t, func(c *Config) { c.CAFile = path })
		r.push("v1", typeImage, layer{typeWasm, sample(1)})
		done := resolving(t, s, Source{URL: r.host() + "/a:v1"})
		ca, err := os.ReadFile(certificate(t, r.Server))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, ca)
		arrives(t, done)
	})
}

// TestItIsTriedForEver, with pauses, and says what it waits for.
func TestItIsTriedForEver(t *testing.T) {
	r := newRegistry(t, false)
	r.push("v1", typeImage, layer{typeWasm, sample(1)})
	r.fault = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
	var log bytes.Buffer
	s := newStore(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	var limits []time.Duration
	s.random = func(limit time.Duration) time.Duration { // called by the one Resolve
		limits = append(limits, limit)
		if len(limits) == 10 {
			r.with(func() { r.fault = nil })
		}
		return 0
	}
	m, err := s.Resolve(t.Context(), Source{URL: r.host() + "/a:v1"})
	if err != nil || len(limits) != 10 || limits[0] != time.Second || limits[9] != backoffLast {
		t.Errorf("%v, pauses %v", err, limits)
	}
	if got := s.Stats(); got.Modules != 1 || got.Bytes != m.Size || got.Misses != 11 || got.Hits != 0 || got.Retries != 10 || got.Fetches["success"] != 1 || got.Fetches["manifest_failure"] != 10 {
		t.Errorf("%+v", got)
	}
	if st := s.status(); len(st) != 1 || st[0].Phase != InStore || st[0].SHA256 != m.SHA256 || st[0].Reason != "" || st[0].Size != m.Size || st[0].Digest != m.Digest {
		t.Errorf("%+v", st)
	}
	if text := log.String(); strings.Count(text, "cannot be had") != 1 || strings.Count(text, "to be had again") != 1 {
		t.Errorf("the log: %s", text)
	}
}

func TestResolveEndsWithItsContext(t *testing.T) {
	release := make(chan struct{})
	server := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	s := newStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Resolve(ctx, Source{URL: server.URL})
		done <- err
	}()
	await(t, "pull", func() bool { st := s.status(); return len(st) == 1 && st[0].Phase == Pulling })
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	ctx, cancel = context.WithCancel(t.Context())
	s.random = func(time.Duration) time.Duration { cancel(); return time.Hour }
	if _, err := s.Resolve(ctx, Source{URL: "file:///none"}); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "/none") {
		t.Errorf("in a pause: %v; want what ended it, and the last failure", err)
	}
}

// TestSingleFlight: many that want one module fetch it once, and no more than two modules are on their way.
func TestSingleFlight(t *testing.T) {
	r := newRegistry(t, false)
	var mu sync.Mutex
	underway, most := 0, 0
	r.fault = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		mu.Lock()
		underway++
		most = max(most, underway)
		mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		mu.Lock()
		underway--
		mu.Unlock()
		return false
	}
	const images, each = 5, 10
	for i := range images {
		r.push(fmt.Sprint("v", i), typeImage, layer{typeWasm, sample(uint64(i))})
	}
	s := newStore(t, nil)
	var all sync.WaitGroup
	for i := range images * each {
		all.Go(func() {
			if m, err := resolve(t, s, Source{URL: fmt.Sprintf("%s/a:v%d", r.host(), i%images)}); err != nil || m.SHA256 != sum(sample(uint64(i%images))) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
	all.Wait()
	if n := r.requests("blobs"); n != images || most > pullsAtOnce {
		t.Errorf("%d images were fetched %d times, %d at once", images, n, most)
	}
	if len(s.flights) > 0 {
		t.Errorf("%d flights are left", len(s.flights))
	}
}

func TestPolicies(t *testing.T) {
	r := newRegistry(t, false)
	s := newStore(t, nil)
	push := func(tag string, salt uint64) { r.push(tag, typeImage, layer{typeWasm, sample(salt)}) }
	want := func(src Source, salt uint64, requests int) {
		t.Helper()
		before := r.requests("manifests")
		m, err := resolve(t, s, src)
		if err != nil || m.SHA256 != sum(sample(salt)) || r.requests("manifests")-before != requests {
			t.Errorf("%+v: %+v, %v, after %d requests", src, m, err, r.requests("manifests")-before)
		}
	}
	v1, latest := r.host()+"/a:v1", r.host()+"/a"
	if _, err := resolve(t, s, Source{URL: v1, Policy: Never}); err == nil || !strings.Contains(err.Error(), "is not in the store") {
		t.Errorf("never: %v", err)
	}
	push("v1", 1)
	push("latest", 1)
	want(Source{URL: v1}, 1, 1)
	want(Source{URL: latest}, 1, 1)
	push("v1", 2)
	push("latest", 2)
	want(Source{URL: v1}, 1, 0)
	want(Source{URL: v1, Policy: Never}, 1, 0)
	want(Source{URL: latest, Policy: Never}, 1, 0)
	want(Source{URL: latest, Policy: IfNotPresent}, 1, 0)
	want(Source{URL: latest}, 2, 1)
	want(Source{URL: v1, SHA256: sum(sample(1))}, 1, 0)
	want(Source{URL: v1, SHA256: sum(sample(2))}, 2, 1) // present, but another is wanted
	want(Source{URL: v1, Policy: Always}, 2, 1)
	if n := r.requests("blobs"); n != 2 {
		t.Errorf("%d layers were fetched for 2 modules", n)
	}
	if _, err := resolve(t, s, Source{URL: v1, SHA256: sum(sample(3))}); err == nil || !strings.Contains(err.Error(), "neither that of its manifest") || !refused(err) {
		t.Errorf("another hash: %v", err)
	}
	want(Source{URL: v1}, 2, 0)
	r.Close()
	s = New(s.cfg)
	if _, err := resolve(t, s, Source{URL: v1}); err != nil {
		t.Errorf("after a start, without the registry: %v", err)
	}
}

// TestBrokenModuleIsFetchedAgain: what the disk has changed is seen by the next process.
func TestBrokenModuleIsFetchedAgain(t *testing.T) {
	r := newRegistry(t, false)
	r.push("v1", typeImage, layer{typeWasm, sample(1)})
	src := Source{URL: r.host() + "/a:v1"}
	s := newStore(t, nil)
	m, err := resolve(t, s, src)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func(){
		func() { writeFile(t, m.Path, sample(2)) },
		func() { writeFile(t, m.Path, nil) },
		func() { _ = os.Remove(m.Path) },
		func() { _ = os.Remove(m.Path); writeFile(t, filepath.Join(m.Path, "a"), nil); _ = os.RemoveAll(m.Path) },
	} {
		damage()
		s = New(s.cfg)
		if _, err := resolve(t, s, src); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile(m.Path); err != nil || sum(data) != m.SHA256 {
			t.Errorf("%d bytes, %v", len(data), err)
		}
	}
	index, err := filepath.Glob(filepath.Join(s.cfg.Dir, indexDir, "*"))
	if err != nil || len(index) == 0 {
		t.Fatal(index, err)
	}
	for _, file := range index {
		writeFile(t, file, []byte("{"))
	}
	if _, err := resolve(t, s, src); err != nil {
		t.Errorf("with a broken index: %v", err)
	}
}

// fakeEnvoy says what it is told, and counts.
type fakeEnvoy struct {
	version, refused, skipped string
	err                       error
	tries                     int
}

func (e *fakeEnvoy) Validate(context.Context, []byte, int64) (string, string, error) {
	e.tries++
	return e.refused, e.skipped, e.err
}

func (e *fakeEnvoy) Version(context.Context) (string, error) { return e.version, nil }

func TestModulesAreTried(t *testing.T) {
	r := newRegistry(t, false)
	r.push("v1", typeImage, layer{typeWasm, sample(1)})
	e := &fakeEnvoy{version: "1"}
	s := newStore(t, func(c *Config) { c.Envoy = e })
	src := func(config string) Source {
		return Source{URL: r.host() + "/a:v1", Plugin: Plugin{Config: []byte(config)}}
	}
	tries := func(why string, src Source, more int) {
		t.Helper()
		before := e.tries
		if _, err := resolve(t, s, src); err != nil || e.tries-before != more {
			t.Errorf("%s: %v, %d tries", why, err, e.tries-before)
		}
	}
	tries("the first", src(`{"name":"a","rootId":"b"}`), 1)
	tries("the same, in another order", src(` {"rootId":"b", "name":"a"}`), 0)
	tries("another configuration", src(`{"name":"b"}`), 1)
	network := src(`{"name":"b"}`)
	network.Plugin.Network = true
	tries("another filter", network, 1)
	s = New(s.cfg)
	tries("after a start", src(`{"name":"b"}`), 0)
	m, err := resolve(t, s, src(`{"name":"b"}`))
	if err != nil {
		t.Fatal(err)
	}
	kept := func(why, hash, config string, more int, want string) {
		t.Helper()
		before := e.tries
		got, err := s.Kept(t.Context(), hash, Plugin{Config: []byte(config)})
		if text := fmt.Sprint(err); e.tries-before != more || !strings.Contains(text, want) || err == nil && (got.Path != m.Path || got.Size != m.Size) {
			t.Errorf("%s: %+v, %v, %d tries", why, got, err, e.tries-before)
		}
	}
	kept("by its hash", m.SHA256, `{"name":"b"}`, 0, "<nil>")
	kept("with a configuration that is new", m.SHA256, `{"name":"kept"}`, 1, "<nil>")
	kept("what is not there", strings.Repeat("0", 64), `{"name":"b"}`, 0, "no module")
	kept("what is no hash", "../a", `{"name":"b"}`, 0, "no module")
	e.version = "2"
	s = New(s.cfg)
	tries("another Envoy", src(`{"name":"b"}`), 1)
	e.skipped = "no memory"
	tries("skipped", src(`{"name":"c"}`), 1)
	tries("skipped again", src(`{"name":"c"}`), 1)
	e.skipped, e.refused = "", "it traps; Plugin a failed to load"
	for range 2 {
		if _, err := resolve(t, s, src(`{"name":"d"}`)); err == nil || err.Error() != "Envoy does not start it: it traps" || !refused(err) {
			t.Errorf("refused: %v", err)
		}
	}
	e.refused, e.err = "", errors.New("no Envoy")
	if _, err := resolve(t, s, src(`{"name":"e"}`)); err == nil || refused(err) {
		t.Errorf("no Envoy: %v", err)
	}
	e.err = nil
	tries("what was refused, now", src(`{"name":"d"}`), 1)
}

// TestUnusedModulesGo: what nobody uses by age, or for want of room; what somebody uses, of whatever process, never.
func TestUnusedModulesGo(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, func(c *Config) { c.MaxModule = maxStore })
	module := func(salt uint64, age time.Duration) string {
		t.Helper()
		path := filepath.Join(dir, "m")
		writeFile(t, path, sample(salt))
		m, err := resolve(t, s, Source{URL: "file://" + path})
		if err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(m.Path, then, then); err != nil {
			t.Fatal(err)
		}
		return m.SHA256
	}
	there := func(hash string) bool { _, err := os.Stat(s.modulePath(hash)); return err == nil }
	const day = 24 * time.Hour
	old, used, others, young := module(1, 2*day), module(2, 2*day), module(3, 2*day), module(4, time.Hour)
	if err := s.Retain(used); err != nil {
		t.Fatal(err)
	}
	other := New(s.cfg) // as another process
	if err := other.Retain(others); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-2 * day)
	for _, hash := range []string{used, others} {
		if err := os.Chtimes(s.modulePath(hash), then, then); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.purge(day); n != 1 || err != nil || there(old) || !there(used) || !there(others) || !there(young) {
		t.Errorf("by age: %d, %v: %v %v %v %v", n, err, there(old), there(used), there(others), there(young))
	}
	// Of no use any more, and yet not old: it was in use until now.
	if err := other.Retain(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.purge(day); n != 0 || err != nil || !there(others) {
		t.Errorf("just let go: %d, %v", n, err)
	}
	if err := os.Chtimes(s.modulePath(others), then, then); err != nil {
		t.Fatal(err)
	}
	// Room goes by the last use.
	if err := s.makeRoom(2*maxStore - 3000); err != nil || there(others) || !there(young) || !there(used) {
		t.Errorf("for room: %v: %v %v %v", err, there(others), there(young), there(used))
	}
	if err := s.makeRoom(2*maxStore - 1000); err == nil || !strings.Contains(err.Error(), "is full") || there(young) || !there(used) {
		t.Errorf("for more room than there is: %v", err)
	}
	if err := s.Retain("ab"); err == nil {
		t.Error("a module that is not there is kept")
	}
	if there(used) && s.isHeld(used) {
		t.Error("it is still held, though it is not in use any more")
	}
}

// TestSweep takes away what pulls that were killed have left, and entries of the index without a module.
func TestSweep(t *testing.T) {
	s := newStore(t, nil)
	path := filepath.Join(t.TempDir(), "m")
	writeFile(t, path, sample(1))
	m, err := resolve(t, s, Source{URL: "file://" + path})
	if err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(s.cfg.Dir, modulesDir, pulling+"1"), filepath.Join(s.cfg.Dir, modulesDir, pulling+"2")
	busy := filepath.Join(s.cfg.Dir, modulesDir, pulling+"3")
	writeFile(t, old, nil)
	writeFile(t, young, nil)
	writeFile(t, busy, nil)
	f, err := os.Open(busy)
	if err != nil || flock(f, syscall.LOCK_EX) != nil {
		t.Fatal(err)
	}
	defer f.Close()
	writeFile(t, s.entryPath("broken"), nil)
	s.now = func() time.Time { return time.Now().Add(time.Hour) }
	then := s.now()
	if err := os.Chtimes(young, then, then); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	if exists(old) || !exists(young) || !exists(busy) || exists(s.entryPath("broken")) || len(files(t, s)) != 4 { // with the module and its entry
		t.Errorf("left: %q", files(t, s))
	}
	if err := os.Remove(m.Path); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(); err != nil || len(files(t, s)) != 2 {
		t.Errorf("%v, left: %q", err, files(t, s))
	}
}

// TestSweepLeavesWhatIsWritten: however long a pull takes, in whatever process.
func TestSweepLeavesWhatIsWritten(t *testing.T) {
	s := newStore(t, nil)
	path := filepath.Join(t.TempDir(), "m")
	writeFile(t, path, sample(1))
	other := New(s.cfg)
	other.now = func() time.Time { return time.Now().Add(time.Hour) }
	s.step = func(at string) {
		if at == "written" {
			if err := other.sweep(); err != nil {
				t.Error(err)
			}
		}
	}
	if m, err := resolve(t, s, Source{URL: "file://" + path}); err != nil || m.SHA256 != sum(sample(1)) {
		t.Errorf("%+v, %v", m, err)
	}
}

// asVictim has the test binary write a module, and end by SIGKILL at a step; asDir is where.
const asVictim, asDir = "UNDERSTUDY_TEST_WASM_STEP", "UNDERSTUDY_TEST_WASM_DIR"

func TestMain(m *testing.M) {
	if step := os.Getenv(asVictim); step != "" {
		dir := os.Getenv(asDir)
		s := New(Config{Dir: filepath.Join(dir, "store"), MaxModule: testLimit, Log: slog.New(slog.DiscardHandler)})
		s.step = func(at string) {
			if at == step {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		_, err := s.Resolve(context.Background(), Source{URL: "file://" + filepath.Join(dir, "m"), Once: true})
		fmt.Println(err)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// TestKilledAtEachStep: what is left of a write serves nobody as a module, and hinders no later one.
func TestKilledAtEachStep(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"created", "written", "synced", "renamed", "noting", "noted"} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "m"), sample(1))
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), asVictim+"="+step, asDir+"="+dir)
		out, err := cmd.CombinedOutput()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: %v, %s", step, err, out)
		}
		s := newStore(t, func(c *Config) { c.Dir = filepath.Join(dir, "store") })
		kept, err := s.modules()
		if whole := slices.Contains([]string{"renamed", "noting", "noted"}, step); err != nil || whole != (len(kept) == 1) {
			t.Errorf("%s: modules %+v, %v", step, kept, err)
		}
		for _, k := range kept {
			if data, err := os.ReadFile(s.modulePath(k.hash)); err != nil || sum(data) != k.hash {
				t.Errorf("%s: a module that is none: %d bytes, %v", step, len(data), err)
			}
		}
		if m, err := resolve(t, s, Source{URL: "file://" + filepath.Join(dir, "m")}); err != nil || m.SHA256 != sum(sample(1)) {
			t.Errorf("%s: afterwards: %+v, %v", step, m, err)
		}
		s.now = func() time.Time { return time.Now().Add(time.Hour) }
		if err := s.sweep(); err != nil {
			t.Errorf("%s: %v", step, err)
		}
		if left, err := filepath.Glob(filepath.Join(s.cfg.Dir, modulesDir, pulling+"*")); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %q, %v", step, left, err)
		}
	}
}
