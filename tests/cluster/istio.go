package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"understudy.mesh/tests/cluster/internal/build"
	"understudy.mesh/tests/cluster/internal/node"
)

// IstioNamespace is where istiod says that it is.
const IstioNamespace = "istio-system"

// IstiodAddress is where istiod serves proxies (TLS, by its own authority; each namespace has that in the ConfigMap
// istio-ca-root-cert).
const IstiodAddress = node.Address + ":15012"

// DefaultIstiodAddress is where [DefaultIstiod] serves proxies, in the same way.
const DefaultIstiodAddress = node.Address + ":" + node.DefaultIstiodPort

// istiodObjects lead to istiod: a Service, by the name at which proxies and the API server look for it unless they are told another one; and a pod
// in the network of the node, where istiod is a process, since istioctl looks for the pods of istiod and forwards to their ports.
const istiodObjects = `
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: ` + IstioNamespace + `}
spec: {ports: [{name: https-dns, port: 15012}, {name: https-webhook, port: 443, targetPort: 15017}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: istiod, namespace: ` + IstioNamespace + `, labels: {kubernetes.io/service-name: istiod}}
addressType: IPv4
endpoints: [{addresses: [` + node.Address + `]}]
ports: [{name: https-dns, port: 15012}, {name: https-webhook, port: 15017}]
---
apiVersion: v1
kind: Pod
metadata: {name: istiod, namespace: ` + IstioNamespace + `, labels: {app: istiod, istio: pilot, istio.io/rev: default}}
spec:
  hostNetwork: true
  containers: [{name: discovery, image: "` + pause + `"}]
`

// meshConfig has what a stock Envoy needs besides the switches of the process: no telemetry, whose filter only Istio's own has. The
// root is that of another mesh, whose key nobody has: a pod that asks for such roots trusts it as well.
const meshConfig = `defaultProviders: {}
enablePrometheusMerge: false
caCertificates:
- pem: |
    -----BEGIN CERTIFICATE-----
    MIIBhjCCASugAwIBAgIUFAWeE3+DMQGgvpxnI8k0tK1INNMwCgYIKoZIzj0EAwIw
    FzEVMBMGA1UEAwwMYW5vdGhlciBtZXNoMCAXDTI2MTEyOTEzMDEyN1oYDzIxMjYx
    MTA1MTMwMTI3WjAXMRUwEwYDVQQDDAxhbm90aGVyIG1lc2gwWTATBgcqhkjOPQIB
    BggqhkjOPQMBBwNCAAQEx+IF73xdzNIHIbZnSjH1eJ8ZCbIxRvtXB83uNQNwyA4+
    tB85T1DjwaA2nxTu6OvQW+rRCPsqQhrVMZQtu0ILo1MwUTAdBgNVHQ4EFgQU8i42
    Kdj5ZOfb5QV75+OsE6UDjV8wHwYDVR0jBBgwFoAU8i42Kdj5ZOfb5QV75+OsE6UD
    jV8wDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA9dfl5JKL2IeE
    k9sBR7+c9IRRM3PluANbBk2+/A496A4CIQDtkrTo8MH+/6Tk5AzU7NG+KEvHAjvt
    +CzjBV4wRha+tQ==
    -----END CERTIFICATE-----
`

// defaultMeshConfig is what Istio's chart writes, as far as it says what proxies do.
const defaultMeshConfig = "defaultProviders: {metrics: [prometheus]}\nenablePrometheusMerge: true\n"

// StartIstiod adds an istiod to the cluster, or finds it running: its custom resources, its namespace, its process, and the image
// IstioProxy.
func (c *Cluster) StartIstiod(ctx context.Context, config Config) error {
	builder := build.Builder{Root: config.Root, Cache: config.Cache, Say: config.Say}
	project := build.Istiod()
	dir, err := builder.Build(ctx, project)
	if err != nil {
		return err
	}
	if err := c.importIstioProxy(ctx, config, builder); err != nil {
		return err
	}
	mesh := c.istiodMesh()
	if c.hasIstiod() {
		return c.Start(ctx, Istiod) // after what was done below once
	}
	if err := build.Link(dir, filepath.Join(c.state(), node.Bin), project.Binaries...); err != nil {
		return err
	}
	api, err := build.ModuleDir(ctx, config.Root, project, "istio.io/api") // the one that istiod itself has
	if err != nil {
		return err
	}
	resources := filepath.Join(api, "kubernetes", "customresourcedefinitions.gen.yaml")
	if _, err := c.Kubectl(ctx, nil, "apply", "--server-side", "-f", resources); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, nil, "get", "namespace", IstioNamespace)
	if err != nil {
		if _, err := c.Kubectl(ctx, nil, "create", "namespace", IstioNamespace); err != nil {
			return err
		}
	}
	if _, err := c.Kubectl(ctx, strings.NewReader(istiodObjects), "apply", "--filename", "-"); err != nil {
		return err
	}
	err = os.MkdirAll(filepath.Dir(mesh), 0o755)
	if err == nil {
		err = os.WriteFile(mesh, []byte(meshConfig), 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(filepath.Dir(mesh), node.DefaultMesh), []byte(defaultMeshConfig), 0o644)
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

// Istioctl runs the tool of Istio's users, of istiod's own release, on the cluster, and returns what it says on either output.
func (c *Cluster) Istioctl(ctx context.Context, arguments ...string) (string, error) {
	cmd, err := c.enter(ctx, []string{"--net"}, append([]string{filepath.Join(c.state(), node.Bin, "istioctl")}, arguments...)...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("istioctl %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// istiodMesh is the file of istiod's mesh configuration, which is there once the cluster has an istiod.
func (c *Cluster) istiodMesh() string { return filepath.Join(c.state(), node.Istio, "mesh.yaml") }

func (c *Cluster) hasIstiod() bool { return isFile(c.istiodMesh()) }
