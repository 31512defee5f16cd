package oci

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// The annotations of a layout's only image: where containerd and other tools find its name.
const (
	annotationContainerd = "io.containerd.image.name"
	annotationTag        = "org.opencontainers.image.ref.name"
)

// WriteLayout writes an image as an OCI layout into the directory dir, under a name such as understudy/proxy:v1. What
// dir held before is replaced as a whole, or stays if this fails.
func WriteLayout(dir, imageName string, index v1.ImageIndex) error {
	annotations, err := annotate(imageName)
	if err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(parent, "layout-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	path, err := layout.Write(temporary, empty.Index)
	if err == nil {
		err = path.AppendIndex(index, layout.WithAnnotations(annotations))
	}
	if err != nil {
		return fmt.Errorf("write the layout of %s: %w", imageName, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(temporary, dir)
}

// annotate gives the annotations of a name, which containerd wants in full: with registry and tag.
func annotate(imageName string) (map[string]string, error) {
	tag, err := name.NewTag(imageName)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w", imageName, err)
	}
	// The library's name of Docker Hub's API is not the one that images have.
	full := strings.Replace(tag.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
	return map[string]string{annotationContainerd: full, annotationTag: tag.TagStr()}, nil
}

// WriteTar writes the layout in dir as a tar that containerd imports (ctr images import) under the given name,
// whatever name it has in dir.
func WriteTar(to io.Writer, dir, imageName string) error {
	annotations, err := annotate(imageName)
	if err != nil {
		return err
	}
	index, err := named(dir, annotations)
	if err != nil {
		return fmt.Errorf("read the layout in %s: %w", dir, err)
	}
	w := tar.NewWriter(to)
	// WalkDir goes in the order of names, so that one layout is one tar.
	err = filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		inside, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		written := File{Path: "/" + filepath.ToSlash(inside), Mode: 0o644, Source: file}
		if inside == "index.json" {
			written.Source, written.Content = "", index
		}
		return writeEntry(w, written)
	})
	if err != nil {
		return fmt.Errorf("write %s as a tar: %w", imageName, err)
	}
	return w.Close()
}

// named is the index.json of a layout, with other annotations for its only image.
func named(dir string, annotations map[string]string) ([]byte, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if n := len(manifest.Manifests); n != 1 {
		return nil, fmt.Errorf("index.json has %d images, want one", n)
	}
	manifest = manifest.DeepCopy()
	manifest.Manifests[0].Annotations = annotations
	return json.Marshal(manifest)
}
