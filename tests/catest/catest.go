// Package catest owns a certificate authority for tests: it signs what it is asked to as istiod's does, or as a test wants it.
package catest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// skew is how far in the past a certificate begins, istiod's.
const skew = 2 * time.Minute

// CA is a certificate authority with one root. It is made by New.
type CA struct {
	securityv1alpha1.UnimplementedIstioCertificateServiceServer

	t    testing.TB
	root *x509.Certificate
	key  crypto.Signer

	mu       sync.Mutex
	answer   func(context.Context, *securityv1alpha1.IstioCertificateRequest) ([]string, error)
	requests []Request
}

// Request is one that the CA was sent.
type Request struct {
	Message  *securityv1alpha1.IstioCertificateRequest
	Metadata metadata.MD
}

// New makes a CA whose root has a name.
func New(t testing.TB, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, root: root, key: key}
}

// Root is the root in PEM.
func (c *CA) Root() string { return encode(c.root.Raw) }

// Sign signs a request in PEM for a time, and returns the certificate in PEM. edit, if not nil, changes what is signed.
func (c *CA) Sign(csr string, lifetime time.Duration, edit func(*x509.Certificate)) string {
	block, _ := pem.Decode([]byte(csr))
	if block == nil {
		c.t.Errorf("the CA was sent a request without PEM: %q", csr)
		return ""
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		c.t.Errorf("the CA was sent a bad request: %v", err)
		return ""
	}
	now := time.Now()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, URIs: request.URIs, NotBefore: now.Add(-skew), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.root, request.PublicKey, c.key)
	if err != nil {
		c.t.Errorf("sign: %v", err)
		return ""
	}
	return encode(der)
}

// Issue makes a key, and a certificate for a SPIFFE id that is valid for an hour: the certificate with the root behind it, and the
// key, in PEM.
func (c *CA) Issue(id *url.URL) (chain, key []byte) {
	c.t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id}}, signer)
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		c.t.Fatal(err)
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}))
	return []byte(c.Sign(csr, time.Hour, nil) + c.Root()), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// Answer has requests answered by a function from now on; nil: by signing.
func (c *CA) Answer(answer func(context.Context, *securityv1alpha1.IstioCertificateRequest) ([]string, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

// Refuse has the CA sign nothing, because of err.
func (c *CA) Refuse(err error) {
	c.Answer(func(context.Context, *securityv1alpha1.IstioCertificateRequest) ([]string, error) { return nil, err })
}

// Requests are all so far.
func (c *CA) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Request(nil), c.requests...)
}

// CreateCertificate serves one request; gRPC calls it.
func (c *CA) CreateCertificate(ctx context.Context, req *securityv1alpha1.IstioCertificateRequest) (*securityv1alpha1.IstioCertificateResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	c.mu.Lock()
	c.requests = append(c.requests, Request{req, md})
	answer := c.answer
	c.mu.Unlock()
	if answer != nil {
		chain, err := answer(ctx, req)
		return &securityv1alpha1.IstioCertificateResponse{CertChain: chain}, err
	}
	leaf := c.Sign(req.GetCsr(), time.Duration(req.GetValidityDuration())*time.Second, nil)
	return &securityv1alpha1.IstioCertificateResponse{CertChain: []string{leaf, c.Root()}}, nil
}

// Serve serves the CA without TLS until the test ends, and returns how it is reached.
func (c *CA) Serve() (connect func() (*grpc.ClientConn, error)) {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "ca.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		c.t.Fatal(err)
	}
	c.ServeOn(l)
	return func() (*grpc.ClientConn, error) {
		return grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig())
	}
}

// ServeOn serves the CA on l without TLS until the test ends.
func (c *CA) ServeOn(l net.Listener) {
	server := grpc.NewServer()
	securityv1alpha1.RegisterIstioCertificateServiceServer(server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // fails when it is stopped
	c.t.Cleanup(func() { server.Stop(); serving.Wait() })
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
