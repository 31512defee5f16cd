package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"understudy.mesh/build/oci"
	"understudy.mesh/tests/cluster/internal/build"
	"understudy.mesh/tests/lab"
)

// IstioProxy is the image that Istio's injector gives its sidecars in this cluster: Istio's own agent, of istiod's release, with the
// Envoy of our images, since no module has Istio's.
const IstioProxy = istioHub + "/proxyv2:" + istioTag

const (
	istioHub, istioTag = "istio", "1.32"
	// installLimit is how long Istio's injector may take to be there: Helm's engine is compiled once, and istiod starts anew.
	installLimit = 10 * time.Minute
)

// importIstioProxy makes IstioProxy known to the node.
func (c *Cluster) importIstioProxy(ctx context.Context, config Config, builder build.Builder) error {
	agent := build.IstioAgent()
	programs, err := builder.Build(ctx, agent)
	if err != nil {
		return err
	}
	source, err := build.ModuleDir(ctx, config.Root, agent, "istio.io/istio")
	if err != nil {
		return err
	}
	ours, err := readImage(filepath.Join(config.Root, "bin", "images", "proxy"))
	if err != nil {
		return err
	}
	description := oci.Image{Architecture: runtime.GOARCH, Layers: layer("Istio's agent",
		program("/usr/local/bin/pilot-agent", filepath.Join(programs, agent.Binaries[0])),
		oci.File{Path: "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json", Mode: 0o644, Source: filepath.Join(source, "tools/packaging/common/envoy_bootstrap.json")})}
	image, err := assemble(ours, nil, description, IstioProxy, filepath.Join(config.Cache, "layers"))
	if err == nil {
		err = c.write(IstioProxy, image)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", IstioProxy, err)
	}
	changed, err := c.Import(ctx, Image{IstioProxy, c.layout(IstioProxy)})
	if changed {
		config.Say("image " + IstioProxy)
	}
	return err
}

// StartIstioInjector installs istiod's own injector until the test ends: what Istio's chart of istiod's release has of it, its
// ConfigMaps and its MutatingWebhookConfiguration. It takes namespaces with istio-injection=enabled or istio.io/rev=default, and
// gives their pods [IstioProxy]. Nobody else may inject by the first of these labels meanwhile. root is the repository's directory.
func (c *Cluster) StartIstioInjector(t lab.T, root string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), installLimit)
	defer cancel()
	manifests, err := istioInjector(ctx, root)
	if err != nil {
		t.Fatalf("make the manifests of Istio's injector: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		defer cancel()
		if _, err := c.Kubectl(ctx, strings.NewReader(manifests), "delete", "--ignore-not-found", "--filename", "-"); err != nil {
			t.Fatalf("Istio's injector is left behind: %v", err)
		}
	})
	if _, err := c.Kubectl(ctx, strings.NewReader(manifests), "apply", "--filename", "-"); err != nil {
		t.Fatalf("install Istio's injector: %v", err)
	}
	// Whether it is to inject is what istiod looks for at its start alone.
	if err := c.Restart(ctx, Istiod); err != nil {
		t.Fatalf("restart istiod with its injector: %v", err)
	}
	lab.Eventually(t, callLimit, "istiod has said whom to trust", func() error {
		bundles, err := c.Kubectl(ctx, nil, "get", "mutatingwebhookconfiguration", "istio-sidecar-injector", "--output", "jsonpath={.webhooks[*].clientConfig.caBundle}")
		if err == nil && bundles == "" {
			err = fmt.Errorf("no webhook has a caBundle")
		}
		return err
	})
}

// istioInjector renders what Istio's chart has of its injector. Without telemetry, as istiod here: only Istio's own Envoy has that. And
// without what the MeshConfig of istiod here, which is another file, has not.
func istioInjector(ctx context.Context, root string) (string, error) {
	source, err := build.ModuleDir(ctx, root, build.Istiod(), "istio.io/istio")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "run", ".", "-chart", filepath.Join(source, "manifests/charts/istio-control/istio-discovery"),
		"-release", "istiod", "-namespace", IstioNamespace, "-set", "global.hub="+istioHub, "-set", "global.tag="+istioTag, "-set", "telemetry.enabled=false",
		"-set", "meshConfig.enablePrometheusMerge=false",
		"-show-only", "configmap.yaml,istiod-injector-configmap.yaml,mutatingwebhook.yaml")
	cmd.Dir = filepath.Join(root, "build", "chart")
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	manifests, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(manifests), nil
}
