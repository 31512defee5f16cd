package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"understudy.mesh/pkg/wasm/internal/frame"
)

// maxManifest bounds a manifest or an index, as registries do.
const maxManifest = 4 << 20

// Types of what is in a registry.
const (
	typeIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerIndex = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeImage       = "application/vnd.oci.image.manifest.v1+json"
	typeDockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	typeWasmLayer   = "application/vnd.module.wasm.content.layer.v1+wasm" // of Solo's and Istio's artifacts
	typeWasm        = "application/wasm"                                  // of CNCF's
	typeLayerGzip   = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeLayer       = "application/vnd.oci.image.layer.v1.tar"
	typeDockerGzip  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	typeDockerLayer = "application/vnd.docker.image.rootfs.diff.tar"
)

// manifest is the part of a manifest or of an index that matters here.
type manifest struct {
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

// fetched is something to read a module of.
type fetched struct {
	open    func(context.Context) (io.ReadCloser, error)
	size    int64        // of what is read; negative if it is not known
	digests []string     // of an image: of its index if it has one, and last of its manifest, in hexadecimal
	etag    string       // of a server
	verify  func() error // once all was read; nil: nothing is to be asked
}

// image asks a registry for the layer that has the module.
func (t *trip) image(ctx context.Context, image registry.Reference, credential auth.Credential) (*fetched, error) {
	f, err := t.imageBy(ctx, image, credential, false)
	if errors.Is(err, http.ErrSchemeMismatch) { // it has no TLS
		if !t.store.plainAllowed(image.Registry) {
			return nil, fmt.Errorf("%s has no TLS: list it in WASM_INSECURE_REGISTRIES if that is meant", image.Registry)
		}
		f, err = t.imageBy(ctx, image, credential, true)
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		err = fmt.Errorf("%w, and no pull secret has credentials for it", &statusError{http.StatusUnauthorized, image.Registry})
	}
	return f, err
}

func (t *trip) imageBy(ctx context.Context, image registry.Reference, credential auth.Credential, plain bool) (*fetched, error) {
	repository := &remote.Repository{
		Reference: image, PlainHTTP: plain, MaxMetadataBytes: maxManifest,
		ManifestMediaTypes: []string{typeImage, typeDockerImage, typeIndex, typeDockerIndex},
		Client: &auth.Client{
			Client: t.client(), Cache: auth.NewCache(), ClientID: "understudy",
			Credential: auth.StaticCredential(image.Host(), credential),
		},
	}
	f := &fetched{}
	m, err := f.manifest(ctx, repository, image.Reference)
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) > 0 || m.MediaType == typeIndex || m.MediaType == typeDockerIndex {
		chosen, err := m.choose()
		if err != nil {
			return nil, err
		}
		if m, err = f.manifest(ctx, repository, chosen.Digest.String()); err != nil {
			return nil, err
		}
	}
	layer, err := m.layer()
	if err != nil {
		return nil, err
	}
	if layer.Size > t.store.cfg.MaxModule {
		return nil, &tooLargeError{"its layer has", t.store.cfg.MaxModule}
	}
	f.ofLayer(repository, layer)
	return f, nil
}

// manifest fetches and checks one, by tag or digest.
func (f *fetched) manifest(ctx context.Context, repository *remote.Repository, reference string) (manifest, error) {
	described, body, err := repository.Manifests().FetchReference(ctx, reference)
	if err != nil {
		return manifest{}, err
	}
	defer body.Close()
	if described.Size > maxManifest {
		return manifest{}, frame.Invalid("its manifest has %d bytes, more than %d", described.Size, maxManifest)
	}
	data, err := content.ReadAll(body, described)
	if err != nil {
		return manifest{}, fmt.Errorf("the manifest: %w", err)
	}
	f.digests = append(f.digests, described.Digest.Encoded())
	return parseManifest(data)
}

