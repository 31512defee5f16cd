package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// papersPath is where an image has the papers of makePapers.
const papersPath = "usr/share/doc/understudy"

// papersLayer is a layer with the files of a directory at papersPath: the same files, the same layer.
func papersLayer(dir string) (v1.Layer, error) {
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		header := &tar.Header{Name: path.Join(papersPath, filepath.ToSlash(name)), Mode: 0o644, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
		if entry.IsDir() {
			header.Name, header.Mode, header.Typeflag = header.Name+"/", 0o755, tar.TypeDir
			return w.WriteHeader(header)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		header.Size = int64(len(text))
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("make the layer of licences: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("make the layer of licences: %w", err)
	}
	return layer, nil
}

// withPapers is an image for several platforms with one more layer in each; it must be for all architectures.
func (r *release) withPapers(built v1.ImageIndex, papers v1.Layer) (v1.ImageIndex, error) {
	manifest, err := built.IndexManifest()
	if err != nil {
		return nil, err
	}
	var has []string
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, platform := range manifest.Manifests {
		image, err := built.Image(platform.Digest)
		if err != nil {
			return nil, err
		}
		image, err = mutate.Append(image, mutate.Addendum{Layer: papers, History: v1.History{
			Created: v1.Time{Time: r.commit.time}, CreatedBy: "licences of what is linked",
		}})
		if err != nil {
			return nil, err
		}
		has = append(has, platform.Platform.Architecture)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform.Platform}})
	}
	if slices.Sort(has); !slices.Equal(has, architectures) {
		return nil, fmt.Errorf("it is for %q, want %q: make the images without ENVOY", has, architectures)
	}
	return index, nil
}
