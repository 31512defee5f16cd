package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"understudy.mesh/tests/cluster/internal/build"
	"understudy.mesh/tests/cluster/internal/node"
)

// IstioNamespace is where istiod says that it is.
const IstioNamespace = "istio-system"

// IstiodAddress is where istiod serves proxies (TLS, by its own authority; each namespace has that in the ConfigMap
// istio-ca-root-cert).
const IstiodAddress = node.Address + ":15012"

// meshConfig has what a stock Envoy needs besides the switches of the process: no telemetry, whose filter only Istio's own has.
const meshConfig = `defaultProviders: {}
enablePrometheusMerge: false
`

// StartIstiod adds an istiod to the cluster, or finds it running: its custom resources, its namespace, and its process.
func (c *Cluster) StartIstiod(ctx context.Context, config Config) error {
	builder := build.Builder{Root: config.Root, Cache: config.Cache, Say: config.Say}
	project := build.Istiod()
	dir, err := builder.Build(ctx, project)
	if err != nil {
		return err
	}
	mesh := filepath.Join(c.state(), node.Istio, "mesh.yaml")
	if isFile(mesh) {
		return c.Start(ctx, Istiod) // after what was done below once
	}
	if err := build.Link(dir, filepath.Join(c.state(), node.Bin), project.Binaries...); err != nil {
		return err
	}
	resources, err := istioResources(ctx, filepath.Join(config.Root, build.Modules, project.Name))
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, nil, "apply", "--server-side", "-f", resources); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, nil, "get", "namespace", IstioNamespace)
	if err != nil {
		if _, err := c.Kubectl(ctx, nil, "create", "namespace", IstioNamespace); err != nil {
			return err
		}
	}
	err = os.MkdirAll(filepath.Dir(mesh), 0o755)
	if err == nil {
		err = os.WriteFile(mesh, []byte(meshConfig), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write istiod's mesh configuration: %w", err)
	}
	if err := c.Start(ctx, Istiod); err != nil {
		return errors.Join(err, os.Remove(mesh))
	}
	config.Say("istiod")
	return nil
}

// istioResources is the file of Istio's custom resource definitions, of the API module that istiod itself has.
func istioResources(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find Istio's custom resources: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return filepath.Join(string(bytes.TrimSpace(out)), "kubernetes", "customresourcedefinitions.gen.yaml"), nil
}
