package wasm

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"understudy.mesh/tests/freeport"
)

// realRegistry is Debian's docker-registry under htpasswd, and returns its host.
func realRegistry(t *testing.T, user, password string) string {
	t.Helper()
	for _, program := range []string{"docker-registry", "htpasswd"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	dir, host := t.TempDir(), fmt.Sprintf("127.0.0.1:%d", freeport.Get(t))
	line, err := exec.CommandContext(t.Context(), "htpasswd", "-nbB", user, password).Output()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "htpasswd"), line)
	writeFile(t, filepath.Join(dir, "registry.yml"), fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: %q}
auth: {htpasswd: {realm: test, path: %s}}
`, filepath.Join(dir, "registry"), host, filepath.Join(dir, "htpasswd")))
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "docker-registry", "serve", filepath.Join(dir, "registry.yml"))
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return host
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("the registry does not answer: %v: %s", err, &said)
		}
	}
}

// pushReal puts an image of one layer under a tag, as oras does, and returns the digest of its manifest.
func pushReal(t *testing.T, host, tag string, credential auth.Credential, module []byte) string {
	t.Helper()
	repository, err := remote.NewRepository(host + "/asm/filter")
	if err != nil {
		t.Fatal(err)
	}
	repository.PlainHTTP = true
	repository.Client = &auth.Client{Credential: auth.StaticCredential(host, credential)}
	one := content.NewDescriptorFromBytes(typeWasmLayer, module)
	if err := repository.Push(t.Context(), one, bytes.NewReader(module)); err != nil {
		t.Fatal(err)
	}
	manifest, err := oras.PackManifest(t.Context(), repository, oras.PackManifestVersion1_1, "application/vnd.module.wasm.config.v1+json",
		oras.PackManifestOptions{Layers: []ocispec.Descriptor{one}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repository.Tag(t.Context(), manifest, tag); err != nil {
		t.Fatal(err)
	}
	return manifest.Digest.Encoded()
}

// TestRealRegistry: a registry that somebody runs, and what oras pushes to it: without credentials and with wrong ones it is named,
// with the right ones the module is there, and what is not what it should be is named.
func TestRealRegistry(t *testing.T) {
	host := realRegistry(t, "user", "word")
	right := auth.Credential{Username: "user", Password: "word"}
	module := sample(1)
	digest := pushReal(t, host, "v1", right, module)
	pushReal(t, host, "corrupt", right, module[:len(module)-10])
	secret := func(user string) []byte {
		return fmt.Appendf(nil, `{"auths":{"%s":{"auth":"%s"}}}`, host, base(user))
	}
	image := "oci://" + host + "/asm/filter:"
	for _, tc := range []struct {
		why  string
		src  Source
		want string
	}{
		{"no credential", Source{URL: image + "v1"}, "credential"},
		{"a wrong one", Source{URL: image + "v1", DockerConfig: secret("user:guess")}, "401"},
		{"no such tag", Source{URL: image + "v2", DockerConfig: secret("user:word")}, "not found"},
		{"another digest", Source{URL: image + "v1", DockerConfig: secret("user:word"), SHA256: strings.Repeat("ab", 32)}, "is wanted"},
		{"a module that is cut off", Source{URL: image + "corrupt", DockerConfig: secret("user:word")}, "cut off"},
	} {
		s := newStore(t, nil)
		if _, err := resolve(t, s, tc.src); err == nil || !strings.Contains(err.Error(), tc.want) || !refused(err) {
			t.Errorf("%s: %v; want %q", tc.why, err, tc.want)
		}
		if kept, err := s.modules(); err != nil || tc.want != "is wanted" && len(kept) > 0 {
			t.Errorf("%s: the store has %+v, %v", tc.why, kept, err)
		}
	}
	for _, wanted := range []string{"", digest, sum(module)} {
		m, err := resolve(t, newStore(t, nil), Source{URL: image + "v1", DockerConfig: secret("user:word"), SHA256: wanted})
		if err != nil || m.SHA256 != sum(module) || m.Digest != digest {
			t.Errorf("sha256 %q: %+v, %v", wanted, m, err)
		}
	}
}
