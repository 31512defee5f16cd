package wasm

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
)

func base(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func TestDockerConfig(t *testing.T) {
	config, err := parseDockerConfig(fmt.Appendf(nil, `{"credsStore":"evil","credHelpers":{"a":"b"},"auths":{
		"registry.example.com":{"auth":"%s"}, "registry.example.com/team":{"username":"team","password":"p"}, "https://index.docker.io/v1/":{"auth":"%s"},
		"*.corp.example":{"username":"glob","password":"p"}, "one.corp.example":{"identitytoken":"i"}, "localhost:5000":{"registrytoken":"t"}, "http://old.example/v2/":{"username":"old"}}}`,
		base("user:pass:word"), base("hub:p")))
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]auth.Credential{
		"registry.example.com/a":        {Username: "user", Password: "pass:word"},
		"registry.example.com/team/a":   {Username: "team", Password: "p"},
		"registry.example.com/teammate": {Username: "user", Password: "pass:word"},
		"registry.example.com:443/a":    {},
		"docker.io/library/a":           {Username: "hub", Password: "p"},
		"two.corp.example/a":            {Username: "glob", Password: "p"},
		"one.corp.example/a":            {RefreshToken: "i"},
		"a.two.corp.example/a":          {},
		"localhost:5000/a":              {AccessToken: "t"},
		"old.example/a":                 {Username: "old"},
		"other.example/a":               {},
	} {
		ref, err := registry.ParseReference(image)
		if err != nil {
			t.Fatal(err)
		}
		if got := config.find(ref); got != want {
			t.Errorf("%s: %+v", image, got)
		}
	}
}

func TestDockerConfigRefusals(t *testing.T) {
	for text, want := range map[string]string{
		"": "no JSON", "[]": "no JSON", `{"auths":"secret"}`: "no JSON", `{"auths":{"a":{"auth":"%%%secret"}}}`: "not the base64",
		`{"auths":{"a":{"auth":"` + base("secret") + `"}}}`: `auths["a"]: auth is not the base64 of username:password`,
		strings.Repeat(" ", maxSecret) + "{}":               "more than 1048576 bytes",
	} {
		if _, err := parseDockerConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.50q: %v", text, err)
		}
	}
}

// writeSecret has a pull secret where the injector mounts it.
func writeSecret(t *testing.T, s *Store, name, text string) {
	t.Helper()
	dir := filepath.Join(s.cfg.SecretsDir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, secretFile), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func opens(r *fakeRegistry, user string) string {
	return fmt.Sprintf(`{"auths":{"%s":{"auth":"%s"}}}`, r.host(), base(user))
}

// TestPrivateImages: by Basic and by a token, with a secret of each kind, and with none.
func TestPrivateImages(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		r := newRegistry(t, false)
		r.user, r.bearer = "user:word", bearer
		r.push("v1", typeImage, layer{typeWasm, sample(1)})
		url := r.host() + "/a:v1"
		for _, tc := range []struct {
			why    string
			src    Source
			docker bool
			want   string
		}{
			{"none", Source{}, false, map[bool]string{false: "credential", true: "401"}[bearer]},
			{"a mounted one", Source{Secret: "good"}, false, ""},
			{"a wrong one", Source{Secret: "wrong"}, false, "401"},
			{"one for another registry", Source{Secret: "other"}, false, map[bool]string{false: "credential", true: "401"}[bearer]},
			{"one for another registry, and Docker's", Source{Secret: "other"}, true, ""},
			{"one that is broken", Source{Secret: "broken"}, true, `pull secret "broken": `},
			{"one that is not there", Source{Secret: "none"}, true, "wasm.pullSecrets"},
			{"one that need not be there, and is", Source{SecretIfThere: "good"}, false, ""},
			{"one that need not be there, and is not", Source{SecretIfThere: "none"}, true, ""},
			{"one that need not be there, and is broken", Source{SecretIfThere: "broken"}, true, `pull secret "broken": `},
			{"one that need not be there, and is needed", Source{Secret: "none", SecretIfThere: "none"}, true, "wasm.pullSecrets"},
			{"one that leads elsewhere", Source{Secret: "../secrets/good"}, false, "want the name of a Secret"},
			{"one that is a directory up", Source{Secret: ".."}, false, "want the name of a Secret"},
			{"Docker's", Source{}, true, ""},
			{"a plugin's own", Source{DockerConfig: []byte(opens(r, "user:word"))}, false, ""},
			{"a plugin's own that is not there", Source{DockerConfig: []byte{}}, true, "the plugin's pull secret is not there"},
		} {
			docker := t.TempDir()
			if err := os.WriteFile(filepath.Join(docker, "config.json"), []byte(opens(r, "user:word")), 0o600); err != nil {
				t.Fatal(err)
			}
			s := newStore(t, func(c *Config) {
				if tc.docker {
					c.DockerConfig = docker
				}
			})
			writeSecret(t, s, "good", opens(r, "user:word"))
			writeSecret(t, s, "wrong", opens(r, "user:guess"))
			writeSecret(t, s, "other", `{"auths":{"other.example":{"auth":"`+base("a:b")+`"}}}`)
			writeSecret(t, s, "broken", "nothing")
			tc.src.URL = url
			_, err := resolve(t, s, tc.src)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("by a token %v, with %s: %v; want %q", bearer, tc.why, err, tc.want)
			}
			if refusal := tc.want == "401" || tc.want == "credential"; refusal && !refused(err) {
				t.Errorf("by a token %v, with %s: %v is taken for a trouble of the moment", bearer, tc.why, err)
			}
			if err != nil && strings.Contains(err.Error(), "word") {
				t.Errorf("with %s: the error shows it: %v", tc.why, err)
			}
		}
	}
}