func parseManifest(data []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return m, frame.Invalid("its manifest is no JSON of a manifest: %v", err)
	}
	return m, nil
}

// choose is the image of an index: one for Wasm, else the only one, else the one for this machine. A signature or an attestation beside
// it is for no platform that there is.
func (m manifest) choose() (ocispec.Descriptor, error) {
	images := slices.DeleteFunc(slices.Clone(m.Manifests), func(d ocispec.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS == "unknown" || d.MediaType != "" && d.MediaType != typeImage && d.MediaType != typeDockerImage
	})
	on := func(d ocispec.Descriptor) ocispec.Platform {
		if d.Platform == nil {
			return ocispec.Platform{}
		}
		return *d.Platform
	}
	for _, wanted := range []func(d ocispec.Descriptor) bool{
		func(d ocispec.Descriptor) bool { return strings.HasPrefix(on(d).Architecture, "wasm") },
		func(ocispec.Descriptor) bool { return len(images) == 1 },
		func(d ocispec.Descriptor) bool { return on(d).OS == "linux" && on(d).Architecture == runtime.GOARCH },
	} {
		if i := slices.IndexFunc(images, wanted); i >= 0 {
			return checkedLayer(images[i])
		}
	}
	return ocispec.Descriptor{}, frame.Invalid("its index has %d images, and none for Wasm or linux/%s", len(images), runtime.GOARCH)
}

// layer is the one that has the module: of a Wasm type, else the last one of an image.
func (m manifest) layer() (ocispec.Descriptor, error) {
	if len(m.Manifests) > 0 {
		return ocispec.Descriptor{}, frame.Invalid("its index is one of indexes")
	}
	for _, kind := range []string{typeWasmLayer, typeWasm} {
		var found []ocispec.Descriptor
		for _, l := range m.Layers {
			if l.MediaType == kind {
				found = append(found, l)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return checkedLayer(found[0])
		default:
			return ocispec.Descriptor{}, frame.Invalid("it has %d layers of type %s; want one", len(found), kind)
		}
	}
	if len(m.Layers) == 0 {
		return ocispec.Descriptor{}, frame.Invalid("its manifest has no layers")
	}
	last := m.Layers[len(m.Layers)-1]
	if !slices.Contains([]string{typeLayerGzip, typeLayer, typeDockerGzip, typeDockerLayer}, last.MediaType) {
		return ocispec.Descriptor{}, frame.Invalid("its layers are of the types %s; want one of %s, of %s, or an image whose last layer is a tar with %s",
			strings.Join(m.types(), ", "), typeWasmLayer, typeWasm, pluginFile)
	}
	return checkedLayer(last)
}

func checkedLayer(layer ocispec.Descriptor) (ocispec.Descriptor, error) {
	if err := layer.Digest.Validate(); err != nil || layer.Size < 0 {
		return ocispec.Descriptor{}, frame.Invalid("its manifest names something of digest %.100q and %d bytes", layer.Digest, layer.Size)
	}
	return layer, nil
}

func (m manifest) types() (types []string) {
	for _, l := range m.Layers[:min(len(m.Layers), 8)] {
		types = append(types, fmt.Sprintf("%.100q", l.MediaType))
	}
	return types
}

// ofLayer has the layer read, and its hash checked meanwhile.
func (f *fetched) ofLayer(repository *remote.Repository, layer ocispec.Descriptor) {
	f.size = layer.Size
	f.open = func(ctx context.Context) (io.ReadCloser, error) {
		body, err := repository.Blobs().Fetch(ctx, layer)
		if err != nil {
			return nil, fmt.Errorf("the layer: %w", err)
		}
		checked := content.NewVerifyReader(body, layer)
		f.verify = func() error {
			if err := checked.Verify(); err != nil {
				return fmt.Errorf("the layer is not what the manifest says: %w", err)
			}
			return nil
		}
		return struct {
			io.Reader
			io.Closer
		}{checked, body}, nil
	}
}
