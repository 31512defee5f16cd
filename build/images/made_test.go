package main

import (
	"archive/tar"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"understudy.mesh/build/contents"
)

// root is the repository.
const root = "../.."

// skip ends a test that this machine cannot run.
func skip(t *testing.T, needs string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs %s, and CI=true allows no skip", needs)
	}
	t.Skipf("this test needs %s", needs)
}

// made is what `make images` has made of an image of the table, by architecture.
func made(t *testing.T, name string) map[string]v1.Image {
	t.Helper()
	dir := filepath.Join(root, "bin", "images", name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		skip(t, "make images")
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%s: %v, %v: want one index of all platforms", dir, manifest, err)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if manifest, err = index.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	images := make(map[string]v1.Image)
	for _, platform := range manifest.Manifests {
		image, err := index.Image(platform.Digest)
		if err != nil {
			t.Fatal(err)
		}
		images[platform.Platform.Architecture] = image
	}
	return images
}

// forEach runs a test for every image that was made.
func forEach(t *testing.T, test func(t *testing.T, c contents.Image, arch string, image v1.Image)) {
	t.Helper()
	for _, c := range contents.Images {
		for arch, image := range made(t, c.Name) {
			t.Run(c.Name+" "+arch, func(t *testing.T) { test(t, c, arch, image) })
		}
	}
}

// entry is a file of an image.
type entry struct {
	header  *tar.Header
	content string // of a small regular file
}

// files are those of an image, by path.
func files(t *testing.T, image v1.Image) map[string]entry {
	t.Helper()
	const small = 1 << 20
	all := make(map[string]entry)
	content := mutate.Extract(image)
	defer content.Close()
	for reader := tar.NewReader(content); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		e := entry{header: header}
		if header.Size < small {
			text, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			e.content = string(text)
		}
		all["/"+strings.TrimSuffix(header.Name, "/")] = e
	}
}

func TestMadeImagesAreTheTable(t *testing.T) {
	forEach(t, func(t *testing.T, c contents.Image, arch string, image v1.Image) {
		if err := validate.Image(image, validate.Fast); err != nil {
			t.Error(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(config.Architecture, config.Config.User, config.Config.Entrypoint, config.Config.Env)
		if want := fmt.Sprint(arch, contents.User, []string{c.Entrypoint()}, []string{contents.Path}); got != want {
			t.Errorf("configured as %s, want %s", got, want)
		}
		all := files(t, image)
		for _, f := range slices.Concat(c.Files, c.Directories) {
			e, found := all[f.Path]
			if !found || e.header.Uid != f.UID || e.header.Gid != f.GID || e.header.FileInfo().Mode().Type() != f.Mode.Type() ||
				e.header.Linkname != f.Link || e.content != string(f.Content) {
				t.Errorf("%s is %+v, want %+v", f.Path, e, f)
			}
		}
		for _, p := range c.Programs {
			if e, found := all[p.Path]; !found || e.header.Mode != 0o755 || e.header.Uid != 0 {
				t.Errorf("%s is %+v, want an executable of root's", p.Path, e.header)
			}
		}
		for _, name := range c.Packages {
			for _, paper := range []string{"/var/lib/dpkg/status.d/" + name, "/var/lib/dpkg/status.d/" + name + ".md5sums", "/usr/share/doc/" + name + "/copyright"} {
				if all[paper].content == "" {
					t.Errorf("there is no %s", paper)
				}
			}
		}
	})
}

// TestLayersOfTheProxy: the tests in a cluster make other images of the first layer, and a release of the agent alone is to
// be pulled as one small layer.
func TestLayersOfTheProxy(t *testing.T) {
	const envoy = "usr/local/bin/envoy"
	for arch, image := range made(t, "proxy") {
		layers, err := image.Layers()
		if err != nil {
			t.Fatal(err)
		}
		if len(layers) != 3 {
			t.Fatalf("%s: %d layers, want Debian, Envoy, agent", arch, len(layers))
		}
		for i, want := range []string{"bin", envoy, "usr/local/bin/pilot-agent"} {
			content, err := layers[i].Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for reader := tar.NewReader(content); ; {
				header, err := reader.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, header.Name)
			}
			if !slices.Contains(names, want) || want != envoy && slices.Contains(names, envoy) {
				t.Errorf("%s: layer %d has %q, want %s", arch, i, names, want)
			}
		}
	}
}

// Every pod pulls the empty image before its first upgrade.
func TestEmptyImageIsSmall(t *testing.T) {
	const limit = 3_000_000
	for arch, image := range made(t, "empty") {
		manifest, err := image.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		var size int64
		for _, l := range manifest.Layers {
			size += l.Size
		}
		if size == 0 || size >= limit {
			t.Errorf("%s: %d bytes compressed, want less than %d", arch, size, limit)
		}
	}
}

func TestProxyTrustsPublicAuthorities(t *testing.T) {
	const enough = 100 // Mozilla has some 140
	for arch, image := range made(t, "proxy") {
		bundle := []byte(files(t, image)["/etc/ssl/certs/ca-certificates.crt"].content)
		count := 0
		for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				t.Errorf("%s: certificate %d: %v", arch, count, err)
			}
			count++
		}
		if count < enough || count != strings.Count(string(bundle), "BEGIN") {
			t.Errorf("%s: %d certificates of %d bytes can be read", arch, count, len(bundle))
		}
	}
}

// TestSameDigest makes an image twice from the same packages and programs, without what is kept of the first time.
func TestSameDigest(t *testing.T) {
	made(t, "empty")
	var layouts [2][]byte
	for i := range layouts {
		dir := t.TempDir()
		for _, kept := range []string{"debian", "programs"} {
			target, err := filepath.Abs(filepath.Join(root, ".images", kept))
			if err == nil {
				err = os.Symlink(target, filepath.Join(dir, kept))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		m := maker{out: filepath.Join(dir, "out"), cache: dir, version: "v1", tag: "v1", platforms: []platform{{arch: "arm64"}, {arch: "amd64"}}}
		if i > 0 {
			slices.Reverse(m.platforms)
		}
		if err := m.make(t.Context(), contents.Images[1]); err != nil {
			t.Fatal(err)
		}
		var err error
		if layouts[i], err = os.ReadFile(filepath.Join(m.out, "empty", "index.json")); err != nil {
			t.Fatal(err)
		}
	}
	if string(layouts[0]) != string(layouts[1]) {
		t.Errorf("two images of the same:\n%s\n%s", layouts[0], layouts[1])
	}
}
