package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"

	"understudy.mesh/build/oci"
)

// Package is a package of Debian.
type Package struct {
	Name, Version string
	// Files are what it unpacks, and what dpkg would know of it, in the form that images without dpkg have it:
	// /var/lib/dpkg/status.d/NAME and NAME.md5sums. Scanners of images read these.
	Files []oci.File
}

// Unpack reads packages from their files. Paths are those of a system whose /bin, /lib and /sbin lead to /usr, as
// Debian's do. Documentation is left out but for the licences.
func Unpack(ctx context.Context, files []string) ([]Package, error) {
	var packages []Package
	for _, file := range files {
		p, err := unpack(ctx, file)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", file, err)
		}
		packages = append(packages, p)
	}
	return packages, nil
}

func unpack(ctx context.Context, file string) (Package, error) {
	control, err := dpkgDeb(ctx, "--field", file)
	if err != nil {
		return Package{}, err
	}
	sums, err := dpkgDeb(ctx, "--info", file, "md5sums")
	if err != nil {
		return Package{}, err
	}
	content, err := dpkgDeb(ctx, "--fsys-tarfile", file)
	if err != nil {
		return Package{}, err
	}
	p := Package{Name: field(control, "Package"), Version: field(control, "Version")}
	if p.Files, err = readTar(content); err != nil {
		return Package{}, err
	}
	record := "/var/lib/dpkg/status.d/" + p.Name
	p.Files = append(p.Files,
		oci.File{Path: record, Mode: 0o644, Content: control}, oci.File{Path: record + ".md5sums", Mode: 0o644, Content: sums})
	return p, nil
}

func dpkgDeb(ctx context.Context, arguments ...string) ([]byte, error) {
	output, err := exec.CommandContext(ctx, "dpkg-deb", arguments...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return nil, fmt.Errorf("dpkg-deb %s: %w", arguments[0], err)
	}
	return output, nil
}

// field is the value of a field of one line, deb822(5).
func field(control []byte, name string) string {
	for line := range strings.Lines(string(control)) {
		if value, found := strings.CutPrefix(line, name+": "); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// readTar reads the files of a package.
func readTar(content []byte) ([]oci.File, error) {
	var files []oci.File
	for reader := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		f := oci.File{Path: place(header.Name), Mode: header.FileInfo().Mode(), UID: header.Uid, GID: header.Gid}
		if leaveOut(f) {
			continue
		}
		switch header.Typeflag {
		case tar.TypeDir:
		case tar.TypeSymlink:
			f.Link = header.Linkname
		case tar.TypeReg:
			if f.Content, err = io.ReadAll(reader); err != nil {
				return nil, err
			}
		case tar.TypeLink:
			to := place(header.Linkname)
			i := slices.IndexFunc(files, func(other oci.File) bool { return other.Path == to })
			if i < 0 {
				return nil, fmt.Errorf("%s is a hard link to %s, which is not before it", f.Path, to)
			}
			f.Mode, f.Content = files[i].Mode, files[i].Content
		default:
			return nil, fmt.Errorf("%s is of type %q: want a file, a directory or a link", f.Path, header.Typeflag)
		}
		files = append(files, f)
	}
}

// merged are the directories of the root that lead to those of the same name below /usr.
var merged = []string{"/bin", "/lib", "/lib64", "/sbin"}

// place is where a file of a package is in an image.
func place(name string) string {
	name = path.Join("/", name)
	if slices.ContainsFunc(merged, func(dir string) bool { return strings.HasPrefix(name+"/", dir+"/") }) {
		return "/usr" + name
	}
	return name
}

// documentation is what nobody reads in a container.
var documentation = []string{
	"/usr/share/bash-completion/", "/usr/share/bug/", "/usr/share/info/", "/usr/share/lintian/", "/usr/share/locale/", "/usr/share/man/",
}

func leaveOut(f oci.File) bool {
	if slices.ContainsFunc(documentation, func(dir string) bool { return strings.HasPrefix(f.Path+"/", dir) }) {
		return true
	}
	if inside, found := strings.CutPrefix(f.Path, "/usr/share/doc/"); found {
		// A package's directory may be a link to that of another one of the same source.
		return path.Base(inside) != "copyright" && (f.Mode.Type() != fs.ModeSymlink || strings.Contains(inside, "/"))
	}
	return f.Path == "/"
}
