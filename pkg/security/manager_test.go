package security

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"understudy.mesh/pkg/security/credential"
	"understudy.mesh/tests/catest"
)

const workload = "spiffe://cluster.local/ns/shop/sa/web"

// config is that of a workload with a CA; its keys are of a kind that is made fast.
func config(connect func() (*grpc.ClientConn, error)) Config {
	return Config{
		TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web", Connect: connect, CA: "ca.test:15012",
		Key: credential.Kind{Curve: "P256"}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func newManager(t *testing.T, c Config) *Manager {
	t.Helper()
	m, err := NewManager(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start runs a manager until the test ends.
func start(t *testing.T, m *Manager) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// await waits until Get says what is wanted.
func await(t *testing.T, m *Manager, name, what string, wanted func(Secret, error) bool) Secret {
	t.Helper()
	late := time.After(deadline)
	for {
		changed := m.Changed()
		secret, err := m.Get(name)
		if wanted(secret, err) {
			return secret
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s: %v, %v; want %s", name, secret, err, what)
		}
	}
}

func there(_ Secret, err error) bool { return err == nil }

// TestBadConfig: what no certificate can be asked for with is said at the start, by the setting's name.
func TestBadConfig(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"WORKLOAD_RSA_KEY_SIZE 1024":           func(c *Config) { c.Key = credential.Kind{RSABits: 1024} },
		"SECRET_GRACE_PERIOD_RATIO 1.5":        func(c *Config) { c.Grace = 1.5 },
		"SECRET_GRACE_PERIOD_RATIO_JITTER -1:": func(c *Config) { c.GraceJitter = -1 },
	} {
		c := config(nil)
		change(&c)
		if _, err := NewManager(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want that it names %s", err, want)
		}
	}
}

// TestObtain: what a CA is sent, and what Envoy gets of its answer.
func TestObtain(t *testing.T) {
	ca := catest.New(t, "root")
	c := config(ca.Serve())
	c.Headers = map[string]string{"ClusterID": "Kubernetes", "x-tenant": "a"}
	c.Signer, c.Lifetime = "tenants", time.Hour
	m := newManager(t, c)
	if _, err := m.Get(Workload); err == nil || !strings.Contains(err.Error(), "ca.test:15012") {
		t.Errorf("before: %v", err)
	}
	start(t, m)
	secret := await(t, m, Workload, "a certificate", there)
	roots := await(t, m, Roots, "its root", there)
	if string(roots.Roots) != ca.Root() {
		t.Errorf("roots %q, want the CA's", roots.Roots)
	}
	if _, err := credential.Pair(secret.Chain, secret.Key); err != nil {
		t.Error(err)
	}
	if got := bytes.Count(secret.Chain, []byte("BEGIN CERTIFICATE")); got != 2 {
		t.Errorf("the chain has %d certificates, want the workload's and the root", got)
	}
	requests := ca.Requests()
	if len(requests) != 1 {
		t.Fatalf("%d requests, want 1", len(requests))
	}
	r := requests[0]
	if got := r.Message.GetValidityDuration(); got != 3600 {
		t.Errorf("validity %d s, want 3600", got)
	}
	if got := r.Message.GetMetadata().GetFields()["CertSigner"].GetStringValue(); got != "tenants" {
		t.Errorf("CertSigner %q", got)
	}
	if r.Metadata.Get("clusterid")[0] != "Kubernetes" || r.Metadata.Get("x-tenant")[0] != "a" {
		t.Errorf("metadata %v", r.Metadata)
	}
}

// TestRefused: what a CA may answer that is of no use. Each is said in words that say what to do, and Envoy gets nothing.
func TestRefused(t *testing.T) {
	other := catest.New(t, "other")
	_, wrongKey := request(t)
	type sign = func(ca *catest.CA, csr string) ([]string, error)
	edited := func(edit func(*x509.Certificate)) sign {
		return func(ca *catest.CA, csr string) ([]string, error) {
			return []string{ca.Sign(csr, time.Hour, edit), ca.Root()}, nil
		}
	}
	cases := map[string]struct {
		sign sign
		want string
	}{
		"empty":           {func(*catest.CA, string) ([]string, error) { return nil, nil }, "an answer without a certificate and its root"},
		"one certificate": {func(ca *catest.CA, csr string) ([]string, error) { return []string{ca.Sign(csr, time.Hour, nil)}, nil }, "an answer without a certificate and its root"},
		"no PEM":          {func(ca *catest.CA, _ string) ([]string, error) { return []string{"hello", ca.Root()}, nil }, "private key does not match"},
		"another's key": {func(ca *catest.CA, _ string) ([]string, error) {
			return []string{ca.Sign(wrongKey, time.Hour, nil), ca.Root()}, nil
		}, "private key does not match public key"},
		"another's root": {func(ca *catest.CA, csr string) ([]string, error) {
			return []string{ca.Sign(csr, time.Hour, nil), other.Root()}, nil
		}, "not signed by the root at the end of its chain"},
		"a bad root": {func(ca *catest.CA, csr string) ([]string, error) {
			return []string{ca.Sign(csr, time.Hour, nil), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, nil
		}, "the chain: x509"},
		"another's id": {edited(func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/admin"}}
		}), `["spiffe://cluster.local/ns/shop/sa/admin"], this workload is ` + workload},
		"two ids": {edited(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), "this workload is " + workload},
		"no id":   {edited(func(c *x509.Certificate) { c.URIs = nil }), "this workload is " + workload},
		"expired": {edited(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotBefore.Add(-time.Hour), c.NotBefore }), "before this machine's clock"},
		"a clock ten minutes ahead": {edited(func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(10 * time.Minute)
		}), "10m0s ahead of this machine's clock: set the clock"},
		"Unauthenticated": {func(*catest.CA, string) ([]string, error) {
			return nil, status.Error(codes.Unauthenticated, "the token is for another audience")
		}, "the CA at ca.test:15012: Unauthenticated: the token is for another audience"},
		"too much": {func(ca *catest.CA, csr string) ([]string, error) {
			return []string{ca.Sign(csr, time.Hour, nil), strings.Repeat(ca.Root(), 3000)}, nil
		}, "larger than max"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ca := catest.New(t, "root")
			ca.Answer(func(_ context.Context, req *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
				return tc.sign(ca, req.GetCsr())
			})
			m := newManager(t, config(ca.Serve()))
			start(t, m)
			await(t, m, Workload, tc.want, func(_ Secret, err error) bool { return err != nil && strings.Contains(err.Error(), tc.want) })
			if _, err := m.Get(Roots); err == nil {
				t.Error("Envoy is given the root of a certificate that is of no use")
			}
			ca.Answer(nil)
			await(t, m, Workload, "a certificate, now that the CA is well", there)
		})
	}
}

