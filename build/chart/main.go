// Command chart renders the Helm chart of the injector as `helm template` does, by Helm's own engine, into the one file that
// `kubectl apply` takes. It is a module of its own, so that nothing that ships needs what Helm needs.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
)

const (
	release   = "sidecar-injector"
	namespace = "understudy-system"
)

// namespaceManifest is what `helm install --create-namespace` makes: injected never, and of the strictest kind.
const namespaceManifest = `apiVersion: v1
kind: Namespace
metadata:
  name: ` + namespace + `
  labels:
    pod-security.kubernetes.io/enforce: restricted
`

func main() {
	chart := flag.String("chart", "deploy/chart", "the chart's directory")
	flag.Parse()
	text, err := render(*chart, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(text)
}

// render is the namespace, the chart's definitions and its manifests with these values over its own, in the order in which they
// can be applied.
func render(dir string, values map[string]any) (string, error) {
	c, err := loader.Load(dir)
	if err != nil {
		return "", fmt.Errorf("load the chart %s: %w", dir, err)
	}
	options := common.ReleaseOptions{Name: release, Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, values, options, common.DefaultCapabilities)
	if err != nil {
		return "", fmt.Errorf("read the values of %s: %w", dir, err)
	}
	rendered, err := engine.Engine{}.Render(c, all)
	if err != nil {
		return "", fmt.Errorf("render %s: %w", dir, err)
	}
	documents := []string{namespaceManifest}
	for _, crd := range c.CRDObjects() {
		documents = append(documents, string(crd.File.Data))
	}
	for _, name := range order(rendered) {
		documents = append(documents, rendered[name])
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# What `helm template %s deploy/chart -n %s --include-crds` says, and the namespace. Made of deploy/chart: change it there.\n", release, namespace)
	for _, document := range documents {
		if document = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(document), "---")); document != "" {
			fmt.Fprintf(&out, "---\n%s\n", document)
		}
	}
	return out.String(), nil
}

// order are the names of the templates: who may do what comes before who does it.
func order(rendered map[string]string) []string {
	rank := []string{"rbac.yaml", "profile.yaml", "configuration.yaml", "deployment.yaml"}
	return slices.SortedFunc(maps.Keys(rendered), func(a, b string) int {
		return slices.Index(rank, filepath.Base(a)) - slices.Index(rank, filepath.Base(b))
	})
}
