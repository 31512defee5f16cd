// Package oci owns the form of a container image: from files and a configuration it makes images, an index over
// their platforms, a layout on disk, and a tar that containerd imports. It needs no container engine.
//
// The same description gives the same digests, whatever machine, clock, user or order of files it comes from.
package oci

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image describes an image for one platform. Its operating system is Linux.
type Image struct {
	Architecture string // as Go names it: amd64, arm64
	Layers       []Layer
	User         string // "1337:1337"; empty: root
	Entrypoint   []string
	Cmd          []string
	Env          []string // "PATH=/usr/bin"
	Labels       map[string]string
	// Created is when the source is from, not when the image was made: SOURCE_DATE_EPOCH, or the commit's time.
	// Layers do not depend on it, so two images of different times share the layers whose files are the same.
	Created time.Time
}

// Layer is files that are put over those of the layers before it.
type Layer struct {
	Comment string // what is in it, for the image's history
	Files   []File
}

// Build makes an image. Layers are compressed into the directory cache, by what is in them, and taken from there
// if they are there already.
func Build(description Image, cache string) (v1.Image, error) {
	if description.Architecture == "" {
		return nil, errors.New("build an image: it has no architecture")
	}
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	created := v1.Time{Time: description.Created.UTC()}
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: description.Architecture,
		OS:           "linux",
		Created:      created,
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:       description.User,
			Entrypoint: description.Entrypoint,
			Cmd:        description.Cmd,
			Env:        description.Env,
			Labels:     description.Labels,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("build an image: %w", err)
	}
	below := make(tree)
	for _, l := range description.Layers {
		entries, err := below.add(l.Files)
		if err != nil {
			return nil, fmt.Errorf("layer %q: %w", l.Comment, err)
		}
		compressed, err := compress(entries, cache)
		if err != nil {
			return nil, fmt.Errorf("layer %q: %w", l.Comment, err)
		}
		image, err = mutate.Append(image, mutate.Addendum{
			Layer:   compressed,
			History: v1.History{Created: created, CreatedBy: l.Comment},
		})
		if err != nil {
			return nil, fmt.Errorf("layer %q: %w", l.Comment, err)
		}
	}
	return image, nil
}

// Index makes one image of those for several architectures, in their order.
func Index(images ...v1.Image) (v1.ImageIndex, error) {
	additions := make([]mutate.IndexAddendum, 0, len(images))
	for _, image := range images {
		config, err := image.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("index of images: %w", err)
		}
		platform := &v1.Platform{OS: config.OS, Architecture: config.Architecture}
		additions = append(additions, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	slices.SortFunc(additions, func(a, b mutate.IndexAddendum) int {
		return cmp.Compare(a.Platform.Architecture, b.Platform.Architecture)
	})
	for i := 1; i < len(additions); i++ {
		if a := additions[i].Platform.Architecture; a == additions[i-1].Platform.Architecture {
			return nil, fmt.Errorf("index of images: two of them are for %s", a)
		}
	}
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), additions...), nil
}
