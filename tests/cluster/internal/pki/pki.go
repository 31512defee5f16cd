// Package pki owns the cluster's keys: two authorities (of the cluster, and of the world outside that its pods call), the
// certificates that they have issued, and a kubeconfig for each client of the API server.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	// lifetime is longer than any checkout's.
	lifetime = 10 * 365 * 24 * time.Hour
	// A clock that was set back does not make the certificates invalid.
	backdate = time.Hour
	// serviceAccountBits: tokens are signed with RS256, which every client reads.
	serviceAccountBits = 2048
)

// Config names what the certificates are for.
type Config struct {
	// Server is the API server as its clients have it; Names and IPs go into its certificate.
	Server string
	Names  []string
	IPs    []net.IP
	// Node is the node's name.
	Node string
	// World are the names of the server outside.
	World []string
}

// authority issues certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// Write makes all of it in a directory, which must exist.
func Write(dir string, c Config) error {
	cluster, err := newAuthority(dir, "ca", "understudy cluster")
	if err != nil {
		return err
	}
	world, err := newAuthority(dir, "world-ca", "the world outside")
	if err != nil {
		return err
	}
	server := &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, DNSNames: c.Names, IPAddresses: c.IPs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if _, _, err := cluster.issue(dir, "apiserver", server); err != nil {
		return err
	}
	outside := &x509.Certificate{Subject: pkix.Name{CommonName: c.World[0]}, DNSNames: c.World, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if _, _, err := world.issue(dir, "world", outside); err != nil {
		return err
	}
	for _, client := range []struct{ file, user, group string }{
		{"admin", "admin", "system:masters"},
		{"kubelet-client", "kubelet-client", "system:masters"},
		{"controller-manager", "system:kube-controller-manager", ""},
		{"scheduler", "system:kube-scheduler", ""},
		{"proxy", "system:kube-proxy", ""},
		{"kubelet", "system:node:" + c.Node, "system:nodes"},
	} {
		name := pkix.Name{CommonName: client.user}
		if client.group != "" {
			name.Organization = []string{client.group}
		}
		cert, key, err := cluster.issue(dir, client.file, &x509.Certificate{Subject: name, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			return err
		}
		if err := writeKubeconfig(filepath.Join(dir, client.file+".kubeconfig"), c.Server, client.file, cluster.pem, cert, key); err != nil {
			return err
		}
	}
	return writeServiceAccountKey(dir)
}

func newAuthority(dir, file, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of %s: %w", file, err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-backdate), NotAfter: time.Now().Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", file, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read %s back: %w", file, err)
	}
	a := &authority{key: key, cert: cert, pem: encode("CERTIFICATE", der)}
	if err := writePrivate(filepath.Join(dir, file+".crt"), a.pem); err != nil {
		return nil, err
	}
	_, err = writeKey(filepath.Join(dir, file+".key"), key)
	return a, err
}

// issue completes a certificate, signs it and writes it with its key to NAME.crt and NAME.key.
func (a *authority) issue(dir, name string, template *x509.Certificate) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the key of %s: %w", name, err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)); err != nil {
		return nil, nil, fmt.Errorf("number the certificate of %s: %w", name, err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-backdate), time.Now().Add(lifetime)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	cert = encode("CERTIFICATE", der)
	if err := writePrivate(filepath.Join(dir, name+".crt"), cert); err != nil {
		return nil, nil, err
	}
	key, err = writeKey(filepath.Join(dir, name+".key"), private)
	return cert, key, err
}

// writeServiceAccountKey writes the pair that signs service accounts' tokens, sa.key and sa.pub.
func writeServiceAccountKey(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, serviceAccountBits)
	if err != nil {
		return fmt.Errorf("make the key of service accounts: %w", err)
	}
	if _, err := writeKey(filepath.Join(dir, "sa.key"), key); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("write the key of service accounts: %w", err)
	}
	return writePrivate(filepath.Join(dir, "sa.pub"), encode("PUBLIC KEY", public))
}

// writeKubeconfig writes one with everything in it, so that it can be read from anywhere. JSON is YAML.
func writeKubeconfig(file, server, user string, ca, cert, key []byte) error {
	type named map[string]any
	text, err := json.MarshalIndent(named{
		"apiVersion": "v1", "kind": "Config", "current-context": "cluster",
		"clusters": []named{{"name": "cluster", "cluster": named{"server": server, "certificate-authority-data": ca}}},
		"users":    []named{{"name": user, "user": named{"client-certificate-data": cert, "client-key-data": key}}},
		"contexts": []named{{"name": "cluster", "context": named{"cluster": "cluster", "user": user}}},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return writePrivate(file, text)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writeKey(file string, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", file, err)
	}
	text := encode("PRIVATE KEY", der)
	return text, writePrivate(file, text)
}

func writePrivate(file string, content []byte) error {
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return fmt.Errorf("write the cluster's keys: %w", err)
	}
	return nil
}
