package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"understudy.mesh/build/oci"
	"understudy.mesh/tests/cluster/internal/node"
	"understudy.mesh/tests/cluster/internal/registry"
)

// The images that every cluster has. No two of them are one, whatever they hold: the kubelet would report the first.
const (
	ProxyV1  = "understudy/proxy:v1"
	ProxyV2  = "understudy/proxy:v2"  // with the older Envoy
	ProxyDev = "understudy/proxy:dev" // README's
	Empty    = "understudy/empty:v1"
	Injector = "understudy/injector:dev" // of deploy/
	// Curl has sh, sleep, curl and the program of load; Nginx is a server of load, which answers "server=nginx" on port 80
	// and echoes on 9000.
	Curl  = "curlimages/curl:latest"
	Nginx = "nginx:1.14.2"
	pause = "registry.k8s.io/pause:3.10"
)

// Image is an OCI layout, and the name by which pods have the image in it.
type Image struct {
	Name, Layout string
}

func (c *Cluster) registry() registry.Store {
	return registry.Open(filepath.Join(c.state(), node.Registry))
}

// Import makes an image known to the cluster under its name, and pulls it, so that no pod waits for that. It reports whether
// it is another image than the one that had the name. The same image under two names is an error.
func (c *Cluster) Import(ctx context.Context, image Image) (changed bool, err error) {
	changed, err = c.registry().Import(image.Layout, image.Name)
	if err != nil || !changed {
		return false, err
	}
	cmd, err := c.Command(ctx, node.BinDir+"/ctr", "--namespace", "k8s.io",
		"images", "pull", "--hosts-dir", node.HostsDir, registry.Qualify(image.Name))
	if err != nil {
		return false, err
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return false, fmt.Errorf("pull %s into the node: %w: %s", image.Name, err, bytes.TrimSpace(output.Bytes()))
	}
	return true, nil
}

// Digest is the digest of the image that has a name in the cluster; "" is none.
func (c *Cluster) Digest(name string) string { return c.registry().Digest(name) }

// importImages makes this checkout's images known to the node.
func (c Config) importImages(ctx context.Context, cluster *Cluster) error {
	images, err := c.makeImages(cluster)
	if err != nil {
		return fmt.Errorf("make the images of the cluster: %w", err)
	}
	for _, image := range images {
		changed, err := cluster.Import(ctx, image)
		if err != nil {
			return err
		}
		if changed {
			c.Say("image " + image.Name)
		}
	}
	return nil
}

// makeImages returns those that `make images` has made, and others made of them.
func (c Config) makeImages(cluster *Cluster) ([]Image, error) {
	made := func(name string) string { return filepath.Join(c.Root, "bin", "images", name) }
	images := []Image{{ProxyV1, made("proxy")}, {Empty, made("empty")}, {Injector, made("injector")}}
	proxy, err := readImage(made("proxy"))
	if err != nil {
		return nil, err
	}
	world, err := os.ReadFile(filepath.Join(cluster.state(), node.PKI, "world-ca.crt"))
	if err != nil {
		return nil, err
	}
	older, err := filepath.EvalSymlinks(filepath.Join(c.Root, "bin", "envoy-1.39.3"))
	if err != nil {
		return nil, fmt.Errorf("%w (make envoy)", err)
	}
	base, err := proxy.Layers()
	if err != nil {
		return nil, err
	}
	base = base[:1] // Debian's, without Envoy and the agent
	applicationFiles := []oci.File{
		program("/usr/local/bin/"+loader, filepath.Join(c.Dir, loader)),
		{Path: "/etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Content: world},
	}
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, image := range []struct {
		name        string
		from        v1.Image // nil: base, with what description says
		base        []v1.Layer
		description oci.Image
	}{
		{name: ProxyV2, from: proxy, description: oci.Image{Layers: layer("the older Envoy", program(OlderEnvoy, older), link(Envoy, OlderEnvoy))}},
		{name: ProxyDev, from: proxy},
		{name: pause, description: oci.Image{
			Layers: layer("pause", program("/pause", filepath.Join(c.Dir, "pause"))), Entrypoint: []string{"/pause"}, User: "65535:65535",
		}},
		{name: Curl, base: base, description: oci.Image{Layers: layer("load", applicationFiles...), Cmd: []string{"/bin/sh"}, Env: path}},
		{name: Nginx, base: base, description: oci.Image{
			Layers: layer("load", applicationFiles...), Env: path,
			Entrypoint: []string{"/usr/local/bin/" + loader, "serve", "-name", "nginx", "-http", ":80", "-echo", ":9000"},
		}},
	} {
		image.description.Architecture = runtime.GOARCH
		built, err := assemble(image.from, image.base, image.description, image.name, filepath.Join(c.Cache, "layers"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", image.name, err)
		}
		if err := cluster.write(image.name, built); err != nil {
			return nil, fmt.Errorf("%s: %w", image.name, err)
		}
		images = append(images, Image{image.name, cluster.layout(image.name)})
	}
	return images, nil
}

// layout is where an image that is made for the cluster alone is written.
func (c *Cluster) layout(name string) string {
	return filepath.Join(c.dir, "images", strings.NewReplacer("/", "-", ":", "-").Replace(name))
}

// write writes an image for this machine's architecture into its layout.
func (c *Cluster) write(name string, image v1.Image) error {
	index, err := oci.Index(image)
	if err != nil {
		return err
	}
	return oci.WriteLayout(c.layout(name), name, index)
}

// layer is one layer of some files.
func layer(comment string, files ...oci.File) []oci.Layer {
	return []oci.Layer{{Comment: comment, Files: files}}
}

func program(path, source string) oci.File {
	return oci.File{Path: path, Mode: 0o755, Source: source}
}

func link(path, to string) oci.File {
	return oci.File{Path: path, Mode: fs.ModeSymlink, Link: to}
}

// assemble puts the layers of a description over another image, whose configuration stays but for a label that tells the two
// apart; or over other layers, with the description's own configuration.
func assemble(from v1.Image, base []v1.Layer, description oci.Image, name, cache string) (v1.Image, error) {
	built, err := oci.Build(description, cache)
	if err != nil {
		return nil, err
	}
	layers, err := built.Layers()
	if err != nil {
		return nil, err
	}
	if from == nil && len(base) == 0 {
		return built, nil
	}
	if from == nil {
		description.Layers = nil
		if from, err = oci.Build(description, cache); err != nil {
			return nil, err
		}
		return mutate.AppendLayers(from, append(base, layers...)...)
	}
	if from, err = mutate.AppendLayers(from, layers...); err != nil {
		return nil, err
	}
	file, err := from.ConfigFile()
	if err != nil {
		return nil, err
	}
	config := *file.Config.DeepCopy()
	config.Labels = maps.Clone(config.Labels)
	if config.Labels == nil {
		config.Labels = make(map[string]string)
	}
	config.Labels["cluster.image"] = name
	return mutate.Config(from, config)
}

// readImage reads the image for this machine's architecture out of a layout that `make images` has written.
func readImage(dir string) (v1.Image, error) {
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("read %s (make images): %w", dir, err)
	}
	list, err := top.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	for _, named := range list.Manifests {
		index, err := top.ImageIndex(named.Digest)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
		platforms, err := index.IndexManifest()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
		for _, platform := range platforms.Manifests {
			if platform.Platform != nil && platform.Platform.Architecture == runtime.GOARCH {
				return index.Image(platform.Digest)
			}
		}
	}
	return nil, errors.New(dir + ": no image for " + runtime.GOARCH)
}
