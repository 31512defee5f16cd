package credential

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const id = "spiffe://cluster.local/ns/shop/sa/web"

// kinds are all keys that there are, by the type that their PEM has.
var kinds = map[string]Kind{
	"RSA PRIVATE KEY": {},
	"EC PRIVATE KEY":  {Curve: "P256"},
	"PRIVATE KEY":     {Curve: "P384", PKCS8: true},
}

// TestRequest: a request is well signed, and has the id alone, in a critical extension.
func TestRequest(t *testing.T) {
	for block, kind := range kinds {
		key, err := NewKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(key.PEM()), "-----BEGIN "+block+"-----") {
			t.Errorf("%+v is in another form than %q", kind, block)
		}
		csr, err := key.Request(id)
		if err != nil {
			t.Fatal(err)
		}
		decoded, rest := pem.Decode(csr)
		if decoded == nil || len(rest) > 0 || decoded.Type != "CERTIFICATE REQUEST" {
			t.Fatalf("%q", csr)
		}
		request, err := x509.ParseCertificateRequest(decoded.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := request.CheckSignature(); err != nil {
			t.Error(err)
		}
		if len(request.URIs) != 1 || request.URIs[0].String() != id || len(request.DNSNames) > 0 || len(request.Extensions) != 1 || !request.Extensions[0].Critical {
			t.Errorf("names %v and %v, extensions %v; want the id alone, critical", request.URIs, request.DNSNames, request.Extensions)
		}
		switch public := request.PublicKey.(type) {
		case *rsa.PublicKey:
			if public.N.BitLen() != 2048 {
				t.Errorf("an RSA key of %d bits", public.N.BitLen())
			}
		case *ecdsa.PublicKey:
			if want := strings.Replace(kind.Curve, "P", "P-", 1); public.Curve.Params().Name != want {
				t.Errorf("curve %s, want %s", public.Curve.Params().Name, want)
			}
		}
	}
}

// TestRequestByOpenSSL: another implementation reads the same, and the key.
func TestRequestByOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	run := func(in []byte, args ...string) string {
		t.Helper()
		cmd := exec.Command(openssl, args...)
		cmd.Stdin = strings.NewReader(string(in))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	for _, kind := range kinds {
		key, err := NewKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := key.Request(id)
		if err != nil {
			t.Fatal(err)
		}
		said := run(csr, "req", "-verify", "-noout", "-text")
		for _, want := range []string{"verify OK", "X509v3 Subject Alternative Name: critical", "URI:" + id} {
			if !strings.Contains(said, want) {
				t.Errorf("openssl does not say %q:\n%s", want, said)
			}
		}
		run(key.PEM(), "pkey", "-check", "-noout")
	}
}

// TestKind: a key that peers would refuse is none, and the setting is named.
func TestKind(t *testing.T) {
	for setting, kind := range map[string]Kind{
		"WORKLOAD_RSA_KEY_SIZE 1024": {RSABits: 1024},
		`ECC_CURVE "P521"`:           {Curve: "P521"},
	} {
		for _, err := range []error{kind.Check(), func() error { _, err := NewKey(kind); return err }()} {
			if err == nil || !strings.Contains(err.Error(), setting) {
				t.Errorf("%+v: %v, want that it names %s", kind, err, setting)
			}
		}
	}
	if key, err := NewKey(Kind{RSABits: 3072}); err != nil || key.signer.Public().(*rsa.PublicKey).N.BitLen() != 3072 {
		t.Errorf("%v, want 3072 bits", err)
	}
}

// FuzzRoots: what somebody puts into a file or sends comes back as certificates or not at all.
func FuzzRoots(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		roots, err := Roots(data)
		if len(roots) == 0 && err == nil {
			t.Error("neither roots nor why there are none")
		}
		for _, root := range roots {
			if again, err := Roots([]byte(root)); err != nil || len(again) != 1 || again[0] != root {
				t.Errorf("%q is read as %q, %v", root, again, err)
			}
		}
	})
}

// FuzzNew: whatever a CA answers, it is a credential or an error.
func FuzzNew(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		now := time.Now()
		if c, err := New(Parts{Chain: chain, Key: key, Roots: chain}, id, now, now); (c == nil) == (err == nil) {
			t.Errorf("%v and %v", c, err)
		}
	})
}
