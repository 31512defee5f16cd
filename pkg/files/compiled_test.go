package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// restarts is a pod whose container is started again and again, with the same volumes.
type restarts struct {
	t         *testing.T
	dir, data string
	build     string
	options   mesh.Options
}

func newRestarts(t *testing.T) *restarts {
	return &restarts{t: t, dir: t.TempDir(), data: t.TempDir(), build: "1", options: mesh.Options{
		Namespace: "default", IPv4: true, IPv6: true, InboundPort: 15006, OutboundPort: 15001, ConnectTimeout: time.Second, AutoAllocate: true,
		VIPRanges:   []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")},
		DNSResolver: &corev3.TypedExtensionConfig{Name: "resolver", TypedConfig: &anypb.Any{TypeUrl: "a/x.Y", Value: []byte("127.0.0.1:40000")}},
	}}
}

func (r *restarts) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *restarts) compiled() string { return filepath.Join(r.data, "compiled.pb") }

// kept says whether something is on the volume.
func (r *restarts) kept() bool {
	_, err := os.Stat(r.compiled())
	return err == nil
}

// containerLife is one start of the container.
type containerLife struct {
	*Files
	t      *testing.T
	log    lockedLog
	given  chan xds.Snapshot // to Envoy, in turn
	answer chan struct{}     // Envoy has taken it
	end    func()
}

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (r *restarts) start() *containerLife {
	r.t.Helper()
	vips, err := vip.Open(vip.Config{
		Path: filepath.Join(r.data, "vips.json"), V4: r.options.VIPRanges[0], V6: r.options.VIPRanges[1], IPv6: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	l := &containerLife{t: r.t, given: make(chan xds.Snapshot), answer: make(chan struct{})}
	ctx, cancel := context.WithCancel(r.t.Context())
	l.Files, err = New(Config{
		Dir: r.dir, Options: r.options, VIPs: vips, TTL: time.Second, Ready: &status.Readiness{}, InForce: func() {},
		Compiled: r.compiled(), Build: r.build,
		Log: func(string) *slog.Logger { return slog.New(slog.NewTextHandler(&l.log, nil)) },
		Envoy: publish.Envoy{
			Set: func(snap xds.Snapshot) uint64 {
				select {
				case l.given <- snap:
				case <-ctx.Done():
				}
				return 1
			},
			Applied: func(ctx context.Context, _ uint64) error {
				select {
				case <-l.answer:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Connected: func() (bool, <-chan struct{}) { return true, nil },
			Warming:   func(context.Context) (clusters, listeners uint64, err error) { return 0, 0, nil },
		},
		Names: func([]table.Host, []string) {},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { l.Publish(ctx) })
	running.Go(func() {
		if err := l.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	l.end = func() {
		cancel()
		running.Wait()
		l.Keep()
	}
	r.t.Cleanup(cancel)
	return l
}

// next is what Envoy is given next, sorted.
func (l *containerLife) next() xds.Snapshot {
	l.t.Helper()
	select {
	case snap := <-l.given:
		snap = maps.Clone(snap)
		for url := range snap {
			list := slices.Clone(snap[url]) // it is the publisher's
			snap[url] = list
			slices.SortFunc(list, func(a, b *xds.Stored) int { return strings.Compare(a.Name, b.Name) })
		}
		return snap
	case <-time.After(time.Minute):
		l.t.Fatalf("Envoy is given nothing; log:\n%s", l.log.String())
		return nil
	}
}

// take has Envoy answer for what it was given.
func (l *containerLife) take() {
	l.t.Helper()
	select {
	case l.answer <- struct{}{}:
	case <-time.After(time.Minute):
		l.t.Fatal("nobody waits for Envoy")
	}
}

// reports waits for Envoy's answer to have been noted.
func (l *containerLife) reports() {
	l.t.Helper()
	for range 600 {
		if ready, _ := l.c.Ready.Check(); ready {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	l.t.Fatal("not ready")
}

// cold starts, takes all of the files and ends: what Envoy has then.
func (r *restarts) cold() xds.Snapshot {
	r.t.Helper()
	l := r.start()
	snap := l.next()
	l.take()
	l.reports()
	l.end()
	return snap
}

func (l *containerLife) has(want string) {
	l.t.Helper()
	if !strings.Contains(l.log.String(), want) {
		l.t.Errorf("the log does not say %q:\n%s", want, l.log.String())
	}
}

func sameResources(t *testing.T, got, want xds.Snapshot) {
	t.Helper()
	if !unchanged(&publish.Snapshot{Resources: got}, &publish.Snapshot{Resources: want}) {
		t.Errorf("Envoy has %v, want %v", resourceNames(got), resourceNames(want))
	}
}

func resourceNames(snap xds.Snapshot) (out []string) {
	for _, list := range snap {
		for _, r := range list {
			out = append(out, r.Name)
		}
	}
	return out
}

const keptFirst = "Envoy starts with what the same files have made before"

// TestRestartWithTheSameFiles: Envoy gets, before anything is parsed, byte by byte what a start from nothing gives it, and then no change.
func TestRestartWithTheSameFiles(t *testing.T) {
	r := newRestarts(t)
	r.write("a.yaml", entryAt("v1.x", "")+entryAt("v2.x", ""))
	r.write("b.yaml", entryAt("v3.x", "240.240.7.7")+entryAt("v4.x", "10.9.0.0/16"))
	want := r.cold()
	for range 2 {
		l := r.start()
		got := l.next()
		if l.latest.registry.Load() != nil {
			t.Error("the files are parsed before Envoy has answered")
		}
		sameResources(t, got, want)
		l.take()
		l.has(keptFirst)
		sameResources(t, l.next(), want)
		l.take()
		l.reports()
		l.end()
		if strings.Contains(l.log.String(), "is not what they make") {
			t.Errorf("log:\n%s", l.log.String())
		}
	}
}

// inMemory counts the resources whose bodies are in memory.
func inMemory(snap xds.Snapshot) (n int) {
	for _, list := range snap {
		for _, r := range list {
			if r.InMemory() {
				n++
			}
		}
	}
	return n
}

// TestBodiesAreInTheFile: what is in force is in the file and not in memory, those too that Envoy has in the place of others, and after a
// restart from the first. What cannot be read again is made again.
func TestBodiesAreInTheFile(t *testing.T) {
	r := newRestarts(t)
	r.write("a.yaml", entryAt("v1.x", "")+entryAt("v2.x", ""))
	want := r.cold()
	if n := inMemory(want); n > 0 {
		t.Errorf("%d resources are in memory", n)
	}
	l := r.start()
	got := l.next()
	if n := inMemory(got); n > 0 {
		t.Errorf("after a restart %d resources are in memory", n)
	}
	l.take()
	checked := l.next()
	for url, list := range checked {
		for i, m := range list {
			if m != got[url][i] {
				t.Errorf("%s is there twice", m.Name)
			}
		}
	}
	l.take()
	l.reports()
	shared := xds.NewStored("0.0.0.0_80", []byte("of several"))
	l.compiled.shared = func() xds.Snapshot {
		return xds.Snapshot{"type.googleapis.com/envoy.config.listener.v3.Listener": {shared}}
	}
	r.write("b.yaml", entryAt("v3.x", ""))
	changed := l.next()
	if n := inMemory(changed); n != 2 { // cluster and listener of the host that is new
		t.Errorf("after a change %d resources are in memory", n)
	}
	l.take()
	r.write("c.yaml", entryAt("v4.x", ""))
	l.next() // the one before is noted by now
	l.Keep()
	if n := inMemory(changed); n > 0 || shared.InMemory() || string(bodyOf(shared)) != "of several" {
		t.Errorf("%d resources are in memory, %q (%v)", n, bodyOf(shared), shared.InMemory())
	}
	sameResources(t, got, want)

	data, err := os.ReadFile(r.compiled())
	if err == nil {
		err = os.WriteFile(r.compiled(), make([]byte, len(data)), 0o600) // the same file
	}
	if err != nil {
		t.Fatal(err)
	}
	l.take()
	r.write("c.yaml", entryAt("v5.x", ""))
	l.next()
	l.Keep()
	l.has("is the volume in order?")
	l.take()
	if n, again := inMemory(changed), l.next(); n > 0 || inMemory(again) != len(resourceNames(again)) {
		t.Errorf("%d of %d resources were made anew", inMemory(again), len(resourceNames(again)))
	}
	l.end()
}

// TestRestartWithOthers: what is damaged, or of something else, is a start from nothing, with the reason.
func TestRestartWithOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil  func(r *restarts, data []byte) []byte
		reason string
	}{
		"a byte":          {func(_ *restarts, data []byte) []byte { data[len(data)/2] ^= 1; return data }, errDamaged.Error()},
		"cut off":         {func(_ *restarts, data []byte) []byte { return data[:len(data)-9] }, errDamaged.Error()},
		"empty":           {func(*restarts, []byte) []byte { return nil }, errForeign.Error()},
		"another form":    {func(_ *restarts, data []byte) []byte { data[len(compiledForm)-2]++; return data }, errForeign.Error()},
		"another build":   {func(r *restarts, data []byte) []byte { r.build = "2"; return data }, errForeign.Error()},
		"another setting": {func(r *restarts, data []byte) []byte { r.options.ConnectTimeout++; return data }, errForeign.Error()},
		"a changed file":  {func(r *restarts, data []byte) []byte { r.write("a.yaml", entryAt("v2.x", "")); return data }, errChanged.Error()},
		"a further file":  {func(r *restarts, data []byte) []byte { r.write("b.yaml", entryAt("v2.x", "")); return data }, errChanged.Error()},
		"a renamed file":  {func(r *restarts, data []byte) []byte { r.rename("a.yaml", "c.yaml"); return data }, errChanged.Error()},
		"a port of old":   {func(r *restarts, data []byte) []byte { r.options.DNSResolver = nil; return data }, keptFirst},
		"no file":         {func(r *restarts, _ []byte) []byte { r.remove(); return nil }, ""},
		"killed in a write": {func(r *restarts, data []byte) []byte {
			if err := os.WriteFile(r.compiled()+".1", data[:len(data)/2], 0o600); err != nil {
				r.t.Error(err)
			}
			return data
		}, keptFirst},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRestarts(t)
			r.write("a.yaml", entryAt("v1.x", ""))
			r.cold()
			data, err := os.ReadFile(r.compiled())
			if err != nil {
				t.Fatal(err)
			}
			data = tc.spoil(r, data)
			if r.kept() {
				if err := os.WriteFile(r.compiled(), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := r.start()
			got := l.next()
			l.has(tc.reason)
			if recalled := tc.reason == keptFirst; recalled != strings.Contains(l.log.String(), keptFirst) {
				t.Errorf("log:\n%s", l.log.String())
			}
			l.take()
			l.end()
			if err := os.RemoveAll(r.compiled()); err != nil {
				t.Fatal(err)
			}
			sameResources(t, got, r.cold())
		})
	}
}

func (r *restarts) rename(from, to string) {
	if err := os.Rename(filepath.Join(r.dir, from), filepath.Join(r.dir, to)); err != nil {
		r.t.Error(err)
	}
}

func (r *restarts) remove() {
	if err := os.Remove(r.compiled()); err != nil {
		r.t.Error(err)
	}
}

// TestFilesChangeDuringARestart: a change that comes while Envoy works on what the files made before is brought into force like any other.
func TestFilesChangeDuringARestart(t *testing.T) {
	r := newRestarts(t)
	r.write("a.yaml", entryAt("v1.x", ""))
	r.cold()
	l := r.start()
	l.next()
	r.write("a.yaml", entryAt("v1.x", "")+entryAt("v2.x", ""))
	l.take()
	l.has(keptFirst)
	if got := l.next(); !slices.Contains(resourceNames(got), "outbound|80||v2.x") {
		t.Errorf("Envoy is given %v", resourceNames(got))
	}
	l.take()
	l.end()
	if strings.Contains(l.log.String(), "is not what they make") {
		t.Errorf("log:\n%s", l.log.String())
	}
}

// TestWhatIsNotUsed: what a start from the same files might make otherwise, or has to try first, does not begin with what is on the volume; a
// directory that cannot be written to costs a line of the log.
func TestWhatIsNotUsed(t *testing.T) {
	for name, text := range map[string]string{
		"a bad document":                 entryAt("v1.x", "") + "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: bad}\nspec: {hosts: [\"\"]}\n",
		"look-ups at this start's port":  entryAt("v1.x", "") + dynamicEntry,
		"an EnvoyFilter, which is tried": entryAt("v1.x", "") + "---\n" + filterDoc("tried", "f"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRestarts(t)
			r.write("a.yaml", text)
			r.cold()
			l := r.start()
			l.next()
			l.has(errPartial.Error())
			l.take()
			l.end()
		})
	}
	t.Run("an earlier version in force", func(t *testing.T) {
		r := newRestarts(t)
		r.write("a.yaml", entryAt("v1.x", ""))
		l := r.start()
		l.next()
		l.take()
		l.reports()
		r.write("a.yaml", entryAt("v2.x", "")+"kind: [\n")
		l.next()
		l.take()
		r.write("a.yaml", entryAt("v3.x", "")+"kind: [\n")
		l.next() // the one before is noted by now
		l.end()
		of, err := l.source.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.compiled.load(of); !errors.Is(err, errPartial) {
			t.Errorf("%v, want %v", err, errPartial)
		}
	})
	t.Run("no volume", func(t *testing.T) {
		r := newRestarts(t)
		r.write("a.yaml", entryAt("v1.x", ""))
		l := r.start()
		l.next()
		l.take()
		l.reports()
		l.compiled.path = filepath.Join(r.data, "none", "compiled.pb")
		l.compiled.save()
		l.end()
		if n := strings.Count(l.log.String(), "is not kept for a restart of the container"); n != 1 {
			t.Errorf("said %d times:\n%s", n, l.log.String())
		}
	})
}

// dynamicEntry has Envoy look up names as its bootstrap does.
const dynamicEntry = `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dynamic}
spec:
  hosts: ["*.wild.x"]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
`

// TestSuccessorRecallsNothing: what the generation before has in force is newer than any file.
func TestSuccessorRecallsNothing(t *testing.T) {
	r := newRestarts(t)
	r.write("a.yaml", entryAt("v1.x", ""))
	r.cold()
	l := r.start()
	l.next()
	l.take()
	l.end()
	l.Import(map[string][]byte{}, func(string) io.Reader { return nil })
	if l.recall() != nil {
		t.Error("it begins with what was kept")
	}
}

// TestOtherVIPs: what leads to VIPs that hosts do not have any more is not used.
func TestOtherVIPs(t *testing.T) {
	r := newRestarts(t)
	r.write("a.yaml", entryAt("v1.x", ""))
	r.cold()
	l := r.start()
	l.next()
	l.take()
	l.end()
	of, err := l.source.Digest()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := l.compiled.load(of)
	if err != nil || !l.hasVIPs(kept) {
		t.Fatalf("%v, %v", kept, err)
	}
	kept.snapshot.Hosts[0].Addrs[0] = kept.snapshot.Hosts[0].Addrs[0].Next()
	if l.hasVIPs(kept) {
		t.Error("another VIP is the same")
	}
	if _, err := l.compiled.load(mesh.Digest{1}); !errors.Is(err, errChanged) {
		t.Errorf("with another digest: %v", err)
	}
}

// TestRefusedIsNotKept: what Envoy refuses in part is kept once it takes all of it.
func TestRefusedIsNotKept(t *testing.T) {
	r := newRestarts(t)
	r.write("a.yaml", entryAt("v1.x", ""))
	l := r.start()
	l.next()
	l.take()
	l.reports()
	l.end()
	if l.noteAnswer(false); l.compiled.latest != nil {
		t.Error("what Envoy refuses is to be kept")
	}
	if l.noteAnswer(true); l.compiled.latest == nil {
		t.Error("what Envoy takes at last is not to be kept")
	}
}

// bodyOf is the body of a resource, which is in memory.
func bodyOf(r *xds.Stored) []byte {
	body, err := r.Body()
	if err != nil {
		panic(err)
	}
	return body
}
