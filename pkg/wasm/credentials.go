package wasm

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	// secretFile is the key of a Secret of type kubernetes.io/dockerconfigjson.
	secretFile = ".dockerconfigjson"
	// maxSecret is what the API server takes of a Secret.
	maxSecret = 1 << 20
)

// dockerConfig is the part of Docker's configuration that has credentials. What would run programs (credsStore, credHelpers) is not
// read.
type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of username:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// parseDockerConfig reads a docker config. Its error shows nothing of it.
func parseDockerConfig(data []byte) (dockerConfig, error) {
	var c dockerConfig
	if len(data) > maxSecret {
		return c, fmt.Errorf("it has more than %d bytes", maxSecret)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, errors.New(`it is no JSON of the form {"auths": {"registry.example.com": {"auth": "..."}}}`)
	}
	for name, a := range c.Auths {
		if _, err := a.credential(); err != nil {
			return c, fmt.Errorf("auths[%q]: %w", name, err)
		}
	}
	return c, nil
}

func (a dockerAuth) credential() (auth.Credential, error) {
	c := auth.Credential{Username: a.Username, Password: a.Password, RefreshToken: a.IdentityToken, AccessToken: a.RegistryToken}
	if a.Auth == "" {
		return c, nil
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(a.Auth))
	if err != nil {
		text, err = base64.RawStdEncoding.DecodeString(strings.TrimSpace(a.Auth))
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
	if err != nil || !ok {
		return c, errors.New("auth is not the base64 of username:password")
	}
	c.Username, c.Password = user, password
	return c, nil
}

// find is the credential for an image, that of the closest name: a registry, one with a path, or with * in the parts of its host,
// as the kubelet reads them. The empty one is none.
func (c dockerConfig) find(image registry.Reference) auth.Credential {
	best, found := -1, dockerAuth{}
	for name, a := range c.Auths {
		host, below := authName(name)
		exact := host == hostName(image.Registry)
		if !exact && !hostMatches(host, hostName(image.Registry)) || below != "" && !within(image.Repository, below) {
			continue
		}
		score := 2 * len(below)
		if exact {
			score++
		}
		if score > best {
			best, found = score, a
		}
	}
	credential, _ := found.credential() // it was read before
	return credential
}

// authName is host and path of a name in a docker config, which may be a URL.
func authName(name string) (host, below string) {
	if _, after, ok := strings.Cut(name, "://"); ok {
		name = after
	}
	host, below, _ = strings.Cut(name, "/")
	below = strings.Trim(below, "/")
	if below == "v1" || below == "v2" {
		below = ""
	}
	return hostName(host), below
}

// hostName is a registry's, with one name for Docker's.
func hostName(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return dockerHub
	}
	return host
}

func hostMatches(pattern, host string) bool {
	patterns, parts := strings.Split(pattern, "."), strings.Split(host, ".")
	if !strings.Contains(pattern, "*") || len(patterns) != len(parts) {
		return false
	}
	for i := range parts {
		if ok, err := path.Match(patterns[i], parts[i]); !ok || err != nil {
			return false
		}
	}
	return true
}

// secretPath is the file of a pull secret; "" of none.
func (s *Store) secretPath(name string) string {
	if name == "" {
		return ""
	}
	return filepath.Join(s.cfg.SecretsDir, name, secretFile)
}

// credential is what opens a registry for a source: of the plugin's own secrets, else of DOCKER_CONFIG, else none.
func (s *Store) credential(src Source, image registry.Reference) (auth.Credential, error) {
	if src.DockerConfig != nil && len(src.DockerConfig) == 0 {
		return auth.EmptyCredential, errors.New("the plugin's pull secret is not there: istiod found no Secret of that name in the plugin's namespace")
	}
	if src.DockerConfig != nil {
		c, err := parseDockerConfig(src.DockerConfig)
		if err != nil {
			return auth.EmptyCredential, fmt.Errorf("the plugin's pull secret: %w", err)
		}
		if found := c.find(image); found != auth.EmptyCredential {
			return found, nil
		}
	}
	for i, name := range []string{src.Secret, src.SecretIfThere} {
		if name == "" {
			continue
		}
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return auth.EmptyCredential, badSource("pull secret %q: want the name of a Secret", name)
		}
		found, err := credentialIn(s.secretPath(name), image)
		if errors.Is(err, fs.ErrNotExist) {
			if i > 0 {
				continue
			}
			err = errors.New("there is no such file: mount the Secret, by wasm.pullSecrets of the SidecarProfile")
		}
		if err != nil {
			return auth.EmptyCredential, fmt.Errorf("pull secret %q: %s: %w", name, s.secretPath(name), err)
		}
		if found != auth.EmptyCredential {
			return found, nil
		}
	}
	if s.cfg.DockerConfig == "" {
		return auth.EmptyCredential, nil
	}
	file := filepath.Join(s.cfg.DockerConfig, "config.json")
	found, err := credentialIn(file, image)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return auth.EmptyCredential, fmt.Errorf("DOCKER_CONFIG: %s: %w", file, err)
	}
	return found, nil
}

// credentialIn is the one for an image in a file.
func credentialIn(file string, image registry.Reference) (auth.Credential, error) {
	info, err := os.Stat(file)
	if err != nil {
		return auth.EmptyCredential, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecret {
		return auth.EmptyCredential, fmt.Errorf("want a file of at most %d bytes", maxSecret)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return auth.EmptyCredential, err
	}
	c, err := parseDockerConfig(data)
	return c.find(image), err
}
