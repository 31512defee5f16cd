package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// sample is an image with what images have: two layers, a directory of its user's, links, a program from a file.
func sample(t *testing.T, dir string) Image {
	t.Helper()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Image{
		Architecture: "arm64",
		User:         "1337:1337",
		Entrypoint:   []string{"/usr/local/bin/program"},
		Cmd:          []string{"serve"},
		Env:          []string{"PATH=/usr/local/bin:/usr/bin"},
		Labels:       map[string]string{"b": "2", "a": "1"},
		Created:      time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Layers: []Layer{
			{Comment: "base", Files: []File{
				{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
				{Path: "/bin", Mode: fs.ModeSymlink, Link: "usr/bin"},
				{Path: "/etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0::/:/bin/sh\n")},
				{Path: "/usr/bin/su", Mode: fs.ModeSetuid | 0o755, Content: []byte("su")},
			}},
			{Comment: "program", Files: []File{
				{Path: "/usr/local/bin/program", Mode: 0o755, Source: program},
				{Path: "/var/lib/data", Mode: fs.ModeDir | 0o755, UID: 1337, GID: 1337},
				{Path: "/tmp/note", Mode: 0o644, Content: []byte{}},
			}},
		},
	}
}

func build(t *testing.T, description Image) v1.Image {
	t.Helper()
	image, err := Build(description, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func digest(t *testing.T, of interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	hash, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hash.String()
}

func index(t *testing.T, images ...v1.Image) v1.ImageIndex {
	t.Helper()
	made, err := Index(images...)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestImageIsValid(t *testing.T) {
	image := build(t, sample(t, t.TempDir()))
	if err := validate.Image(image); err != nil {
		t.Error(err)
	}
	if err := validate.Index(index(t, image)); err != nil {
		t.Error(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{
		User: "1337:1337", Entrypoint: []string{"/usr/local/bin/program"}, Cmd: []string{"serve"},
		Env: []string{"PATH=/usr/local/bin:/usr/bin"}, Labels: map[string]string{"a": "1", "b": "2"},
	}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("the configuration differs (-want +got):\n%s", diff)
	}
	if got := fmt.Sprint(config.OS, " ", config.Architecture, " ", config.Created); got != "linux arm64 2026-01-02 03:04:05 +0000 UTC" {
		t.Errorf("the image says of itself: %s", got)
	}
}

// The digest is of what the image is, not of where, when and in which order it was put together.
func TestSameDescriptionSameDigest(t *testing.T) {
	first := index(t, build(t, sample(t, t.TempDir())))

	elsewhere := t.TempDir()
	again := sample(t, elsewhere)
	program := filepath.Join(elsewhere, "program")
	if err := os.Chtimes(program, time.Now(), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(program, 0o777); err != nil {
		t.Fatal(err)
	}
	for i := range again.Layers {
		slices.Reverse(again.Layers[i].Files)
	}
	again.Created = again.Created.In(time.FixedZone("elsewhere", 8*60*60))
	second := index(t, build(t, again))
	if digest(t, first) != digest(t, second) {
		t.Errorf("digests %s and %s of the same description", digest(t, first), digest(t, second))
	}
}

func TestWhatChangesTheDigest(t *testing.T) {
	was := digest(t, build(t, sample(t, t.TempDir())))
	for what, change := range map[string]func(*Image){
		"content":    func(i *Image) { i.Layers[0].Files[2].Content = []byte("nobody") },
		"mode":       func(i *Image) { i.Layers[0].Files[0].Mode = fs.ModeDir | 0o755 },
		"owner":      func(i *Image) { i.Layers[1].Files[1].UID = 0 },
		"group":      func(i *Image) { i.Layers[1].Files[1].GID = 0 },
		"link":       func(i *Image) { i.Layers[0].Files[1].Link = "sbin" },
		"user":       func(i *Image) { i.User = "" },
		"created":    func(i *Image) { i.Created = i.Created.Add(time.Second) },
		"less files": func(i *Image) { i.Layers[1].Files = i.Layers[1].Files[:2] },
	} {
		changed := sample(t, t.TempDir())
		change(&changed)
		if digest(t, build(t, changed)) == was {
			t.Errorf("%s: another one has the same digest", what)
		}
	}
}

// A node that has one release pulls only the layers that the next one changed, whenever that was made.
func TestReleasesShareLayers(t *testing.T) {
	dir := t.TempDir()
	one := build(t, sample(t, dir))
	next := sample(t, dir)
	next.Created = next.Created.AddDate(0, 1, 0)
	next.Layers[1].Files[2].Content = []byte("new")
	two := build(t, next)

	was, is := layers(t, one), layers(t, two)
	if digest(t, was[0]) != digest(t, is[0]) {
		t.Error("a layer that nobody changed has another digest")
	}
	if digest(t, was[1]) == digest(t, is[1]) {
		t.Error("a layer that was changed has the same digest")
	}
}

func layers(t *testing.T, image v1.Image) []v1.Layer {
	t.Helper()
	found, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// entries is one line for each file of a layer, in the layer's order.
func entries(t *testing.T, layer v1.Layer) []string {
	t.Helper()
	content, err := layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var found []string
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if !header.ModTime.Equal(time.Unix(0, 0)) || header.Uname != "" || header.Gname != "" {
			t.Errorf("%s: from %v, of %q, %q", header.Name, header.ModTime, header.Uname, header.Gname)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, strings.TrimSpace(fmt.Sprintf("%c %04o %d:%d %s %s%q",
			header.Typeflag, header.Mode, header.Uid, header.Gid, header.Name, header.Linkname, text)))
	}
}

func TestModeOwnerAndParents(t *testing.T) {
	got := layers(t, build(t, sample(t, t.TempDir())))
	want := [][]string{
		{
			`2 0777 0:0 bin usr/bin""`,
			`5 0755 0:0 etc/ ""`,
			`0 0644 0:0 etc/passwd "root:x:0:0::/:/bin/sh\n"`,
			`5 1777 0:0 tmp/ ""`,
			`5 0755 0:0 usr/ ""`,
			`5 0755 0:0 usr/bin/ ""`,
			`0 4755 0:0 usr/bin/su "su"`,
		},
		// tmp and usr are there: a second entry would give them another mode.
		{
			`0 0644 0:0 tmp/note ""`,
			`5 0755 0:0 usr/local/ ""`,
			`5 0755 0:0 usr/local/bin/ ""`,
			`0 0755 0:0 usr/local/bin/program "#!/bin/sh\n"`,
			`5 0755 0:0 var/ ""`,
			`5 0755 0:0 var/lib/ ""`,
			`5 0755 1337:1337 var/lib/data/ ""`,
		},
	}
	for i := range want {
		if diff := cmp.Diff(want[i], entries(t, got[i])); diff != "" {
			t.Errorf("layer %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestBadDescriptions(t *testing.T) {
	file := func(path string) File { return File{Path: path, Mode: 0o644, Content: []byte("x")} }
	for name, test := range map[string]struct {
		files []File
		want  string
	}{
		"relative":      {[]File{file("etc/passwd")}, `file "etc/passwd": want an absolute path`},
		"not clean":     {[]File{file("/etc/../passwd")}, `file "/etc/../passwd": want an absolute path`},
		"root":          {[]File{{Path: "/", Mode: fs.ModeDir | 0o755}}, `file "/": want an absolute path`},
		"twice":         {[]File{file("/a"), file("/b"), file("/a")}, "file /a: described twice"},
		"device":        {[]File{{Path: "/dev/null", Mode: fs.ModeDevice | 0o666}}, "want a regular file, a directory or a symbolic link"},
		"link to none":  {[]File{{Path: "/a", Mode: fs.ModeSymlink}}, "a symbolic link has a Link"},
		"file to":       {[]File{{Path: "/a", Mode: 0o644, Link: "b"}}, "a symbolic link has a Link"},
		"full link":     {[]File{{Path: "/a", Mode: fs.ModeSymlink, Link: "b", Content: []byte("x")}}, "only a regular file has content"},
		"two contents":  {[]File{{Path: "/a", Source: "a", Content: []byte("x")}}, "Source and Content"},
		"below a link":  {[]File{{Path: "/bin", Mode: fs.ModeSymlink, Link: "usr/bin"}, file("/bin/sh")}, "file /bin/sh: /bin above it is no directory"},
		"below a file":  {[]File{file("/a"), file("/a/b/c")}, "file /a/b/c: /a above it is no directory"},
		"missing":       {[]File{{Path: "/a", Source: "/nonexistent/b"}}, "file /a: open /nonexistent/b: no such file"},
		"not a file":    {[]File{{Path: "/a", Source: os.TempDir()}}, "file /a: not a regular file"},
		"over a parent": {[]File{file("/base/file")}, "file /base/file: a directory in one layer, and none in another"},
	} {
		base := Layer{Comment: "base", Files: []File{{Path: "/base/file", Mode: fs.ModeDir | 0o755}}}
		cache := t.TempDir()
		_, err := Build(Image{Architecture: "amd64", Layers: []Layer{base, {Comment: name, Files: test.files}}}, cache)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), fmt.Sprintf("layer %q", name)) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
		left, err := filepath.Glob(filepath.Join(cache, "*", "layer-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left %q in the cache, %v", name, left, err)
		}
	}
	if _, err := Build(Image{}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "no architecture") {
		t.Errorf("no architecture: %v", err)
	}
}

func TestLayersAreCompressedOnce(t *testing.T) {
	cache, description := t.TempDir(), sample(t, t.TempDir())
	if _, err := Build(description, cache); err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob(filepath.Join(cache, "*", "*"))
	if err != nil || len(kept) != 2 {
		t.Fatalf("the cache holds %q, %v, want both layers", kept, err)
	}
	// A mark in the cached file shows who reads it.
	marked := append(bytes.Clone(readFile(t, kept[0])), "mark"...)
	if err := os.WriteFile(kept[0], marked, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Build(description, cache)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int64
	for _, l := range layers(t, again) {
		size, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size)
	}
	if !slices.Contains(sizes, int64(len(marked))) {
		t.Errorf("layers of %d bytes, none of the %d that the cache has", sizes, len(marked))
	}
}

func readFile(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestIndexOfPlatforms(t *testing.T) {
	arm, amd := sample(t, t.TempDir()), sample(t, t.TempDir())
	amd.Architecture = "amd64"
	made := index(t, build(t, arm), build(t, amd))
	manifest, err := made.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range manifest.Manifests {
		platforms = append(platforms, m.Platform.String())
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms %q, want %q", platforms, want)
	}
	if got, other := digest(t, made), digest(t, index(t, build(t, amd), build(t, arm))); got != other {
		t.Error("the order of the images changes the digest")
	}
	if _, err := Index(build(t, arm), build(t, arm)); err == nil || !strings.Contains(err.Error(), "two of them are for arm64") {
		t.Errorf("two images for one platform: %v", err)
	}
}

func TestLayoutIsReplacedAsAWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images", "sample")
	first := sample(t, t.TempDir())
	write := func(description Image) v1.ImageIndex {
		made := index(t, build(t, description))
		if err := WriteLayout(dir, "understudy/sample:v1", made); err != nil {
			t.Fatal(err)
		}
		return made
	}
	write(first)
	first.Layers[0].Files[2].Content = []byte("changed")
	second := write(first)

	read, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(read); err != nil {
		t.Error(err)
	}
	manifest, err := read.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest.String() != digest(t, second) {
		t.Errorf("the layout has %v, want the last index %s", manifest.Manifests, digest(t, second))
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(blobs) != 5 {
		t.Errorf("%d blobs, want index, manifest, configuration and two layers: %v", len(blobs), err)
	}
	others, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(others) != 1 {
		t.Errorf("besides the layout there is %v, %v", others, err)
	}

	if err := WriteLayout(dir, "Under Study", second); err == nil || !strings.Contains(err.Error(), `image name "Under Study"`) {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := layout.ImageIndexFromPath(dir); err != nil {
		t.Errorf("after a failure the layout before it is gone: %v", err)
	}
}

// tarFiles is what a tar holds, by name.
func tarFiles(t *testing.T, content []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTarIsForContainerd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sample")
	made := index(t, build(t, sample(t, t.TempDir())))
	if err := WriteLayout(dir, "understudy/sample:dev", made); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]string{
		"understudy/sample:v2":         {"docker.io/understudy/sample:v2", "v2"},
		"nginx:1.14.2":                 {"docker.io/library/nginx:1.14.2", "1.14.2"},
		"curlimages/curl":              {"docker.io/curlimages/curl:latest", "latest"},
		"registry.example/a/pause:3.1": {"registry.example/a/pause:3.1", "3.1"},
		"registry.example:5000/a/b:v1": {"registry.example:5000/a/b:v1", "v1"},
	} {
		var first, second bytes.Buffer
		if err := errors.Join(WriteTar(&first, dir, name), WriteTar(&second, dir, name)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("%s: two tars of one layout differ", name)
		}
		files := tarFiles(t, first.Bytes())
		var root v1.IndexManifest
		if err := json.Unmarshal(files["index.json"], &root); err != nil {
			t.Fatalf("%s: index.json: %v", name, err)
		}
		annotations := root.Manifests[0].Annotations
		if got := [2]string{annotations[annotationContainerd], annotations[annotationTag]}; got != want {
			t.Errorf("%s: annotated as %q, want %q", name, got, want)
		}
		if files["oci-layout"] == nil || files["blobs/sha256/"+root.Manifests[0].Digest.Hex] == nil || len(files) != 7 {
			t.Errorf("%s: the tar lacks something of a layout: %d files", name, len(files))
		}
	}
	if err := WriteTar(io.Discard, dir, "a:b:c"); err == nil || !strings.Contains(err.Error(), `"a:b:c"`) {
		t.Errorf("a bad name: %v", err)
	}
	if err := WriteTar(io.Discard, t.TempDir(), "a:b"); err == nil || !strings.Contains(err.Error(), "read the layout in ") {
		t.Errorf("no layout: %v", err)
	}
}
