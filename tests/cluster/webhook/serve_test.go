package webhook

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// condition waits for a condition of a namespace's profile.
func (w *world) condition(t *testing.T, namespace, kind, status, message string) {
	t.Helper()
	lab.Eventually(t, limit, fmt.Sprintf("%s of %s is %s", kind, namespace, status), func() error {
		text, err := w.TryKubectl("", "get", "sidecarprofile", "default", "-n", namespace, "-o", "json")
		if err != nil {
			return err
		}
		var p struct {
			Status struct{ Conditions []metav1.Condition }
		}
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == kind && string(c.Status) == status && strings.Contains(c.Message, message) {
				return nil
			}
		}
		return fmt.Errorf("%+v", p.Status.Conditions)
	})
}

// ask asks an injector about a pod as the API server does.
func (i *injector) ask(namespace, object string) (*admissionv1.AdmissionResponse, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	body := fmt.Sprintf(`{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": "1", "operation": "CREATE",
"resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": %q, "object": %s}}`, namespace, object)
	response, err := client.Post("https://"+i.address+"/inject", "application/json", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(response.Body).Decode(&review); err != nil || review.Response == nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	return review.Response, nil
}

const smallPod = `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "app", "image": "app"}]}}`

// TestWebhookSettings: what is wrong with a profile is in its conditions and changes nothing, another injector's claim is respected,
// who deletes the configuration has switched the injector off, and without an API server pods are judged by what is known.
func TestWebhookSettings(t *testing.T) {
	w := newWorld(t)
	program, port := buildInjector(t), freeport.Get(t)
	i := w.start(t, program, port, "--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port), "--linger", "0s")
	w.configuration(t, 4)
	enabled := w.namespace(t, "istio-injection=enabled")
	w.mended(t, enabled, "the first pod")
	w.condition(t, own, "Accepted", "True", "")
	w.condition(t, own, "InForce", "True", "")
	w.condition(t, own, "Conflict", "False", "")

	w.settings(t, `{"proxy": {"image": "proxy:v1", "config": "nonsense: 1"}}`)
	w.condition(t, own, "Accepted", "False", "nonsense")
	w.condition(t, own, "InForce", "False", "is in force")
	w.mended(t, enabled, "with bad settings the last good ones stay")
	w.settings(t, `{"proxy": {"image": "proxy:v1"}, "injector": {"replicaCount": 3}}`)
	w.condition(t, own, "NotApplied", "True", "manage: true")
	w.settings(t, `{"proxy": {"image": "proxy:v1"}, "injector": {"replicaCount": 3, "manage": true}}`)
	lab.Eventually(t, limit, "the Deployment has three replicas", func() error {
		d, err := w.client.AppsV1().Deployments(own).Get(t.Context(), "sidecar-injector", metav1.GetOptions{})
		if err == nil && *d.Spec.Replicas != 3 {
			err = fmt.Errorf("it has %d", *d.Spec.Replicas)
		}
		return err
	})

	claim := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "namespace.sidecar-injector.istio.io", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionregistrationv1.SideEffectClassNone),
			FailurePolicy: new(admissionregistrationv1.Ignore), ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: new("https://127.0.0.1:1/inject")},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{"CREATE"},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	configurations := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := configurations.Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.condition(t, own, "Conflict", "True", "istio-sidecar-injector")
	w.configuration(t, 2)
	if err := configurations.Delete(t.Context(), claim.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.configuration(t, 4)
	w.condition(t, own, "Conflict", "False", "")

	w.Down()
	if response, err := i.ask(enabled, smallPod); err != nil || !response.Allowed || response.Patch == nil {
		t.Errorf("without an API server: %+v, %v", response, err)
	}
	if err := i.look("/readyz"); err != nil {
		t.Errorf("without an API server: %v", err)
	}
	w.Up(t)

	if err := configurations.Delete(t.Context(), "sidecar-injector", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	i.says(t, "cannot create resource", 1)
	lab.Eventually(t, limit, "no pod is injected without the configuration", func() error {
		if injected, err := w.create(enabled, pod()); err != nil || injected {
			return errors.Join(errors.New("it is injected"), err)
		}
		return nil
	})
}
