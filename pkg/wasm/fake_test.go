package wasm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/tests/proxywasm"
)

// patience is a deadline for what ought to take no time.
const patience = 60 * time.Second

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// fakeRegistry is one that a test fills, and has fail as it wants.
type fakeRegistry struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte // by tag and by digest
	types     map[string]string
	blobs     map[string][]byte
	asked     map[string]int // requests by the last part but one of their path: manifests, blobs, token
	user      string         // user:password that it wants; "" lets everybody in
	bearer    bool           // by a token, not by Basic
	fault     func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t *testing.T, withTLS bool) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{manifests: map[string][]byte{}, types: map[string]string{}, blobs: map[string][]byte{}, asked: map[string]int{}}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	if withTLS {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(f.Close)
	return f
}

// host is its name in that of an image.
func (f *fakeRegistry) host() string { return f.Listener.Addr().String() }

func (f *fakeRegistry) requests(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[kind]
}

func (f *fakeRegistry) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	f.mu.Lock()
	f.asked[parts[len(parts)-2]]++
	fault, user, bearer := f.fault, f.user, f.bearer
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	if r.URL.Path == "/token/get" {
		if name, password, _ := r.BasicAuth(); name+":"+password != user {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"opened"}`)
		return
	}
	if user != "" && !f.opened(w, r, user, bearer) {
		return
	}
	f.mu.Lock()
	manifest, isManifest := f.manifests[parts[len(parts)-1]]
	kind := f.types[parts[len(parts)-1]]
	blob, isBlob := f.blobs[parts[len(parts)-1]]
	f.mu.Unlock()
	switch {
	case isManifest && parts[len(parts)-2] == "manifests":
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Docker-Content-Digest", "sha256:"+sum(manifest))
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		_, _ = w.Write(manifest)
	case isBlob && parts[len(parts)-2] == "blobs":
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(blob)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (f *fakeRegistry) opened(w http.ResponseWriter, r *http.Request, user string, bearer bool) bool {
	name, password, _ := r.BasicAuth()
	if bearer && r.Header.Get("Authorization") == "Bearer opened" || !bearer && name+":"+password == user {
		return true
	}
	challenge := `Basic realm="fake"`
	if bearer {
		challenge = fmt.Sprintf(`Bearer realm="%s/token/get",service="fake"`, f.URL)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// layer is one of an image to push.
type layer struct {
	kind string
	data []byte
}

// push puts an image under a tag, and returns the digest of its manifest.
func (f *fakeRegistry) push(tag, kind string, layers ...layer) string {
	list := []map[string]any{}
	for _, l := range layers {
		list = append(list, map[string]any{"mediaType": l.kind, "digest": "sha256:" + sum(l.data), "size": len(l.data)})
	}
	f.with(func() {
		for _, l := range layers {
			f.blobs["sha256:"+sum(l.data)] = l.data
		}
	})
	return f.put(tag, kind, map[string]any{"schemaVersion": 2, "mediaType": kind, "config": map[string]any{"mediaType": "application/vnd.oci.empty.v1+json"}, "layers": list})
}

// put has a manifest or an index under a tag.
func (f *fakeRegistry) put(tag, kind string, manifest any) string {
	data, err := json.Marshal(manifest)
	if text, ok := manifest.(string); ok {
		data, err = []byte(text), nil
	}
	if err != nil {
		panic(err)
	}
	f.with(func() {
		for _, name := range []string{tag, "sha256:" + sum(data)} {
			f.manifests[name], f.types[name] = data, kind
		}
	})
	return sum(data)
}

// newStore is one that tries no module, and never waits by chance for longer than a test does.
func newStore(t *testing.T, change func(*Config)) *Store {
	t.Helper()
	cfg := Config{
		Dir: filepath.Join(t.TempDir(), "store"), MaxModule: 8 << 20, MaxAge: 24 * time.Hour, SecretsDir: filepath.Join(t.TempDir(), "secrets"),
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

// resolve asks once.
func resolve(t *testing.T, s *Store, src Source) (Module, error) {
	t.Helper()
	src.Once = true
	return s.Resolve(t.Context(), src)
}

// files are the names of all that a store has, without its directories.
func files(t *testing.T, s *Store) (names []string) {
	t.Helper()
	_ = filepath.Walk(s.cfg.Dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			names = append(names, strings.TrimPrefix(path, s.cfg.Dir+"/"))
		}
		return nil
	})
	return names
}

// sample is a valid module, another for each number.
func sample(salt uint64) []byte {
	return proxywasm.Module{Header: "a", Value: "b", Pad: 1000, Salt: salt}.Bytes()
}

func zipped(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data)
	_ = w.Close()
	return out.Bytes()
}

// item is one of an archive.
type item struct {
	name string
	data []byte
	kind byte // 0 is a regular file
}

func tarred(items ...item) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, i := range items {
		head := &tar.Header{Name: i.name, Typeflag: i.kind, Mode: 0o644, Size: int64(len(i.data))}
		if i.kind == 0 {
			head.Typeflag = tar.TypeReg
		}
		if i.kind == tar.TypeSymlink || i.kind == tar.TypeLink {
			head.Linkname = "elsewhere"
		}
		if err := w.WriteHeader(head); err != nil {
			panic(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(i.data)); err != nil {
			panic(err)
		}
	}
	_ = w.Close()
	return out.Bytes()
}
