package content

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// image makes an image of one layer for each set of files.
func image(t *testing.T, layers ...map[string]string) v1.Image {
	t.Helper()
	made := empty.Image
	for _, files := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, content := range files {
			header := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
			if to, isLink := strings.CutPrefix(content, "-> "); isLink {
				header.Typeflag, header.Linkname, header.Size, content = tar.TypeSymlink, to, 0, ""
			}
			if err := w.WriteHeader(header); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if made, err = mutate.AppendLayers(made, layer); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

const elf = "\x7fELF of some kind"

// TestRead has each kind of file, in two layers.
func TestRead(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	i, err := Read(image(t,
		map[string]string{
			"etc/os-release": "NAME=Debian\nID=debian\nVERSION_ID=\"12\"\n",
			"var/lib/dpkg/status": "Package: iptables\nStatus: install ok installed\nVersion: 1.8.9-2\nArchitecture: amd64\nDescription: rules\n of packets\n Package: no\n\n" +
				"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: base\nStatus: install ok installed\nVersion: 2+b1\nArchitecture: all\nSource: other (1)\n",
			"var/lib/dpkg/info/iptables.list":    "/.\n/usr/sbin/iptables\n",
			"var/lib/dpkg/info/base.md5sums":     "0123  bin/sh\n",
			"usr/sbin/iptables":                  elf,
			"usr/bin/sh":                         elf,
			"usr/local/bin/envoy":                "replaced below",
			"usr/share/doc/understudy/NOTICE":    "us",
			"var/lib/dpkg/status.d/tiny":         "Package: tiny\nVersion: 3\nArchitecture: amd64\n",
			"var/lib/dpkg/status.d/tiny.md5sums": "0123  usr/bin/tiny\n",
			"./usr/bin/tiny":                     elf,
		},
		map[string]string{"usr/local/bin/envoy": elf, "usr/local/bin/pilot-agent": string(self), "short": "\x7fE"},
	))
	if err != nil {
		t.Fatal(err)
	}
	var packages []string
	for _, p := range i.Debian {
		packages = append(packages, p.Name+" "+p.Version+" "+p.Arch)
	}
	if want := []string{"base 2+b1 all", "iptables 1.8.9-2 amd64", "tiny 3 amd64"}; !slices.Equal(packages, want) {
		t.Errorf("packages %q, want %q", packages, want)
	}
	if len(i.Go) != 1 || i.Go[0].Name != "usr/local/bin/pilot-agent" || i.Go[0].Go != runtime.Version() {
		t.Errorf("Go binaries %+v", i.Go)
	}
	if len(i.Others) != 1 || i.Others[0].Path != "usr/local/bin/envoy" {
		t.Errorf("others %+v", i.Others)
	}
	if i.Distribution != "debian-12" || !i.Has("usr/share/doc/understudy/NOTICE") || i.Has("usr/share/doc/understudy/LICENSE") {
		t.Errorf("distribution %q", i.Distribution)
	}
}

// TestCopyrightBehindLinks has the documents of one package in the directory of another.
func TestCopyrightBehindLinks(t *testing.T) {
	i, err := Read(image(t, map[string]string{
		"usr/share/doc/gcc/copyright": "FSF", "usr/share/doc/libgcc": "-> gcc", "usr/share/doc/libatomic": "-> /usr/share/doc/gcc", "usr/share/doc/lost": "-> none",
	}))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"gcc": true, "libgcc": true, "libatomic": true, "lost": false, "none": false} {
		if got := i.Has("usr/share/doc/" + name + "/copyright"); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestReadBroken(t *testing.T) {
	_, err := Read(image(t, map[string]string{"var/lib/dpkg/status": "Package: nameless\nStatus: install ok installed\n"}))
	if err == nil || !strings.Contains(err.Error(), "var/lib/dpkg/status") || !strings.Contains(err.Error(), "nameless") {
		t.Errorf("%v", err)
	}
}
