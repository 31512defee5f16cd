package istiod

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"understudy.mesh/internal/compliance"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key, a.cert, a.pem = a.sign(name, time.Now().Add(time.Hour), nil)
	return a
}

// sign makes a certificate for name; by is nil for one of an authority's own.
func (a *authority) sign(name string, until time.Time, by *authority) (*ecdsa.PrivateKey, *x509.Certificate, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		DNSNames: []string{name}, IsCA: by == nil, BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// pair is a certificate with its key, as a server or a client has it.
func (a *authority) pair(name string) tls.Certificate {
	key, cert, _ := a.sign(name, time.Now().Add(time.Hour), a)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRotation: root and token are those of the moment, at each handshake and each call.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	first, second := newAuthority(t, "first"), newAuthority(t, "second")
	serves := first
	f := startFake(t, grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair := serves.pair(localServerName)
		return &pair, nil
	}})))
	f.addr = strings.Replace(f.addr, "127.0.0.1", "localhost", 1)
	write(t, root, first.pem)
	write(t, token, []byte("one\n"))
	a := newAgent(t, f, func(i *Istiod) {
		i.c.Dial.Plain, i.c.Dial.Roots, i.c.Dial.Tokens = false, []string{filepath.Join(dir, "none"), root}, []string{token}
	})
	e := a.envoy()
	e.asks(clusterType)
	s := f.stream()
	if got := s.headers.Get("authorization"); len(got) != 1 || got[0] != "Bearer one" {
		t.Fatalf("istiod gets %q", got)
	}
	f.stop()
	serves = second
	f.start()
	a.failed("unknown authority")
	write(t, token, []byte("two"))
	write(t, root, second.pem)
	if got := f.stream().headers.Get("authorization"); len(got) != 1 || got[0] != "Bearer two" {
		t.Fatalf("istiod gets %q", got)
	}
}

// failed waits until the last error has this in it.
func (a *agent) failed(want string) {
	a.t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(a.now().LastError, want) {
			return
		}
	}
	a.t.Fatalf("the last error is %q, want %q", a.now().LastError, want)
}

// TestSilence: an istiod that takes the stream and says nothing is left for another one.
func TestSilence(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, func(i *Istiod) { i.loop.silence = time.Second })
	a.envoy().asks(clusterType)
	s := f.stream()
	s.asked("Cluster node")
	<-s.gone
	f.stream().asked("Cluster node")
	a.failed("says nothing")
}

// TestServerName: of the address, but where that is this machine's.
func TestServerName(t *testing.T) {
	for want, d := range map[string]Dial{
		"istiod.istio-system.svc": {Address: "localhost:15012"},
		"istiod.other.svc":        {Address: "istiod.other.svc:15012"},
		"10.0.0.1":                {Address: "10.0.0.1:15012"},
		"san":                     {Address: "istiod.other.svc:15012", ServerName: "san"},
	} {
		if got := d.serverName(); got != want {
			t.Errorf("%+v: %q, want %q", d, got, want)
		}
	}
}

// TestPlain: 15012 is TLS whatever the policy says.
func TestPlain(t *testing.T) {
	for _, tc := range []struct {
		address      string
		noAuth, want bool
	}{
		{"istiod:15010", true, true}, {"istiod:15010", false, false}, {"istiod:15012", true, false}, {"istiod:15012", false, false}, {"istiod", true, false},
	} {
		if got := IsPlain(tc.address, tc.noAuth); got != tc.want {
			t.Errorf("%s, %v: %v", tc.address, tc.noAuth, got)
		}
	}
}

// TestCompliance: no handshake is outside of the policy.
func TestCompliance(t *testing.T) {
	for policy, want := range map[compliance.Policy]uint16{"": tls.VersionTLS12, compliance.PQC: tls.VersionTLS13} {
		d := Dial{Roots: []string{systemRoots}, Compliance: policy}
		if config, err := d.tlsConfig(); err != nil || config.MinVersion != want {
			t.Errorf("%q: %v, %v, want %s", policy, config, err, tls.VersionName(want))
		}
	}
}

// TestClientCertificate: one that is expired or unreadable is left out, and the token counts.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	d := Dial{CertChain: filepath.Join(dir, "chain"), Key: filepath.Join(dir, "key")}
	if d.certificate() != nil {
		t.Error("there is none")
	}
	a := newAuthority(t, "a")
	for until, valid := range map[time.Time]bool{time.Now().Add(time.Hour): true, time.Now().Add(-time.Hour): false} {
		key, _, chain := a.sign("client", until, a)
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(t, d.CertChain, chain)
		write(t, d.Key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
		if (d.certificate() != nil) != valid {
			t.Errorf("valid until %v: used %v", until, !valid)
		}
	}
}

// TestTokens: the first file that is there counts, and none is no error.
func TestTokens(t *testing.T) {
	dir := t.TempDir()
	b := bearer{[]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, want := range []string{"", "Bearer second", "Bearer first"} {
		got, err := b.GetRequestMetadata(context.Background())
		if err != nil || got["authorization"] != want {
			t.Errorf("got %v, %v, want %q", got, err, want)
		}
		if want == "" {
			write(t, b.files[1], []byte("second"))
		} else {
			write(t, b.files[0], []byte(" first\n"))
		}
	}
	if !b.RequireTransportSecurity() {
		t.Error("a token may be sent in clear")
	}
}
