package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"

	"understudy.mesh/build/oci"
)

// Envoy is where the agent finds its Envoy in every image; OlderEnvoy is where the one of [ProxyV2] is, to which its Envoy is a
// link: a variant may have a script in the place of the link.
const (
	Envoy      = "/usr/local/bin/envoy"
	OlderEnvoy = "/usr/local/bin/envoy-older"
)

// ImportVariant makes [ProxyV2] with other files known to the cluster under a name of its own, and pulls it.
func (c *Cluster) ImportVariant(ctx context.Context, name string, files ...oci.File) error {
	from, err := readImage(c.layout(ProxyV2))
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	description := oci.Image{Architecture: runtime.GOARCH, Layers: layer("variant", files...)}
	built, err := assemble(from, nil, description, name, filepath.Join(c.dir, "images", "layers"))
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	if err := c.write(name, built); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	_, err = c.Import(ctx, Image{name, c.layout(name)})
	return err
}
