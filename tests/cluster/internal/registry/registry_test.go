package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// layout is an OCI layout in the making.
type layout struct {
	t   *testing.T
	dir string
}

func (l layout) put(content string) descriptor {
	l.t.Helper()
	sum := sha256.Sum256([]byte(content))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if err := writeWhole(blobIn(l.dir, digest), []byte(content)); err != nil {
		l.t.Fatal(err)
	}
	return descriptor{Digest: digest, Size: int64(len(content))}
}

func (l layout) putJSON(value any) descriptor {
	l.t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.put(string(text))
}

// image writes a layout of an image with one layer, for this architecture and another, and returns its directory.
func image(t *testing.T, layer string) string {
	t.Helper()
	l := layout{t, t.TempDir()}
	var platforms []any
	for _, architecture := range []string{"another", runtime.GOARCH} {
		config := l.put(`{"architecture":"` + architecture + `"}`)
		manifest := l.putJSON(map[string]any{"mediaType": manifestType, "config": config, "layers": []any{l.put(layer + architecture)}})
		platforms = append(platforms, map[string]any{"mediaType": manifestType, "digest": manifest.Digest, "size": manifest.Size, "platform": map[string]string{"architecture": architecture}})
	}
	index := l.putJSON(map[string]any{"mediaType": indexType, "manifests": platforms})
	top, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{index}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), top, 0o644); err != nil {
		t.Fatal(err)
	}
	return l.dir
}

func imported(t *testing.T, s Store, layout, name string) bool {
	t.Helper()
	changed, err := s.Import(layout, name)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestPull imports an image and fetches it as a container runtime does.
func TestPull(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "registry"))
	if !imported(t, s, image(t, "one"), "nginx:1.14.2") {
		t.Error("a new image is no change")
	}
	server := httptest.NewServer(s)
	defer server.Close()
	fetch := func(path string) (string, *http.Response) {
		t.Helper()
		response, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body), response
	}
	manifest, response := fetch("/v2/library/nginx/manifests/1.14.2?ns=docker.io")
	digest := response.Header.Get("Docker-Content-Digest")
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != manifestType || digest != s.Digest("nginx:1.14.2") {
		t.Fatalf("%s %v: %s", response.Status, response.Header, manifest)
	}
	if again, response := fetch("/v2/library/nginx/manifests/" + digest); again != manifest || response.Header.Get("Content-Type") != manifestType {
		t.Errorf("by its digest: %s, %v", again, response.Header)
	}
	var d document
	if err := json.Unmarshal([]byte(manifest), &d); err != nil {
		t.Fatal(err)
	}
	if layer, _ := fetch("/v2/library/nginx/blobs/" + d.Layers[0].Digest); layer != "one"+runtime.GOARCH {
		t.Errorf("the layer is %q", layer)
	}
	for _, path := range []string{
		"/v2/library/nginx/manifests/latest?ns=docker.io", "/v2/library/nginx/manifests/1.14.2?ns=registry.k8s.io",
		"/v2/library/nginx/blobs/sha256:" + strings.Repeat("0", 64), "/v2/x/blobs/..%2f..%2ftags", "/",
	} {
		if body, response := fetch(path); response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s: %s", path, response.Status, body)
		}
	}
}

// TestImportAgain wants a change to be one of the image, not of the import.
func TestImportAgain(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "registry"))
	one, two := image(t, "one"), image(t, "two")
	for i, step := range []struct {
		layout string
		want   bool
	}{{one, true}, {one, false}, {two, true}, {two, false}, {one, true}} {
		if changed := imported(t, s, step.layout, "understudy/proxy:dev"); changed != step.want {
			t.Errorf("import %d: changed: %v, want %v", i, changed, step.want)
		}
	}
}

func TestTwoNamesOfOneImage(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "registry"))
	one := image(t, "one")
	imported(t, s, one, "understudy/proxy:v1")
	if _, err := s.Import(one, "understudy/proxy:v2"); err == nil || !strings.Contains(err.Error(), "docker.io/understudy/proxy:v1") {
		t.Errorf("a second name: %v", err)
	}
	if s.Digest("understudy/proxy:v2") != "" {
		t.Error("the second name is there all the same")
	}
}

func TestImportWhatIsNone(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "registry"))
	broken, other := image(t, "one"), layout{t, t.TempDir()}
	if err := os.RemoveAll(filepath.Join(broken, "blobs")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other.dir, "index.json"),
		[]byte(`{"manifests":[{"digest":"sha256:00","platform":{"architecture":"another"}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for dir, words := range map[string]string{t.TempDir(): "index.json", broken: "blobs", other.dir: "no image for " + runtime.GOARCH} {
		if _, err := s.Import(dir, "x:1"); err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v: want %q", err, words)
		}
	}
	if s.Digest("x:1") != "" {
		t.Error("there is an image of that name")
	}
}

func TestQualify(t *testing.T) {
	for name, want := range map[string]string{
		"nginx":                      "docker.io/library/nginx:latest",
		"nginx:1.14.2":               "docker.io/library/nginx:1.14.2",
		"curlimages/curl":            "docker.io/curlimages/curl:latest",
		"registry.k8s.io/pause:3.10": "registry.k8s.io/pause:3.10",
		"localhost/x":                "localhost/x:latest",
		"localhost:5000/x/y:z":       "localhost:5000/x/y:z",
	} {
		if got := Qualify(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
