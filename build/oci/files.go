package oci

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
)

// File is a regular file, a directory or a symbolic link in an image. It belongs to root, if not said otherwise.
// A directory above it that no layer describes is root's, with mode 0755.
type File struct {
	Path     string      // from the root: /usr/local/bin/pilot-agent
	Mode     fs.FileMode // fs.ModeDir, fs.ModeSymlink or neither; permissions, with setuid, setgid and sticky
	UID, GID int
	Link     string // where a symbolic link leads
	// A regular file has the content of the file Source of this machine, or Content if Source is empty.
	Source  string
	Content []byte
}

// open gives the content of a regular file, and its size.
func (f File) open() (io.ReadCloser, int64, error) {
	if f.Source == "" {
		return io.NopCloser(bytes.NewReader(f.Content)), int64(len(f.Content)), nil
	}
	file, err := os.Open(f.Source)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

// check says what is wrong with one description by itself.
func (f File) check() error {
	switch kind := f.Mode.Type(); {
	case !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/":
		return errors.New("want an absolute path, without . and .. and a slash at its end")
	case kind != 0 && kind != fs.ModeDir && kind != fs.ModeSymlink:
		return fmt.Errorf("mode %v: want a regular file, a directory or a symbolic link", f.Mode)
	case (kind == fs.ModeSymlink) != (f.Link != ""):
		return errors.New("a symbolic link has a Link, and nothing else has one")
	case kind != 0 && (f.Source != "" || f.Content != nil):
		return errors.New("only a regular file has content")
	case f.Source != "" && f.Content != nil:
		return errors.New("it has Source and Content: want one of them")
	}
	return nil
}

// tree is the types of all files of an image by path, as far as its layers have been read.
type tree map[string]fs.FileMode

// add puts a layer's files over those of the layers below it. It returns them in order, with the directories that
// they need and nobody described: not every engine makes these, or makes them readable.
func (t tree) add(files []File) ([]File, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	var entries []File
	for i, f := range files {
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("file %q: %w", f.Path, err)
		}
		if i > 0 && files[i-1].Path == f.Path {
			return nil, fmt.Errorf("file %s: described twice", f.Path)
		}
		parents, err := t.parents(f.Path)
		if err != nil {
			return nil, err
		}
		if was, there := t[f.Path]; there && was != f.Mode.Type() && (was == fs.ModeDir || f.Mode.IsDir()) {
			return nil, fmt.Errorf("file %s: a directory in one layer, and none in another", f.Path)
		}
		t[f.Path] = f.Mode.Type()
		entries = append(append(entries, parents...), f)
	}
	return entries, nil
}

// parents are the directories above a path that nobody described.
func (t tree) parents(file string) ([]File, error) {
	var missing []File
	for dir := path.Dir(file); dir != "/"; dir = path.Dir(dir) {
		kind, there := t[dir]
		if there && kind != fs.ModeDir {
			return nil, fmt.Errorf("file %s: %s above it is no directory in the image", file, dir)
		}
		if !there {
			t[dir] = fs.ModeDir
			missing = append(missing, File{Path: dir, Mode: fs.ModeDir | 0o755})
		}
	}
	slices.Reverse(missing)
	return missing, nil
}
