package sign

import (
	"encoding/json"
	"fmt"
)

// bundleMediaType is the version of the form; cosign 2.4 and newer read it.
const bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// sigstoreBundle is a Sigstore bundle of a signature by a key, as its protobuf is written in JSON. There is no entry of
// a transparency log in it: nothing was asked for one.
type sigstoreBundle struct {
	MediaType            string               `json:"mediaType"`
	VerificationMaterial verificationMaterial `json:"verificationMaterial"`
	MessageSignature     messageSignature     `json:"messageSignature"`
}

type verificationMaterial struct {
	PublicKey publicKeyIdentifier `json:"publicKey"`
}

// publicKeyIdentifier does not hold the key: who verifies has it from elsewhere.
type publicKeyIdentifier struct {
	Hint string `json:"hint"`
}

type messageSignature struct {
	MessageDigest messageDigest `json:"messageDigest"`
	Signature     []byte        `json:"signature"`
}

type messageDigest struct {
	Algorithm string `json:"algorithm"`
	Digest    []byte `json:"digest"`
}

// bundle is the bundle of a signature over what has this SHA-256.
func bundle(signature, sha256 []byte, hint string) ([]byte, error) {
	text, err := json.Marshal(sigstoreBundle{
		MediaType:            bundleMediaType,
		VerificationMaterial: verificationMaterial{publicKeyIdentifier{hint}},
		MessageSignature:     messageSignature{messageDigest{"SHA2_256", sha256}, signature},
	})
	if err != nil {
		return nil, fmt.Errorf("write the signature's bundle: %w", err)
	}
	return append(text, '\n'), nil
}
