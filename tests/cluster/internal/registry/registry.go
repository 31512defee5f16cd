// Package registry owns the images that the cluster's node can pull: files in a directory, and the part of the
// registry protocol that a pull needs (https://github.com/opencontainers/distribution-spec). The node has it as the mirror
// of every registry, so that a manifest's image names and pull policies hold as they are written.
package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// descriptor is as much of an OCI descriptor as a pull needs.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Platform  *struct {
		Architecture string `json:"architecture"`
	} `json:"platform,omitempty"`
}

// document is an image index or a manifest.
type document struct {
	MediaType string       `json:"mediaType"`
	Manifests []descriptor `json:"manifests"`
	Config    *descriptor  `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// Media types of documents that do not say their own.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
)

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Store is the directory of the images. Any number of processes may use it.
type Store struct {
	dir string
}

// Open returns the images in a directory, which is made when the first one comes.
func Open(dir string) Store { return Store{dir} }

func (s Store) blob(digest string) string { return blobIn(s.dir, digest) }

func blobIn(dir, digest string) string {
	return filepath.Join(dir, "blobs", strings.Replace(digest, ":", string(filepath.Separator), 1))
}

func (s Store) tag(reference string) string {
	return filepath.Join(s.dir, "tags", url.PathEscape(reference))
}

// Qualify completes an image's name as a container runtime does: nginx is docker.io/library/nginx:latest.
func Qualify(name string) string {
	host, rest, found := strings.Cut(name, "/")
	if !found || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, rest = "docker.io", name
	}
	if host == "docker.io" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	if !strings.Contains(rest[strings.LastIndex(rest, "/")+1:], ":") {
		rest += ":latest"
	}
	return host + "/" + rest
}

// Import takes the image for this machine's architecture out of an OCI layout, under a name such as
// "understudy/proxy:v1". It reports whether the name stands for another image now than it did.
//
// Two names of one image are refused: the kubelet reports the first, whichever a pod asked for, and who compares the two
// waits for ever.
func (s Store) Import(layout, name string) (changed bool, err error) {
	image, err := pick(layout, filepath.Join(layout, "index.json"))
	if err != nil {
		return false, fmt.Errorf("import %s from %s: %w", name, layout, err)
	}
	reference := Qualify(name)
	if other, err := s.nameOf(image.Digest); err != nil {
		return false, err
	} else if other != "" && other != reference {
		return false, fmt.Errorf("import %s from %s: it is the image that is called %s already: give each name an image of its own", name, layout, other)
	} else if other == reference {
		return false, nil
	}
	if err := s.copyImage(layout, image); err != nil {
		return false, fmt.Errorf("import %s from %s: %w", name, layout, err)
	}
	text, err := json.Marshal(image)
	if err != nil {
		return false, fmt.Errorf("import %s: %w", name, err)
	}
	if err := writeWhole(s.tag(reference), text); err != nil {
		return false, fmt.Errorf("import %s: %w", name, err)
	}
	return true, nil
}

// Digest is the digest of the image of a name; "" is none.
func (s Store) Digest(name string) string {
	d, err := s.resolve(Qualify(name))
	if err != nil {
		return ""
	}
	return d.Digest
}

// nameOf returns the name that an image has; "" is none.
func (s Store) nameOf(digest string) (string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tags"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list the images: %w", err)
	}
	for _, e := range entries {
		reference, err := url.PathUnescape(e.Name())
		if err != nil {
			continue // a file that is about to get its name
		}
		if d, err := s.resolve(reference); err == nil && d.Digest == digest {
			return reference, nil
		}
	}
	return "", nil
}

func (s Store) resolve(reference string) (d descriptor, err error) {
	text, err := os.ReadFile(s.tag(reference))
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	return d, err
}

// pick finds the manifest for this architecture, through as many indexes as there are.
func pick(layout, indexFile string) (descriptor, error) {
	index, err := readDocument(indexFile)
	if err != nil {
		return descriptor{}, err
	}
	for _, d := range index.Manifests {
		if d.Platform != nil && d.Platform.Architecture != runtime.GOARCH {
			continue
		}
		if !digestForm.MatchString(d.Digest) {
			return descriptor{}, fmt.Errorf("%s: digest %q is no sha256", indexFile, d.Digest)
		}
		document, err := readDocument(blobIn(layout, d.Digest))
		if err != nil {
			return descriptor{}, err
		}
		if document.Config != nil {
			d.MediaType, d.Platform = typeOf(document), nil
			return d, nil
		}
		return pick(layout, blobIn(layout, d.Digest))
	}
	return descriptor{}, fmt.Errorf("%s has no image for %s", indexFile, runtime.GOARCH)
}

func readDocument(file string) (d document, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return d, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

func typeOf(d document) string {
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Config != nil:
		return manifestType
	}
	return indexType
}

// copyImage takes the blobs of an image over, the manifest last.
func (s Store) copyImage(layout string, image descriptor) error {
	manifest, err := readDocument(blobIn(layout, image.Digest))
	if err != nil {
		return err
	}
	blobs := append([]descriptor{*manifest.Config}, manifest.Layers...)
	for _, d := range append(blobs, image) {
		if !digestForm.MatchString(d.Digest) {
			return fmt.Errorf("digest %q is no sha256", d.Digest)
		}
		if err := linkOrCopy(blobIn(layout, d.Digest), s.blob(d.Digest)); err != nil {
			return err
		}
	}
	return nil
}

// linkOrCopy gives a file another name, on another file system as well. What is there is of that digest already.
func linkOrCopy(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeWhole(to, content)
}

// writeWhole writes a file that nobody sees half written.
func writeWhole(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "%new-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// manifestPath and blobPath are what is asked for by a pull.
var (
	manifestPath = regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)
	blobPath     = regexp.MustCompile(`^/v2/.+/blobs/([^/]+)$`)
)

// ServeHTTP answers a pull. The registry that the client means is in the parameter ns.
func (s Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only pulls", http.StatusMethodNotAllowed)
		return
	}
	path := r.URL.Path
	if m := manifestPath.FindStringSubmatch(path); m != nil {
		s.serveManifest(w, r, m[1], m[2])
	} else if m := blobPath.FindStringSubmatch(path); m != nil && digestForm.MatchString(m[1]) {
		s.serveBlob(w, r, m[1], "application/octet-stream")
	} else if path == "/v2/" {
		w.WriteHeader(http.StatusOK)
	} else {
		http.NotFound(w, r)
	}
}

func (s Store) serveManifest(w http.ResponseWriter, r *http.Request, repository, version string) {
	if digestForm.MatchString(version) {
		document, err := readDocument(s.blob(version))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		s.serveBlob(w, r, version, typeOf(document))
		return
	}
	host := r.URL.Query().Get("ns")
	if host == "" {
		host = "docker.io"
	}
	d, err := s.resolve(host + "/" + repository + ":" + version)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	s.serveBlob(w, r, d.Digest, d.MediaType)
}

func (s Store) serveBlob(w http.ResponseWriter, r *http.Request, digest, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	http.ServeFile(w, r, s.blob(digest)) // 404 where there is none
}
