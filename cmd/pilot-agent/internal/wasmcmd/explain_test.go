package wasmcmd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const plugin = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: NAME, annotations: {understudy.mesh/poll: 5m}}\n" +
		"spec: {url: registry.example.com/a:v1, failStrategy: OPEN, imagePullSecret: registry, pluginConfig: {large: 9007199254740993}}\n"
	write("a.yaml", strings.NewReplacer("NAME", "a", "OPEN", "FAIL_OPEN").Replace(plugin)+"---\nkind: Pod\n---\n"+strings.NewReplacer("NAME", "b", "OPEN", "FAIL_CLOSE").Replace(plugin))
	write(".hidden.yaml", "not: [yaml")
	write("notes.txt", "not: [yaml")
	environ := []string{"POD_NAMESPACE=shop", "UNDERSTUDY_CONFIG_DIR=" + dir}
	status, stdout, stderr := runCommand(t, environ, "explain", "a")
	for _, want := range []string{
		"# WasmPlugin shop/a\n", "filter: extensions.istio.io/wasmplugin/shop.a\n", "module: oci://registry.example.com/a:v1\n", "withoutModule: passes\n", "poll: 5m0s\n",
		"filename: MODULE\n", `{"large":9007199254740993}`,
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%d, %s%s; want %s", status, stdout, stderr, want)
		}
	}
	if status != 0 || strings.Contains(stdout, "shop/b") || strings.Contains(stdout, "ISTIO_META") {
		t.Errorf("%d, %s%s", status, stdout, stderr)
	}
	if status, stdout, stderr = runCommand(t, environ, "explain"); status != 0 || strings.Count(stdout, "# WasmPlugin ") != 2 || strings.Count(stdout, "---\n") != 1 || !strings.Contains(stdout, "withoutModule: is refused") {
		t.Errorf("%d, %s%s", status, stdout, stderr)
	}
	if status, stdout, _ = runCommand(t, environ, "explain", "shop/b", "-f", filepath.Join(dir, "a.yaml")); status != 0 || strings.Count(stdout, "# WasmPlugin ") != 1 {
		t.Errorf("%d, %s", status, stdout)
	}
	write("asm.yaml", "apiVersion: istio.alibabacloud.com/v1beta1\nkind: ASMFilterDeployment\nmetadata: {name: details}\nspec: {workload: {kind: Deployment, labels: {app: details}}, filter: {image: a/b}}\n")
	status, stdout, stderr = runCommand(t, environ, "explain", "details")
	for _, want := range []string{"# ASMFilterDeployment shop/details\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n", "operation: INSERT_BEFORE\n", "name: envoy.filters.http.router\n"} {
		if status != 0 || !strings.Contains(stdout, want) {
			t.Errorf("%d, %s%s; want %s", status, stdout, stderr, want)
		}
	}
	write("bad.yaml", strings.NewReplacer("url:", "urk:", "OPEN", "FAIL_OPEN").Replace(plugin))
	if status, stdout, stderr = runCommand(t, environ, "explain"); status != 1 || !strings.Contains(stderr, "bad.yaml: document 1, WasmPlugin \"NAME\": spec.urk: unknown field") {
		t.Errorf("%d, %s%s", status, stdout, stderr)
	}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"explain", "none", "-f", filepath.Join(dir, "a.yaml")}, 1, `no document that asks for a module with the name "none"`},
		{[]string{"explain", "-f", filepath.Join(dir, "none.yaml")}, 1, "no such file"},
		{[]string{"explain"}, 2, "--filename"},
	} {
		if status, _, stderr := runCommand(t, nil, c.args...); status != c.status || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: %d, %s; want %s", c.args, status, stderr, c.want)
		}
	}
}
