package sign

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

const password = "open sesame"

// newKey makes a key pair as `cosign generate-key-pair` does.
func newKey(t *testing.T) (key *Key, private []byte, verifier signature.Verifier) {
	t.Helper()
	private, public, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), cryptoutils.StaticPasswordFunc([]byte(password)))
	if err != nil {
		t.Fatal(err)
	}
	if key, err = ParseKey(private, []byte(password)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key.Public(), public) {
		t.Errorf("public key\n%s, want\n%s", key.Public(), public)
	}
	parsed, err := cryptoutils.UnmarshalPEMToPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if verifier, err = signature.LoadVerifier(parsed, crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	return key, private, verifier
}

// TestFile verifies both signatures of a file by another's code, and that neither is right for a file with one other byte.
func TestFile(t *testing.T) {
	key, _, verifier := newKey(t)
	content := []byte("0123  pilot-agent\n")
	changed := append([]byte("1"), content[1:]...)
	detached, err := key.Detached(content)
	if err != nil {
		t.Fatal(err)
	}
	bundled, err := key.Bundle(content)
	if err != nil {
		t.Fatal(err)
	}
	var read sigstoreBundle
	if err := json.Unmarshal(bundled, &read); err != nil {
		t.Fatal(err)
	}
	decoded, err := base64.StdEncoding.DecodeString(string(detached))
	if err != nil {
		t.Fatal(err)
	}
	for name, made := range map[string][]byte{"detached": decoded, "bundle": read.MessageSignature.Signature} {
		if err := verifier.VerifySignature(bytes.NewReader(made), bytes.NewReader(content)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := verifier.VerifySignature(bytes.NewReader(made), bytes.NewReader(changed)); err == nil {
			t.Errorf("%s: right for another file", name)
		}
	}
}

func TestKeys(t *testing.T) {
	_, private, _ := newKey(t)
	rsa, _, err := cryptoutils.GeneratePEMEncodedRSAKeyPair(2048, nil)
	if err != nil {
		t.Fatal(err)
	}
	p384, _, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P384(), nil)
	if err != nil {
		t.Fatal(err)
	}
	plain, _, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseKey(plain, nil); err != nil {
		t.Errorf("a key without a password: %v", err)
	}
	for name, tc := range map[string]struct {
		text, password []byte
		words          string
	}{
		"nothing":          {nil, nil, "want a private key in PEM"},
		"no PEM":           {[]byte("secret"), nil, "want a private key in PEM"},
		"another password": {private, []byte("guess"), "COSIGN_PASSWORD"},
		"no password":      {private, nil, "COSIGN_PASSWORD"},
		"RSA":              {rsa, nil, "want ECDSA on P-256"},
		"P-384":            {p384, nil, "want ECDSA on P-256"},
	} {
		if _, err := ParseKey(tc.text, tc.password); err == nil || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%s: %v: no %q", name, err, tc.words)
		}
	}
}

// TestLayout signs an image, and reads index and signature as cosign finds them.
func TestLayout(t *testing.T) {
	key, _, verifier := newKey(t)
	image, err := random.Index(512, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]*Key{"signed": key, "unsigned": nil} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "proxy")
			if err := WriteLayout(dir, image, "understudy/proxy", "v1.2.3", key); err != nil {
				t.Fatal(err)
			}
			root, err := layout.ImageIndexFromPath(dir)
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := root.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			if first := manifest.Manifests[0]; first.Digest != digest || first.Annotations[kindAnnotation] != imageKind || first.Annotations[refAnnotation] != "v1.2.3" {
				t.Errorf("the image is %+v", first)
			}
			if key == nil {
				if len(manifest.Manifests) != 1 {
					t.Errorf("%d manifests", len(manifest.Manifests))
				}
				return
			}
			second := manifest.Manifests[1]
			if second.Annotations[kindAnnotation] != signaturesKind || second.Annotations[refAnnotation] != "sha256-"+digest.Hex+".sig" {
				t.Errorf("the signature is %+v", second)
			}
			signatures, err := root.Image(second.Digest)
			if err != nil {
				t.Fatal(err)
			}
			verifyStatement(t, signatures, digest, verifier)
		})
	}
}

// verifyStatement verifies the signed statement, and that it is about an image.
func verifyStatement(t *testing.T, signatures v1.Image, digest v1.Hash, verifier signature.Verifier) {
	t.Helper()
	manifest, err := signatures.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := signatures.Layers()
	if err != nil || len(layers) != 1 || manifest.Layers[0].MediaType != payloadMediaType {
		t.Fatalf("layers %+v, %v", manifest.Layers, err)
	}
	reader, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	statement, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	made, err := base64.StdEncoding.DecodeString(manifest.Layers[0].Annotations[signatureAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.VerifySignature(bytes.NewReader(made), bytes.NewReader(statement)); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(statement), `"docker-manifest-digest":"`+digest.String()+`"`) {
		t.Errorf("the statement is about something else: %s", statement)
	}
}
