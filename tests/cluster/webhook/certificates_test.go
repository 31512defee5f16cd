package webhook

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// leads is what the replica logs that holds the Lease.
const leads = "this replica is the one that writes"

// said is how often a replica has logged what.
func (i *injector) said(t *testing.T, what string) int {
	t.Helper()
	text, err := os.ReadFile(i.log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), what)
}

// says waits for a line in a replica's log.
func (i *injector) says(t *testing.T, what string, times int) {
	t.Helper()
	lab.Eventually(t, limit, i.address+" logs "+what, func() error {
		if got := i.said(t, what); got < times {
			return fmt.Errorf("%d times, of %d", got, times)
		}
		return nil
	})
}

// mended waits until a pod is injected again, which has to be within the 30 s that are promised; the machine may stand still besides.
func (w *world) mended(t *testing.T, namespace, what string) {
	t.Helper()
	began := time.Now()
	lab.Eventually(t, limit, "mended: "+what, func() error {
		if injected, err := w.create(namespace, pod()); err != nil || !injected {
			return fmt.Errorf("injected: %v, %w", injected, err)
		}
		return nil
	})
	t.Logf("%s: mended within %s", what, time.Since(began).Round(100*time.Millisecond))
}

// TestWebhookCertificates: an authority is followed by the next, replicas come and go, the Secret is lost, and no pod is refused.
// What an API server cannot do without (caBundle) is back soon.
func TestWebhookCertificates(t *testing.T) {
	w := newWorld(t)
	program, service := buildInjector(t), fmt.Sprintf("127.0.0.1:%d", freeport.Get(t))
	arguments := []string{"--url", "https://" + service + "/inject", "--linger", "3s",
		"--ca-life", "36s", "--leaf-life", "12s", "--ca-settle", "2s"}
	first := w.start(t, program, freeport.Get(t), arguments...)
	first.says(t, leads, 1)
	second := w.start(t, program, freeport.Get(t), arguments...)
	third := w.start(t, program, freeport.Get(t), arguments...)
	balance(t, service, func() []*injector { return []*injector{first, second, third} })
	w.configuration(t, 4)
	enabled := w.namespace(t, "istio-injection=enabled")
	w.mended(t, enabled, "the first pod")

	l := w.load(enabled)
	first.says(t, "the next authority is made", 1)
	first.says(t, "the next authority signs", 1)
	second.says(t, "new certificate", 2)
	first.says(t, "the old authority goes", 1)
	if err := w.client.CoreV1().Secrets(own).Delete(t.Context(), "sidecar-injector-ca", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	first.says(t, "is written again", 1)
	if err := first.stop(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	var leader *injector
	lab.Eventually(t, limit, "another replica leads", func() error {
		for _, i := range []*injector{second, third} {
			if i.said(t, leads) > 0 {
				leader = i
				return nil
			}
		}
		return errors.New("none does")
	})
	l.stop(t)

	lost := []byte(`{"webhooks": [`)
	for n, entry := range w.configuration(t, 4).Webhooks {
		if n > 0 {
			lost = append(lost, ',')
		}
		lost = fmt.Appendf(lost, `{"name": %q, "clientConfig": {"caBundle": null}}`, entry.Name)
	}
	if _, err := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), "sidecar-injector",
		types.StrategicMergePatchType, append(lost, `]}`...), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.mended(t, enabled, "caBundle")
	// Whoever leads is gone without a word, and the Secret with it.
	_ = leader.stop(syscall.SIGKILL)
	if err := w.client.CoreV1().Secrets(own).Delete(t.Context(), "sidecar-injector-ca", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, limit, "the Secret is back", func() error {
		_, err := w.client.CoreV1().Secrets(own).Get(t.Context(), "sidecar-injector-ca", metav1.GetOptions{})
		return err
	})
	w.mended(t, enabled, "kill -9 and the Secret")
}
