package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzDocuments feeds the parser what a file may hold. It must not panic, every trouble must be one line, and what it
// takes must build, into resources of which no two have one name or one address.
func FuzzDocuments(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range paths {
		archive, err := txtar.ParseFile(p)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if file.Name != "want" {
				f.Add(string(file.Data))
			}
		}
	}
	f.Add(se("a", "a.x", 1) + "---\n" + strings.Replace(se("b", "a.x", 1), "TCP", "HTTP", 1))
	f.Add("{apiVersion: v1, kind: List, items: [" + flow("a", "a.x") + ", null, 1]}")
	f.Add("a: &a [*a]\n--- |\n x\n...\n%YAML 1.1\n---\n? {a: b}\n: c\n")
	f.Add("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, annotations: {understudy.mesh/poll: 5m}}\nspec: {url: a, phase: AUTHN, match: [{mode: SERVER, ports: [{number: 80}]}], pluginConfig: {a: [1]}}\n" +
		"---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: b}\nspec: {urk: a, type: NETWORK, selector: {matchLabels: {app: details}}}\n")
	f.Add("apiVersion: istio.alibabacloud.com/v1beta1\nkind: ASMFilterDeployment\nmetadata: {name: a}\nspec: {workload: {kind: Deployment, labels: {app: details}}, filter: {image: a/b, parameters: '{}'}}\n")
	dir := f.TempDir()
	path := filepath.Join(dir, "x.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		o := testOptions()
		o.AllowIgnored = true
		s, _ := newTestSource(t, dir, o)
		r, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range s.Report().Documents {
			if (d.Status == "ok") != (d.Reason == "") || strings.Contains(d.Field+d.Reason, "\n") {
				t.Errorf("%+v", d)
			}
		}
		out := build(t, r, o)
		checkDistinct(t, out)
		checkInvariants(t, r, o, out)
	})
}

// checkDistinct wants what Envoy refuses otherwise: distinct names and listener addresses.
func checkDistinct(t *testing.T, out *Output) {
	seen := map[string]bool{}
	once := func(what string) {
		if seen[what] {
			t.Errorf("%s twice", what)
		}
		seen[what] = true
	}
	for _, c := range out.Resources[ClusterType] {
		once("cluster " + c.Name)
	}
	for _, l := range parseListeners(t, out.Resources[ListenerType]) {
		once("listener " + l.Name)
		once("address " + l.Address.String())
		for _, a := range l.AdditionalAddresses {
			once("address " + a.Address.String())
		}
	}
}
