// Command chart renders a Helm chart as `helm template` does, by Helm's own engine: that of the injector into the one file that
// `kubectl apply` takes, and single templates of any other. It is a module of its own, so that nothing that ships needs what Helm
// needs.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	v2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
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
	dir := flag.String("chart", "deploy/chart", "the chart's `directory`")
	r := installation{values: map[string]any{}}
	flag.StringVar(&r.release, "release", release, "`name` of the release")
	flag.StringVar(&r.namespace, "namespace", namespace, "`namespace` of the release")
	only := flag.String("show-only", "", "print these templates of the chart alone, `a.yaml,b.yaml`, in this order; without it, the whole chart of the injector")
	flag.Func("set", "a value of the chart, `KEY=VALUE` (repeatable)", func(text string) error { return strvals.ParseInto(text, r.values) })
	flag.Parse()
	var text string
	var err error
	if *only == "" {
		text, err = render(*dir, r.values)
	} else {
		text, err = r.show(*dir, strings.Split(*only, ","))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(text)
}

// installation is what a chart is rendered for.
type installation struct {
	release, namespace string
	values             map[string]any // over the chart's own
}

// render is what the templates of a chart come to, by their paths, which begin with the chart's name.
func (r installation) render(c *v2.Chart) (map[string]string, error) {
	options := common.ReleaseOptions{Name: r.release, Namespace: r.namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, r.values, options, common.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("read the values of %s: %w", c.Name(), err)
	}
	rendered, err := engine.Engine{}.Render(c, all)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", c.Name(), err)
	}
	return rendered, nil
}

// show is some of the templates of the chart in a directory. One that renders to nothing is an error: who names it wants it.
func (r installation) show(dir string, names []string) (string, error) {
	c, err := loader.Load(dir)
	if err != nil {
		return "", fmt.Errorf("load the chart %s: %w", dir, err)
	}
	rendered, err := r.render(c)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, name := range names {
		text := strings.TrimSpace(rendered[path.Join(c.Name(), "templates", name)])
		if text == "" {
			return "", fmt.Errorf("-show-only %s: the chart %s has no such template, or nothing comes of it with these values", name, dir)
		}
		fmt.Fprintf(&out, "---\n%s\n", text)
	}
	return out.String(), nil
}

// render is the namespace, the injector's definitions and its manifests with these values over its own, in the order in which they
// can be applied.
func render(dir string, values map[string]any) (string, error) {
	c, err := loader.Load(dir)
	if err != nil {
		return "", fmt.Errorf("load the chart %s: %w", dir, err)
	}
	rendered, err := installation{release, namespace, values}.render(c)
	if err != nil {
		return "", err
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
	rank := []string{"rbac.yaml", "profile.yaml", "configuration.yaml", "deployment.yaml", "filters.yaml", "upgrader.yaml"}
	return slices.SortedFunc(maps.Keys(rendered), func(a, b string) int {
		return slices.Index(rank, filepath.Base(a)) - slices.Index(rank, filepath.Base(b))
	})
}
