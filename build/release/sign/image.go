package sign

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

// What cosign looks for: in a manifest of signatures, and in the index of a layout as `cosign save` writes it.
const (
	payloadMediaType    = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	signatureAnnotation = "dev.cosignproject.cosign/signature"

	kindAnnotation = "kind"
	imageKind      = "dev.cosignproject.cosign/imageIndex"
	signaturesKind = "dev.cosignproject.cosign/sigs"

	refAnnotation = "org.opencontainers.image.ref.name"
)

// WriteLayout writes an image for several platforms into a new OCI layout, and its signature by key beside it, so that
// `cosign verify --local-image` verifies the directory and `cosign load` pushes both. A nil key: no signature.
// repository is what the image is called in the signature, such as understudy/proxy; tag is its version.
func WriteLayout(dir string, image v1.ImageIndex, repository, tag string, key *Key) error {
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write image %s: %w", repository, err)
	}
	described := layout.WithAnnotations(map[string]string{kindAnnotation: imageKind, refAnnotation: tag})
	if err := l.AppendIndex(image, described); err != nil {
		return fmt.Errorf("write image %s: %w", repository, err)
	}
	if key == nil {
		return nil
	}
	digest, err := image.Digest()
	if err != nil {
		return fmt.Errorf("sign image %s: %w", repository, err)
	}
	signed, err := key.signatures(repository, digest)
	if err != nil {
		return fmt.Errorf("sign image %s: %w", repository, err)
	}
	// cosign's own name for it, by which it is found in a registry as well.
	own := digest.Algorithm + "-" + digest.Hex + ".sig"
	if err := l.AppendImage(signed, layout.WithAnnotations(map[string]string{kindAnnotation: signaturesKind, refAnnotation: own})); err != nil {
		return fmt.Errorf("sign image %s: %w", repository, err)
	}
	return nil
}

// signatures is the manifest that has the signature of an image: one layer is the signed statement of its digest.
func (k *Key) signatures(repository string, digest v1.Hash) (v1.Image, error) {
	reference, err := name.NewDigest(repository + "@" + digest.String())
	if err != nil {
		return nil, fmt.Errorf("name it: %w", err)
	}
	statement, err := json.Marshal(payload.Cosign{Image: reference})
	if err != nil {
		return nil, fmt.Errorf("write its statement: %w", err)
	}
	made, err := k.sign(statement)
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{
		Layer:       static.NewLayer(statement, payloadMediaType),
		Annotations: map[string]string{signatureAnnotation: base64.StdEncoding.EncodeToString(made)},
	})
	if err != nil {
		return nil, fmt.Errorf("write its signature: %w", err)
	}
	return image, nil
}