// TestPrivateModuleServesItsOwners: what one credential has opened is not for who has none, registry or no registry.
func TestPrivateModuleServesItsOwners(t *testing.T) {
	r := newRegistry(t, false)
	r.user = "user:word"
	r.push("v1", typeImage, layer{typeWasm, sample(1)})
	s := newStore(t, nil)
	writeSecret(t, s, "good", opens(r, "user:word"))
	writeSecret(t, s, "wrong", opens(r, "user:guess"))
	src := Source{URL: r.host() + "/a:v1", Secret: "good"}
	if _, err := resolve(t, s, src); err != nil {
		t.Fatal(err)
	}
	stranger := func(when string) {
		t.Helper()
		for _, policy := range []Policy{IfNotPresent, Always, Never} {
			for _, secret := range []string{"", "wrong"} {
				if m, err := resolve(t, s, Source{URL: src.URL, Secret: secret, Policy: policy, SHA256: sum(sample(1))}); err == nil {
					t.Errorf("%s: a stranger gets %+v", when, m)
				}
			}
		}
	}
	stranger("with the registry")
	r.Close()
	stranger("without the registry")
	again := New(s.cfg)
	for _, policy := range []Policy{DefaultPolicy, Never} {
		src.Policy = policy
		if _, err := resolve(t, again, src); err != nil {
			t.Errorf("the owner, without the registry: %v", err)
		}
	}
	// A second owner needs the manifest, and not the layer.
	r2 := newRegistry(t, false)
	r2.push("v1", typeImage, layer{typeWasm, sample(2)})
	for _, user := range []string{"a:b", "c:d"} {
		r2.with(func() { r2.user = user })
		if _, err := resolve(t, s, Source{URL: r2.host() + "/a:v1", DockerConfig: []byte(opens(r2, user))}); err != nil || r2.requests("blobs") > 2 {
			t.Errorf("%s: %v, %d requests for layers", user, err, r2.requests("blobs"))
		}
	}
}

func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://a.example/v1/":{"auth":"`+base("a:b")+`"},"*.b":{"username":"u"},"c/d":{}}}`), "a.example/x/y")
	f.Add([]byte(`{"auths":{"[":{"username":"u"}}}`), "[/a")
	f.Fuzz(func(t *testing.T, data []byte, image string) {
		config, err := parseDockerConfig(data)
		if err != nil {
			return
		}
		host, path, _ := strings.Cut(image, "/")
		config.find(registry.Reference{Registry: host, Repository: path})
	})
}
