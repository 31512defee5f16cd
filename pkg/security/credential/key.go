package credential

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"log/slog"
)

// minRSABits is the least that peers accept, and Istio's default.
const minRSABits = 2048

// Kind is a kind of private key. The zero value is RSA of 2,048 bits in PKCS #1, Istio's default.
type Kind struct {
	// Curve is P256 or P384 for an ECDSA key; "": RSA.
	Curve string
	// RSABits is the size of an RSA key; 0: 2048, which is also the least.
	RSABits int
	// PKCS8 writes keys in the form of RFC 5208 instead of that of their algorithm.
	PKCS8 bool
}

// Check says why there can be no such key.
func (k Kind) Check() error {
	switch k.Curve {
	case "P256", "P384":
		return nil
	case "":
	default:
		return fmt.Errorf("ECC_CURVE %q: P256 or P384", k.Curve)
	}
	if k.RSABits != 0 && k.RSABits < minRSABits {
		return fmt.Errorf("WORKLOAD_RSA_KEY_SIZE %d: at least %d", k.RSABits, minRSABits)
	}
	return nil
}

// Key is a new private key. It shows itself to nobody who prints or logs it.
type Key struct {
	signer crypto.Signer
	pem    []byte
}

// NewKey makes a key, which takes a processor some 100 ms for RSA.
func NewKey(kind Kind) (*Key, error) {
	if err := kind.Check(); err != nil {
		return nil, err
	}
	var signer crypto.Signer
	var err error
	switch kind.Curve {
	case "P256":
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P384":
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		signer, err = rsa.GenerateKey(rand.Reader, max(kind.RSABits, minRSABits))
	}
	if err != nil {
		return nil, fmt.Errorf("make a private key: %w", err)
	}
	block, err := blockOf(signer, kind.PKCS8)
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	return &Key{signer: signer, pem: pem.EncodeToMemory(block)}, nil
}

func blockOf(key crypto.Signer, pkcs8 bool) (*pem.Block, error) {
	if pkcs8 {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, err
	}
	if k, isRSA := key.(*rsa.PrivateKey); isRSA {
		return &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}, nil
	}
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	return &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}, err
}

// PEM is the key itself.
func (k *Key) PEM() []byte { return k.pem }

// Format prints that this is a key, whatever the verb.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, "private key") }

// LogValue is what Format prints.
func (k *Key) LogValue() slog.Value { return slog.StringValue("private key") }

// Request asks a CA to certify the key for a SPIFFE id (RFC 2986), in PEM.
func (k *Key) Request(id string) ([]byte, error) {
	const uri = 6 // GeneralName's uniformResourceIdentifier (RFC 5280, 4.2.1.6)
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: uri, Bytes: []byte(id)}})
	if err != nil {
		return nil, fmt.Errorf("encode the id %s: %w", id, err)
	}
	// The name is in an extension, critical since there is no other (X.509-SVID, 2). Go's own field for it is not critical.
	request := &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{
		{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: names}, // subjectAltName
	}}
	der, err := x509.CreateCertificateRequest(rand.Reader, request, k.signer)
	if err != nil {
		return nil, fmt.Errorf("sign the request for %s: %w", id, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
