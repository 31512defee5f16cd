// Package sign owns the signatures of a release: of files, and of images in an OCI layout, by one key, without a
// network, in the forms that cosign verifies.
package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"fmt"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Key is a private key of ECDSA on P-256, which is what cosign makes.
type Key struct {
	signer signature.Signer
	public []byte
	// hint is how cosign calls a key in a bundle: the SHA-256 of its DER, in base64.
	hint string
}

// ParseKey reads a private key in PEM: one of `cosign generate-key-pair`, which password opens, or PKCS #8 or SEC 1 as
// openssl writes them.
func ParseKey(text, password []byte) (*Key, error) {
	private, err := cryptoutils.UnmarshalPEMToPrivateKey(text, func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return nil, fmt.Errorf("read the key: %w: want a private key in PEM, and its password in COSIGN_PASSWORD if it has one", err)
	}
	key, ok := private.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("read the key: it is a %T: want ECDSA on P-256, as `cosign generate-key-pair` makes it", private)
	}
	signer, err := signature.LoadECDSASigner(key, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	public, err := cryptoutils.MarshalPublicKeyToPEM(key.Public())
	if err != nil {
		return nil, fmt.Errorf("write the public key: %w", err)
	}
	block, _ := pem.Decode(public)
	sum := sha256.Sum256(block.Bytes)
	return &Key{signer: signer, public: public, hint: base64.StdEncoding.EncodeToString(sum[:])}, nil
}

// Public is the public key in PEM.
func (k *Key) Public() []byte { return k.public }

// sign is the signature of content, in ASN.1.
func (k *Key) sign(content []byte) ([]byte, error) {
	made, err := k.signer.SignMessage(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return made, nil
}

// Bundle signs a file's content: the Sigstore bundle that `cosign verify-blob --bundle` reads.
func (k *Key) Bundle(content []byte) ([]byte, error) {
	made, err := k.sign(content)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(content)
	return bundle(made, digest[:], k.hint)
}

// Detached signs a file's content: the signature in base64, for `openssl dgst -verify` and older cosigns.
func (k *Key) Detached(content []byte) ([]byte, error) {
	made, err := k.sign(content)
	if err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(made)), nil
}
