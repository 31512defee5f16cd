package wasmcmd

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/wasm"
	"understudy.mesh/tests/proxywasm"
	"understudy.mesh/tests/realenvoy"
)

// served is a module at a URL.
func served(t *testing.T, module []byte) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(module) }))
	t.Cleanup(server.Close)
	return server.URL + "/filter.wasm?token=hush"
}

func TestPullAndCache(t *testing.T) {
	binary, dir := "--binaryPath="+realenvoy.Path(t, root), filepath.Join(t.TempDir(), "store")
	url := served(t, proxywasm.Module{Header: "a", Value: "b"}.Bytes())
	status, stdout, stderr := runCommand(t, nil, "pull", url, binary, "--dir="+dir, "-o", "json")
	var m wasm.Module
	if err := json.Unmarshal([]byte(stdout), &m); err != nil || status != 0 || m.Path != filepath.Join(dir, "sha256", m.SHA256+".wasm") {
		t.Fatalf("%d, %s%s, %v", status, stdout, stderr, err)
	}
	if _, err := os.Stat(m.Path); err != nil {
		t.Error(err)
	}
	status, stdout, stderr = runCommand(t, nil, "pull", url, binary, "--dir="+dir, "--sha256="+m.SHA256)
	if status != 0 || !strings.Contains(stdout, "sha256: "+m.SHA256) {
		t.Errorf("again: %d, %s%s", status, stdout, stderr)
	}
	status, stdout, stderr = runCommand(t, nil, "pull", served(t, proxywasm.Module{Configure: proxywasm.Refuses}.Bytes()), binary, "--dir="+dir)
	if status != 1 || !strings.Contains(stderr, "Envoy does not start it") {
		t.Errorf("one that an Envoy refuses: %d, %s%s", status, stdout, stderr)
	}
	status, stdout, stderr = runCommand(t, nil, "cache", "--dir="+dir)
	if status != 0 || !strings.Contains(stdout, m.SHA256) || !strings.Contains(stdout, " ago") || !strings.Contains(stdout, "/filter.wasm") || strings.Contains(stdout, "hush") {
		t.Errorf("cache: %d, %s%s", status, stdout, stderr)
	}
	then := time.Now().Add(-time.Hour)
	if err := os.Chtimes(m.Path, then, then); err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr = runCommand(t, nil, "cache", "--prune", "--dir="+dir, "-o", "json")
	var list []wasm.Kept
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || status != 0 || len(list) != 1 || list[0].SHA256 == m.SHA256 { // the other one is new
		t.Errorf("cache --prune: %d, %s%s, %v", status, stdout, stderr, err)
	}
}

// plugin is a WasmPlugin for a module.
func plugin(name, url string) string {
	return "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: " + name + "}\nspec: {url: \"" + url + "\", imagePullSecret: none, failStrategy: FAIL_OPEN, pluginConfig: {a: 1}}\n---\n"
}

func TestPullOfPlugins(t *testing.T) {
	binary, dir := "--binaryPath="+realenvoy.Path(t, root), "--dir="+filepath.Join(t.TempDir(), "store")
	good := plugin("good", served(t, proxywasm.Module{}.Bytes()))
	bad := plugin("bad", served(t, proxywasm.Module{Configure: proxywasm.Refuses}.Bytes()))
	status, stdout, stderr := runCommand(t, []string{"POD_NAMESPACE=shop"}, "pull", binary, dir, "-f", file(t, "plugins.yaml", []byte(bad+good)))
	if status != 1 || !strings.Contains(stdout, "plugin: shop/good\nsha256: ") || strings.Contains(stdout, "bad") || !strings.Contains(stderr, "WasmPlugin shop/bad: Envoy does not start it: ") {
		t.Errorf("%d, %s%s", status, stdout, stderr)
	}
	status, stdout, stderr = runCommand(t, nil, "pull", binary, dir, "-f", file(t, "plugin.yaml", []byte(good)), "--secret="+file(t, "secret", []byte(`{"auths":{}}`)))
	if status != 0 || !strings.Contains(stdout, "plugin: default/good\n") {
		t.Errorf("%d, %s%s", status, stdout, stderr)
	}
}