// TestClockAhead: a certificate that begins a little after now is used.
func TestClockAhead(t *testing.T) {
	ca := catest.New(t, "root")
	ca.Answer(func(_ context.Context, req *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
		return []string{ca.Sign(req.GetCsr(), time.Hour, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(4 * time.Minute) }), ca.Root()}, nil
	})
	m := newManager(t, config(ca.Serve()))
	start(t, m)
	await(t, m, Workload, "a certificate", there)
}

// TestDown: a CA that nobody serves is named, with the reason.
func TestDown(t *testing.T) {
	m := newManager(t, config(func() (*grpc.ClientConn, error) {
		return grpc.NewClient("unix:///nobody", grpc.WithTransportCredentials(insecure.NewCredentials()))
	}))
	start(t, m)
	await(t, m, Workload, "why there is none", func(_ Secret, err error) bool {
		return err != nil && strings.HasPrefix(err.Error(), "the CA at ca.test:15012: Unavailable: ") && strings.Contains(err.Error(), "no such file")
	})
}

// TestSlow: a CA that does not answer is left after a while, by its name.
func TestSlow(t *testing.T) {
	ca := catest.New(t, "root")
	ca.Answer(func(ctx context.Context, _ *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	a := &authority{address: "ca.test:15012", connect: ca.Serve(), timeout: 50 * time.Millisecond}
	_, csr := request(t)
	if _, err := a.sign(t.Context(), []byte(csr)); err == nil || !strings.HasPrefix(err.Error(), "the CA at ca.test:15012: DeadlineExceeded: ") {
		t.Errorf("%v, want that the CA is late", err)
	}
}

// TestEnd: the end waits for nobody, not for a CA that does not answer either.
func TestEnd(t *testing.T) {
	ca := catest.New(t, "root")
	asked := make(chan struct{})
	ca.Answer(func(ctx context.Context, _ *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	m := newManager(t, config(ca.Serve()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	<-asked
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestKeysAreSecret: neither the log nor anything that is printed has a private key.
func TestKeysAreSecret(t *testing.T) {
	var log syncBuffer
	ca := catest.New(t, "root")
	c := config(ca.Serve())
	c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	m := newManager(t, c)
	start(t, m)
	secret := await(t, m, Workload, "a certificate", there)
	kept := m.newest()
	key, _ := request(t)
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(handler).Info("all", "secret", secret, "credential", kept, "key", key)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb+verb+verb, secret, kept, key)
	}
	said := log.String()
	block, _ := pem.Decode(secret.Key)
	for _, form := range []string{"PRIVATE", string(secret.Key[40:60]), fmt.Sprint(secret.Key[40:50])[1:20], fmt.Sprintf("%x", secret.Key[40:50]), fmt.Sprintf("%x", block.Bytes[10:20]), base64.StdEncoding.EncodeToString(secret.Key[39:60])} {
		if strings.Contains(said, form) {
			t.Errorf("a key is in the log: %q in\n%s", form, said)
		}
	}
	if !strings.Contains(said, "the workload has a certificate") {
		t.Errorf("the log lacks the certificate:\n%s", said)
	}
}

// syncBuffer is a log that many write to.
type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// request is a key, and a request to certify it.
func request(t *testing.T) (*credential.Key, string) {
	t.Helper()
	key, err := credential.NewKey(credential.Kind{Curve: "P256"})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.Request(workload)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(csr)
}
