package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"understudy.mesh/build/contents"
	"understudy.mesh/build/deb"
	"understudy.mesh/build/oci"
)

// maker makes images for some platforms.
type maker struct {
	out, cache, version, tag string
	created                  time.Time
	platforms                []platform
}

// platform is an architecture, as Go names it, and the file of an Envoy for it.
type platform struct{ arch, envoy string }

// make writes the layout of an image.
func (m maker) make(ctx context.Context, c contents.Image) error {
	var images []v1.Image
	for _, p := range m.platforms {
		description, err := m.describe(ctx, c, p)
		if err != nil {
			return fmt.Errorf("for %s: %w", p.arch, err)
		}
		image, err := oci.Build(description, filepath.Join(m.cache, "layers"))
		if err != nil {
			return fmt.Errorf("for %s: %w", p.arch, err)
		}
		images = append(images, image)
	}
	index, err := oci.Index(images...)
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	name := "understudy/" + c.Name + ":" + m.tag
	dir := filepath.Join(m.out, c.Name)
	if err := oci.WriteLayout(dir, name, index); err != nil {
		return err
	}
	fmt.Printf("images: %s  %s in %s\n", digest, name, dir)
	return nil
}

// describe says what an image has on a platform: a layer of Debian, and one for each program.
func (m maker) describe(ctx context.Context, c contents.Image, p platform) (oci.Image, error) {
	description := oci.Image{
		Architecture: p.arch,
		User:         contents.User,
		Entrypoint:   []string{c.Entrypoint()},
		Env:          []string{contents.Path},
		Created:      m.created,
		Labels: map[string]string{
			"org.opencontainers.image.title":       c.Name,
			"org.opencontainers.image.description": c.Title,
			"org.opencontainers.image.version":     m.version,
			"org.opencontainers.image.licenses":    "Apache-2.0",
		},
	}
	if len(c.Packages) > 0 {
		files, err := m.debian(ctx, c, p.arch)
		if err != nil {
			return oci.Image{}, err
		}
		description.Layers = append(description.Layers, oci.Layer{Comment: "packages of Debian " + deb.Release, Files: files})
	}
	for i, program := range c.Programs {
		source := filepath.Join(m.cache, "programs", p.arch, program.Name)
		if program.Name == contents.Envoy {
			source = p.envoy
		}
		files := []oci.File{{Path: program.Path, Mode: 0o755, Source: source}}
		if i == len(c.Programs)-1 {
			files = append(files, c.Directories...)
		}
		description.Layers = append(description.Layers, oci.Layer{Comment: program.Name, Files: files})
	}
	return description, check(description)
}

// debian is the files of an image's packages, and those that the table has besides.
func (m maker) debian(ctx context.Context, c contents.Image, arch string) ([]oci.File, error) {
	// Debian names amd64 and arm64 as Go does.
	archives, err := deb.Fetch(ctx, filepath.Join(m.cache, "debian"), arch, c.Packages)
	if err != nil {
		return nil, err
	}
	packages, err := deb.Unpack(ctx, archives)
	if err != nil {
		return nil, err
	}
	var versions []string
	for _, p := range packages {
		versions = append(versions, p.Name+"="+p.Version)
	}
	fmt.Printf("images: %s for %s has %s\n", c.Name, arch, strings.Join(versions, " "))
	return slices.Concat(deb.Tree(packages), c.Files), nil
}
