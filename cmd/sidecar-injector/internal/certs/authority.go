// Package certs owns what the webhook's certificate is made of: an authority of the injector's own, how one is replaced by the
// next without a moment at which the API server trusts neither, and the certificate that a replica serves with.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

const (
	// backdate is by how much the clocks of the API server and ours may differ.
	backdate     = time.Hour
	serialBits   = 120
	blockCert    = "CERTIFICATE"
	blockKey     = "PRIVATE KEY"
	organization = "understudy.mesh"
)

// authority signs certificates. The zero value is none.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes one that is valid from now on.
func newAuthority(now time.Time, life time.Duration) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("make the key of an authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		// Each has a name of its own: with two of one name in a bundle a verifier may try the wrong one first.
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{organization}, CommonName: "sidecar-injector " + serial.Text(36)},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, fmt.Errorf("sign an authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("read an authority back: %w", err)
	}
	return authority{cert, key}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial, nil
}

// IsZero reports whether there is none.
func (a authority) IsZero() bool { return a.cert == nil }

// same reports whether two are one.
func (a authority) same(b authority) bool {
	return a.IsZero() == b.IsZero() && (a.IsZero() || a.cert.Equal(b.cert))
}

// validAt reports whether it can sign what is valid at a time.
func (a authority) validAt(now time.Time) bool { return !a.IsZero() && validAt(a.cert, now) }

func validAt(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// leaf makes a certificate for a server of these names, which may be addresses.
func (a authority) leaf(names []string, now time.Time, life time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of the webhook's certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := now.Add(life)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{organization}, CommonName: "sidecar-injector"},
		NotBefore: now.Add(-backdate), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the webhook's certificate: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the webhook's certificate back: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, nil
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: c.Raw})
}

func (a authority) keyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("write the key of an authority: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

// parseAuthority reads one back; both parts empty is none.
func parseAuthority(certificate, key []byte) (authority, error) {
	if len(certificate) == 0 && len(key) == 0 {
		return authority{}, nil
	}
	certificates, err := parseCertificates(certificate)
	if err != nil {
		return authority{}, err
	}
	if len(certificates) != 1 {
		return authority{}, fmt.Errorf("%d certificates, want one", len(certificates))
	}
	block, _ := pem.Decode(key)
	if block == nil || block.Type != blockKey {
		return authority{}, errors.New("its key is not PEM of a PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return authority{}, fmt.Errorf("read its key: %w", err)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(certificates[0].PublicKey) {
		return authority{}, errors.New("its key is another certificate's")
	}
	if !certificates[0].IsCA {
		return authority{}, errors.New("its certificate is no authority's")
	}
	return authority{certificates[0], private}, nil
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != blockCert {
			return nil, errors.New("not PEM of a CERTIFICATE")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read a certificate: %w", err)
		}
		certificates = append(certificates, c)
	}
	return certificates, nil
}
