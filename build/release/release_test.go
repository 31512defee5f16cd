package main

import (
	"archive/tar"
	"bytes"
	"crypto/elliptic"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"understudy.mesh/build/release/content"
	"understudy.mesh/build/release/sign"
)

// imagesOf, in the environment, makes of this test the `make images` of the repository that TestRelease releases: it
// writes the layouts below that root. More is in them if extraFile is set.
const (
	imagesOf  = "RELEASE_TEST_IMAGES_OF"
	extraFile = "RELEASE_TEST_EXTRA_FILE"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(imagesOf); root != "" {
		if err := fakeImages(root, os.Getenv(extraFile)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// fakeImages makes the images of the release that is in the making.
func fakeImages(root, extra string) error {
	making, err := filepath.Glob(filepath.Join(root, "bin", "release", ".making-*"))
	if err != nil || len(making) != 1 {
		return fmt.Errorf("releases in the making: %q, %v", making, err)
	}
	stage := making[0]
	for _, name := range imageNames {
		index := v1.ImageIndex(empty.Index)
		for _, arch := range architectures {
			files := map[string]string{
				"usr/local/bin/pilot-agent": filepath.Join(stage, "linux-"+arch, "pilot-agent"),
			}
			if extra != "" {
				files[extra] = "/proc/self/exe"
			}
			image, err := fakeImage(files)
			if err != nil {
				return err
			}
			index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
		}
		dir := filepath.Join(root, "bin", "images", name)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		l, err := layout.Write(dir, empty.Index)
		if err != nil {
			return err
		}
		if err := l.AppendIndex(index); err != nil {
			return err
		}
	}
	return nil
}

// fakeImage is an image of one layer: files of this machine by their path in it.
func fakeImage(files map[string]string) (v1.Image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var paths []string
	for path := range files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		content, err := os.ReadFile(files[path])
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(empty.Image, layer)
}

// product is a repository with what a release needs of one: a program with a module, and a Makefile.
func product(t *testing.T) string {
	t.Helper()
	sums, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	licence, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "golang.org/x/mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	root, _ := newRepository(t, map[string]string{
		"main.go": "package main\n\nimport \"golang.org/x/mod/semver\"\n\nfunc main() { print(semver.IsValid(\"v1\")) }\n",
		"go.mod":  "module example.test/pilot-agent\n\ngo 1.26.0\n\nrequire golang.org/x/mod " + string(mod),
		"go.sum":  string(sums), "LICENSE": string(licence), ".gitignore": "/bin/\n",
		"Makefile": "build:\n\tCGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o $(BIN)/ .\n" +
			"images:\n\t" + imagesOf + "=$(CURDIR) " + os.Args[0] + "\n",
	})
	return root
}

func newRelease(t *testing.T, root, version string, key *sign.Key) *release {
	t.Helper()
	made, err := checkTree(t.Context(), root, version)
	if err != nil {
		t.Fatal(err)
	}
	return &release{root: root, version: version, commit: made, key: key, progress: t.Output()}
}

// TestRelease makes one release twice, with and without a key: the sums are the same, and right.
func TestRelease(t *testing.T) {
	root := product(t)
	private, _, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.ParseKey(private, nil)
	if err != nil {
		t.Fatal(err)
	}
	final := filepath.Join(root, "bin", "release", "v1.2.3")
	var sums [2][]byte
	for i, key := range []*sign.Key{nil, key} {
		if err := newRelease(t, root, "v1.2.3", key).make(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sums[i], err = os.ReadFile(filepath.Join(final, "SHA256SUMS")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(sums[0], sums[1]) {
		t.Errorf("another release of the same commit:\n%s\n%s", sums[0], sums[1])
	}
	check := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = final
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, name := range []string{
		"linux-amd64/pilot-agent", "linux-arm64/pilot-agent", "images.txt", "doc/NOTICE", "doc/licenses/std@" + goVersion(t) + "/LICENSE",
		"sbom/binaries-linux-arm64.spdx.json", "sbom/proxy-linux-amd64.spdx.json", "sbom/injector-linux-arm64.spdx.json",
	} {
		if !strings.Contains(string(sums[0]), "  "+name+"\n") {
			t.Errorf("no %s in\n%s", name, sums[0])
		}
	}
	for _, name := range []string{"SHA256SUMS.sig", "SHA256SUMS.sigstore.json", "cosign.pub", "images/proxy/index.json"} {
		if _, err := os.Stat(filepath.Join(final, name)); err != nil {
			t.Error(err)
		}
	}
	bill, err := os.ReadFile(filepath.Join(final, "sbom", "proxy-linux-amd64.spdx.json"))
	if err != nil || !bytes.Contains(bill, []byte("pkg:golang/golang.org/x/mod@v")) || !bytes.Contains(bill, []byte(`"licenseDeclared": "BSD-3-Clause"`)) {
		t.Errorf("bill of materials: %v\n%s", err, bill)
	}
	index, err := readLayoutOf(filepath.Join(final, "images", "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	inventory, err := content.Read(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"LICENSE", "NOTICE", "licenses/std@" + goVersion(t) + "/LICENSE"} {
		if !inventory.Has(papersPath + "/" + name) {
			t.Errorf("the image has no %s", name)
		}
	}
	noneInTheMaking(t, root)
}

// readLayoutOf is the first image, for amd64, of a layout with a signature.
func readLayoutOf(dir string) (v1.Image, error) {
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := root.IndexManifest()
	if err != nil {
		return nil, err
	}
	index, err := root.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	inner, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	return index.Image(inner.Manifests[0].Digest)
}

func goVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOVERSION").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func noneInTheMaking(t *testing.T, root string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(root, "bin", "release", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestReleaseFails has images that must not be released. The release of before stays.
func TestReleaseFails(t *testing.T) {
	root := product(t)
	before := filepath.Join(root, "bin", "release", "v1.2.3", "SHA256SUMS")
	if err := os.MkdirAll(filepath.Dir(before), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(before, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, file, words string }{
		{"a program of another build", "usr/bin/other", "/usr/bin/other is none of the binaries of this release"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(extraFile, tc.file)
			err := newRelease(t, root, "v1.2.3", nil).make(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("%v: no %q", err, tc.words)
			}
			if _, err := os.Stat(before); err != nil {
				t.Error(err)
			}
			noneInTheMaking(t, root)
		})
	}
}