func TestPullWithoutATry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	url := served(t, proxywasm.Module{Configure: proxywasm.Refuses}.Bytes())
	if status, stdout, stderr := runCommand(t, []string{"UNDERSTUDY_WASM_CHECK=off"}, "pull", url, "--dir="+dir, "--binaryPath=/none"); status != 0 {
		t.Errorf("%d, %s%s", status, stdout, stderr)
	}
	if status, _, stderr := runCommand(t, nil, "pull", url, "--dir="+dir, "--binaryPath=/none"); status != 1 || !strings.Contains(stderr, "binaryPath in PROXY_CONFIG") {
		t.Errorf("with a try, and no Envoy: %d, %s", status, stderr)
	}
}

func TestPullSaysWhatIsWrong(t *testing.T) {
	url := served(t, proxywasm.Module{}.Bytes())
	large := file(t, "large", make([]byte, maxSecretFile+1))
	for _, tc := range []struct {
		why     string
		environ []string
		args    []string
		status  int
		want    string
	}{
		{"no module", nil, []string{served(t, []byte("<html>"))}, 1, "it begins with"},
		{"nobody there, for a while", nil, []string{"file:///none", "--wait=10ms"}, 1, "context deadline exceeded"},
		{"no source", nil, []string{"ftp://a"}, 1, `the scheme "ftp"`},
		{"another hash", nil, []string{url, "--sha256=" + strings.Repeat("ab", 32)}, 1, "is wanted"},
		{"no secret", nil, []string{"127.0.0.1:1/a", "--secret=/none"}, 1, "flag --secret: open /none"},
		{"a large secret", nil, []string{"127.0.0.1:1/a", "--secret=" + large}, 1, "more than 1048576 bytes"},
		{"a secret that is not mounted", nil, []string{"127.0.0.1:1/a", "--secret=s"}, 1, "/etc/istio/wasm-secrets/s/.dockerconfigjson"},
		{"a secret that is none", nil, []string{"127.0.0.1:1/a", "--secret=" + file(t, "secret", []byte("hush"))}, 1, "the plugin's pull secret"},
		{"a registry that is not allowed", []string{"UNDERSTUDY_WASM_ALLOW=a.example"}, []string{url}, 1, "UNDERSTUDY_WASM_ALLOW lists: a.example"},
		{"a mirror that is none", []string{"UNDERSTUDY_WASM_MIRRORS=a"}, []string{url}, 1, "UNDERSTUDY_WASM_MIRRORS=[\"a\"]: mirror \"a\": want from=to"},
		{"an address that is blocked", []string{"BLOCKED_CIDRS_IN_WASM_FETCH=127.0.0.0/8"}, []string{url}, 1, "127.0.0.1 is in 127.0.0.0/8"},
		{"no address", []string{"BLOCKED_CIDRS_IN_WASM_FETCH=localhost"}, []string{url}, 1, "want ranges of addresses"},
		{"a module that is too large", []string{"ISTIO_WASM_MAX_BINARY_SIZE_BYTES=100"}, []string{url}, 1, "more than 100 bytes"},
		{"no argument", nil, nil, 2, "give the module that is to be fetched"},
		{"two arguments", nil, []string{url, url}, 2, "accepts at most 1 arg"},
		{"a file and a module", nil, []string{url, "--filename=a"}, 2, "says itself which module"},
		{"a file and a configuration", nil, []string{"--root-id=a", "--filename=a"}, 2, "says itself which module"},
		{"no such file", nil, []string{"--filename=/none"}, 1, "flag --filename: open /none"},
		{"a file without a plugin", nil, []string{"-f", file(t, "pod.yaml", []byte("kind: Pod"))}, 1, "there is no WasmPlugin in it"},
		{"a plugin that is bad", nil, []string{"-f", file(t, "bad.yaml", []byte(plugin("bad", "")))}, 1, `document 1, WasmPlugin "bad": spec.url: is missing`},
		{"another form", nil, []string{url, "-o", "xml"}, 2, "give table or json"},
	} {
		args := append([]string{"pull", "--dir=" + filepath.Join(t.TempDir(), "store")}, tc.args...)
		status, stdout, stderr := runCommand(t, append(tc.environ, "UNDERSTUDY_WASM_CHECK=off"), args...)
		if status != tc.status || !strings.Contains(stderr, tc.want) || strings.Contains(stderr, "hush") {
			t.Errorf("%s: %d, %s%s; want %d, %q", tc.why, status, stdout, stderr, tc.status, tc.want)
		}
	}
	if status, stdout, stderr := runCommand(t, nil, "cache", "--dir="+t.TempDir()); status != 0 || !strings.HasPrefix(stdout, "SHA256") {
		t.Errorf("an empty store: %d, %s%s", status, stdout, stderr)
	}
}
