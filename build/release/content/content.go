// Package content owns the inventory of an image: which Go binaries, Debian packages and other executables are in it.
// It reads the image's own layers, so that what it says is what is shipped and not what was meant to be.
package content

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"understudy.mesh/build/release/linked"
)

// maxExecutable bounds what is held of one file; Envoy's contrib build has 200 MB.
const maxExecutable = 1 << 30

// Inventory is what is in an image.
type Inventory struct {
	Go     []linked.Binary
	Debian []Package
	// Distribution is such as debian-12, from os-release(5); empty: the image does not say.
	Distribution string
	// Others are the executables that neither a Debian package nor a Go toolchain accounts for.
	Others []Executable
	// files has the path of every file, without a slash before it.
	files map[string]bool
	// links is where each symbolic link leads.
	links map[string]string
}

// Has reports whether the image has a file, such as usr/share/doc/understudy/NOTICE. Its directory may be a link, as
// that of a Debian package is to the one of another package from the same source.
func (i Inventory) Has(file string) bool {
	dir, base := path.Split(file)
	dir = path.Clean(dir)
	if to, isLink := i.links[dir]; isLink {
		if !path.IsAbs(to) {
			to = path.Join("/", path.Dir(dir), to)
		}
		file = path.Join(to, base)[1:]
	}
	return i.files[file]
}

// Executable is an ELF file.
type Executable struct {
	Path string
	// SHA256 is in hexadecimal digits.
	SHA256 string
	// content is there until the file is told from a Go binary.
	content []byte
}

// Read reads the layers of an image.
func Read(image v1.Image) (Inventory, error) {
	i := Inventory{files: map[string]bool{}, links: map[string]string{}}
	var executables []Executable
	owned := map[string]bool{}
	rootfs := mutate.Extract(image)
	defer rootfs.Close()
	for reader := tar.NewReader(rootfs); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Inventory{}, fmt.Errorf("read the layers: %w", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if header.Typeflag == tar.TypeSymlink {
			i.links[name] = header.Linkname
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		i.files[name] = true
		if executables, err = i.file(name, reader, executables, owned); err != nil {
			return Inventory{}, fmt.Errorf("read %s: %w", name, err)
		}
	}
	for _, e := range executables {
		if err := i.sort(e, owned); err != nil {
			return Inventory{}, err
		}
	}
	slices.SortFunc(i.Debian, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(i.Go, func(a, b linked.Binary) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(i.Others, func(a, b Executable) int { return cmp.Compare(a.Path, b.Path) })
	return i, nil
}

// file takes from one file what is in it for the inventory: dpkg's records, or an executable.
func (i *Inventory) file(name string, r io.Reader, executables []Executable, owned map[string]bool) ([]Executable, error) {
	switch dir, base := path.Split(name); {
	case name == "etc/os-release" || name == "usr/lib/os-release":
		fields := map[string]string{}
		err := readLines(r, func(line string) {
			field, value, _ := strings.Cut(line, "=")
			fields[field] = strings.Trim(value, `"`)
		})
		i.Distribution = fields["ID"] + "-" + fields["VERSION_ID"]
		return executables, err
	case name == "var/lib/dpkg/status", dir == "var/lib/dpkg/status.d/" && path.Ext(base) != ".md5sums":
		packages, err := readStatus(r)
		i.Debian = append(i.Debian, packages...)
		return executables, err
	case dir == "var/lib/dpkg/info/" && path.Ext(base) == ".list":
		return executables, readLines(r, func(line string) { owned[strings.TrimPrefix(line, "/")] = true })
	case path.Ext(base) == ".md5sums" && (dir == "var/lib/dpkg/info/" || dir == "var/lib/dpkg/status.d/"):
		return executables, readLines(r, func(line string) {
			if _, file, ok := strings.Cut(line, "  "); ok {
				owned[strings.TrimPrefix(file, "/")] = true
			}
		})
	}
	head := make([]byte, 4)
	if n, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head[:n], []byte("\x7fELF")) {
		return executables, nil // too short, or no executable
	}
	content, err := io.ReadAll(io.LimitReader(io.MultiReader(bytes.NewReader(head), r), maxExecutable+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxExecutable {
		return nil, fmt.Errorf("an executable of more than %d bytes", maxExecutable)
	}
	sum := sha256.Sum256(content)
	return append(executables, Executable{Path: name, SHA256: hex.EncodeToString(sum[:]), content: content}), nil
}

// sort puts an executable where it belongs, now that all of dpkg's records are known.
func (i *Inventory) sort(e Executable, owned map[string]bool) error {
	if owned[e.Path] || ownedByMerge(e.Path, owned) {
		return nil
	}
	binary, err := linked.Read(e.Path, bytes.NewReader(e.content), int64(len(e.content)))
	switch {
	case errors.Is(err, linked.ErrNotGo):
		i.Others = append(i.Others, Executable{Path: e.Path, SHA256: e.SHA256})
	case err != nil:
		return err
	default:
		i.Go = append(i.Go, binary)
	}
	return nil
}

// ownedByMerge knows a file below usr that its package has in the root: bin, lib and sbin are links since Debian 12.
func ownedByMerge(name string, owned map[string]bool) bool {
	inner, below := strings.CutPrefix(name, "usr/")
	return below && owned[inner]
}
