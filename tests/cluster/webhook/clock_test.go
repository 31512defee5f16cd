package webhook

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// authority is the data of the injector's Secret with an authority that is valid for some time.
func authority(t *testing.T, from, to time.Time) map[string][]byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(from.Unix()), Subject: pkix.Name{CommonName: "from " + from.Format(time.RFC3339)},
		NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"ca.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
}

// trusted is an error unless the Secret has an authority that is valid now, and every entry of the configuration trusts it.
func (w *world) trusted(t *testing.T) error {
	secret, err := w.client.CoreV1().Secrets(own).Get(t.Context(), "sidecar-injector-ca", metav1.GetOptions{})
	if err != nil {
		return err
	}
	block, _ := pem.Decode(secret.Data["ca.crt"])
	if block == nil {
		return fmt.Errorf("ca.crt is %q", secret.Data["ca.crt"])
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if now := time.Now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("the authority is valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	c, err := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "sidecar-injector", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if len(c.Webhooks) == 0 {
		return errors.New("the configuration has no entries")
	}
	for _, entry := range c.Webhooks {
		if !bytes.Contains(entry.ClientConfig.CABundle, bytes.TrimSpace(secret.Data["ca.crt"])) {
			return fmt.Errorf("%s does not trust it", entry.Name)
		}
	}
	return nil
}

// brokenSecret is what the Secret of the authority may have that serves nobody.
type brokenSecret struct {
	what string
	data map[string][]byte
}

// TestWebhookClock: neither a clock that jumps nor what is wrong with the Secret of the authority keeps pods from being created for long.
// What a clock that has jumped leaves behind is an authority that is over, or is not valid yet.
func TestWebhookClock(t *testing.T) {
	w := newWorld(t)
	program, port := buildInjector(t), freeport.Get(t)
	arguments := []string{"--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port), "--linger", "0s"}
	const life = 8 * time.Second
	i := w.start(t, program, port, append(arguments, "--ca-life", life.String(), "--leaf-life", (life/2).String(), "--ca-settle", "1s")...)
	w.configuration(t, 4)
	enabled := w.namespace(t, "istio-injection=enabled")
	w.mended(t, enabled, "the first pod")
	// The promise is 30 s; the machine may stand still besides.
	mended := func(what string, since time.Time) {
		t.Helper()
		lab.Eventually(t, limit, what+": there is an authority that is trusted", func() error { return w.trusted(t) })
		w.mended(t, enabled, what)
		t.Logf("%s: all is well after %s", what, time.Since(since).Round(100*time.Millisecond))
	}

	// As on a machine that was suspended: for the injector time has jumped, and all that it had has ended.
	if err := i.process.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	over := time.After(life + time.Second)
	if _, err := w.once(enabled, pod()); !unanswered(err) {
		t.Errorf("with an injector that hangs: %v", err)
	}
	<-over
	since := time.Now()
	if err := i.process.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	mended("suspended for longer than authority and certificate last", since)
	_ = i.stop(syscall.SIGTERM)

	since = time.Now()
	i = w.start(t, program, port, arguments...)
	mended("started again", since)
	now, year := time.Now(), 365*24*time.Hour
	secrets := w.client.CoreV1().Secrets(own)
	broken := []brokenSecret{
		{"an authority that is over", authority(t, now.Add(-2*year), now.Add(-year))},
		{"an authority of the future", authority(t, now.Add(year), now.Add(2*year))},
		{"an authority of an earlier backup", authority(t, now.Add(-time.Hour), now.Add(year))},
		{"half an authority", map[string][]byte{"ca.crt": authority(t, now.Add(-time.Hour), now.Add(year))["ca.crt"]}},
		{"no PEM", map[string][]byte{"ca.crt": []byte("x"), "ca.key": []byte("y")}},
		{"nothing in the Secret", nil},
	}
	for _, b := range broken {
		lab.Eventually(t, limit, "the Secret has "+b.what, func() error { // the injector may write it at the same time
			secret, err := secrets.Get(t.Context(), "sidecar-injector-ca", metav1.GetOptions{})
			if err != nil {
				return err
			}
			secret.Data = b.data
			_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
			return err
		})
		mended(b.what, time.Now())
	}
	// Nobody lives who knew a better one. Who comes has to wait for the end of the lease.
	for _, b := range []brokenSecret{broken[0], broken[4]} {
		_ = i.stop(syscall.SIGKILL)
		if err := secrets.Delete(t.Context(), "sidecar-injector-ca", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sidecar-injector-ca"}, Data: b.data}
		if _, err := secrets.Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		since = time.Now()
		i = w.start(t, program, port, arguments...)
		mended("after a start: "+b.what, since)
	}
}
