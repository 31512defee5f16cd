package pods

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/proxywasm"
)

// registryAddress is where the registry of modules is, on the node.
const registryAddress = cluster.NodeAddress + ":5999"

// pushModule puts the image of a module into the registry, as `oras push` does. It demands that nobody gets anything who has not logged in.
const pushModule = `
htpasswd -nbB user word > htpasswd
docker-registry serve registry.yml > registry.log 2>&1 &
cleanup() { kill $!; wait; }
trap cleanup EXIT
at=http://$REGISTRY/v2/filters/headers
until code=$(curl -sS -o /dev/null -w '%{http_code}' http://$REGISTRY/v2/ 2> /dev/null); do sleep 0.1; done
[[ $code == 401 ]] || { echo "the registry answers $code to nobody" >&2; exit 1; }
put() { curl -sSf -u user:word "$@"; }
for blob in module config; do
  to=$(put -X POST -D - -o /dev/null "$at/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  put -X PUT -H 'Content-Type: application/octet-stream' --data-binary @$blob "$to&digest=sha256:$(sha256sum < $blob | cut -d' ' -f1)"
done
put -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @manifest "$at/manifests/v1"
echo pushed
cat > /dev/null # up to the end of the test
`

// serveRegistry runs a registry under htpasswd on the node, with a module in it.
func serveRegistry(t *testing.T, module []byte) {
	t.Helper()
	dir := t.TempDir()
	hash := func(b []byte) string { sum := sha256.Sum256(b); return "sha256:" + hex.EncodeToString(sum[:]) }
	config := []byte("{}")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.module.wasm.config.v1+json","digest":%q,"size":%d},
"layers":[{"mediaType":"application/vnd.module.wasm.content.layer.v1+wasm","digest":%q,"size":%d}]}`, hash(config), len(config), hash(module), len(module))
	writeFile(t, filepath.Join(dir, "module"), string(module))
	writeFile(t, filepath.Join(dir, "config"), string(config))
	writeFile(t, filepath.Join(dir, "manifest"), manifest)
	writeFile(t, filepath.Join(dir, "registry.yml"), fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\nauth: {htpasswd: {realm: test, path: %s}}\n",
		filepath.Join(dir, "registry"), registryAddress, filepath.Join(dir, "htpasswd")))
	cmd, err := shared.Command(t.Context(), "bash", "-euo", "pipefail", "-c", "cd "+dir+"\nREGISTRY="+registryAddress+"\n"+pushModule)
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line := make([]byte, len("pushed\n"))
	if n, err := out.Read(line); err != nil || string(line[:n]) != "pushed\n" {
		_ = in.Close()
		t.Fatalf("the registry has no module: %q, %v, %v\n%s", line[:n], err, cmd.Wait(), &said)
	}
}

// TestWasmPullSecret is chapter 5 of the manual in an injected pod: the kubelet mounts the Secret asmwasm-cache of the pod's namespace, with
// which the agent pulls the module out of a private registry; before that is in force, the pod is not ready.
func TestWasmPullSecret(t *testing.T) {
	serveRegistry(t, proxywasm.Module{Header: "x-wasm", Value: "private"}.Bytes())
	ns := shared.Namespace(t, "wasm")
	login := base64.StdEncoding.EncodeToString([]byte("user:word"))
	secret := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, registryAddress, login))
	ns.Apply(t, `apiVersion: v1
kind: Secret
metadata: {name: asmwasm-cache}
type: kubernetes.io/dockerconfigjson
data: {.dockerconfigjson: `+secret+`}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: mesh}
data:
  filter.yaml: |
    apiVersion: istio.alibabacloud.com/v1beta1
    kind: ASMFilterDeployment
    metadata: {name: headers}
    spec:
      workload: {kind: Deployment, labels: {app: sleep}}
      filter: {image: "`+registryAddress+`/filters/headers:v1", parameters: "{}"}
`)
	profile := injectorProfile + "  wasm: {pullSecrets: [asmwasm-cache]}\n"
	profile = strings.Replace(profile, "proxy: {", "proxy: {env: {WASM_INSECURE_REGISTRIES: \""+registryAddress+"\"}, ", 1)
	ns.Apply(t, injectFile(t, ns, profile, servingApplication))
	ns.Wait(t, podLimit, "condition=Available", "deployment/sleep")
	pod := ns.Pods(t, "app=sleep")[0]
	lab.Eventually(t, podLimit, "requests see the module", func() error {
		cmd, err := shared.Command(t.Context(), "curl", "-sSi", "--max-time", "5", "http://"+pod.IP+":8080/")
		if err != nil {
			return err
		}
		answer, err := cmd.CombinedOutput()
		if err == nil && !strings.Contains(string(answer), "x-wasm: private") {
			err = fmt.Errorf("%s", answer)
		}
		return err
	})
	list := ns.Exec(t, pod.Name, "istio-proxy", "pilot-agent", "wasm", "list", "-v")
	if !strings.Contains(list, "phase:    InForce") || !strings.Contains(list, "document: ASMFilterDeployment "+ns.Name+"/headers") {
		t.Error(list)
	}
	if logs := ns.Logs(t, pod.Name, "istio-proxy"); strings.Contains(logs, "word") || strings.Contains(logs, login) {
		t.Error("the password is in the log")
	}
}
