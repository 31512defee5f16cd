package main

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"understudy.mesh/build/release/content"
	"understudy.mesh/build/release/linked"
	"understudy.mesh/build/release/sbom"
	"understudy.mesh/build/release/sign"
)

// makeImages builds the images, puts the papers into them, writes the bills of materials of each and of the binaries,
// signs the images, and writes images.txt with their digests.
func (r *release) makeImages(ctx context.Context) error {
	r.say("images")
	if err := r.target(ctx, "images", "TAG="+r.version); err != nil {
		return err
	}
	if err := r.makeBinaryBills(); err != nil {
		return err
	}
	papers, err := papersLayer(filepath.Join(r.stage, "doc"))
	if err != nil {
		return err
	}
	var digests strings.Builder
	for _, name := range imageNames {
		built, err := readLayout(filepath.Join(r.root, "bin", "images", name))
		if err != nil {
			return err
		}
		index, err := r.withPapers(built, papers)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		if err := r.makeImageBills(name, index); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		digest, err := index.Digest()
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		fmt.Fprintf(&digests, "%s  %s:%s\n", digest, repository(name), r.version)
		if err := sign.WriteLayout(filepath.Join(r.stage, "images", name), index, repository(name), r.version, r.key); err != nil {
			return err
		}
	}
	return r.write("images.txt", []byte(digests.String()))
}

// readLayout is the one image, for several platforms, of an OCI layout.
func readLayout(dir string) (v1.ImageIndex, error) {
	root, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("read the image in %s: %w", dir, err)
	}
	manifest, err := root.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read the image in %s: %w", dir, err)
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("read the image in %s: index.json has %d entries, want the one index of all platforms", dir, len(manifest.Manifests))
	}
	index, err := root.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("read the image in %s: %w", dir, err)
	}
	return index, nil
}

func (r *release) makeImageBills(name string, index v1.ImageIndex) error {
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, platform := range manifest.Manifests {
		image, err := index.Image(platform.Digest)
		if err != nil {
			return err
		}
		inventory, err := content.Read(image)
		if err != nil {
			return err
		}
		if err := r.checkImage(inventory, platform.Platform.Architecture); err != nil {
			return err
		}
		components, err := imageComponents(inventory, r.version, platform.Platform.Architecture, r.licenses)
		if err != nil {
			return err
		}
		subject := r.subject(name+"-linux-"+platform.Platform.Architecture, "CONTAINER")
		subject.SHA256 = platform.Digest.Hex
		subject.PURL = "pkg:oci/" + name + "@sha256%3A" + platform.Digest.Hex + "?arch=" + platform.Platform.Architecture + "&tag=" + r.version
		if err := r.bill(subject, components); err != nil {
			return err
		}
	}
	return nil
}

// checkImage wants no Go binary in an image but those of this release.
func (r *release) checkImage(i content.Inventory, arch string) error {
	made, err := r.binaries()
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, b := range made {
		ours[b.SHA256] = b.Arch == arch
	}
	for _, b := range i.Go {
		if !ours[b.SHA256] {
			return fmt.Errorf("/%s is none of the binaries of this release for %s", b.Name, arch)
		}
	}
	return nil
}

// makeBinaryBills writes the bill of materials of the binaries of each architecture.
func (r *release) makeBinaryBills() error {
	made, err := r.binaries()
	if err != nil {
		return err
	}
	for _, arch := range architectures {
		components, err := goComponents(slices.DeleteFunc(slices.Clone(made), func(b linked.Binary) bool { return b.Arch != arch }), r.version, r.licenses)
		if err != nil {
			return err
		}
		if err := r.bill(r.subject("binaries-linux-"+arch, "APPLICATION"), components); err != nil {
			return err
		}
	}
	return nil
}

func (r *release) subject(name, purpose string) sbom.Subject {
	return sbom.Subject{Name: name, Version: r.version, Created: r.commit.time, Purpose: purpose, License: "Apache-2.0"}
}

func (r *release) bill(s sbom.Subject, components []sbom.Component) error {
	text, err := sbom.Write(s, components)
	if err != nil {
		return err
	}
	return r.write(path.Join("sbom", s.Name+".spdx.json"), text)
}
