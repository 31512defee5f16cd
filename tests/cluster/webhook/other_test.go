package webhook

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/contract"
)

// otherLabel is of namespaces whose pods the other webhook changes.
const otherLabel = "example.com/other"

// startOther starts a webhook of somebody else's, which the API server asks after ours, and returns how often it has changed a pod.
func (w *world) startOther(t *testing.T) *atomic.Int64 {
	t.Helper()
	changed := new(atomic.Int64)
	server := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		var p corev1.Pod
		err := json.NewDecoder(r.Body).Decode(&review)
		if err == nil {
			err = json.Unmarshal(review.Request.Object.Raw, &p)
		}
		if err != nil {
			http.Error(out, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if patch := late(&p); patch != nil {
			changed.Add(1)
			review.Response.Patch, review.Response.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
		}
		review.Request = nil
		_ = json.NewEncoder(out).Encode(review)
	}))
	t.Cleanup(server.Close)
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "zz-other"}, // they are asked in the order of their names
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "late.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionregistrationv1.SideEffectClassNone),
			ClientConfig:      admissionregistrationv1.WebhookClientConfig{URL: new(server.URL), CABundle: bundle},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{otherLabel: "yes"}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{"CREATE"},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	if _, err := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), configuration, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return changed
}

// late is the patch that adds a container with a port and a probe, and gives the proxy a variable and less CPU; nil if the pod has it.
func late(p *corev1.Pod) []byte {
	if slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == "late" }) {
		return nil
	}
	ops := []map[string]any{{"op": "add", "path": "/spec/containers/-", "value": map[string]any{
		"name": "late", "image": "late", "ports": []any{map[string]any{"containerPort": 9000}},
		"readinessProbe": map[string]any{"httpGet": map[string]any{"path": "/ready", "port": 9000}},
	}}}
	for field, containers := range map[string][]corev1.Container{"containers": p.Spec.Containers, "initContainers": p.Spec.InitContainers} {
		for i, c := range containers {
			if c.Name == contract.ProxyContainer {
				path := fmt.Sprintf("/spec/%s/%d", field, i)
				ops = append(ops, map[string]any{"op": "add", "path": path + "/env/-", "value": map[string]string{"name": "SECOND", "value": "1"}},
					map[string]any{"op": "replace", "path": path + "/resources/limits/cpu", "value": "500m"})
			}
		}
	}
	text, err := json.Marshal(ops)
	if err != nil {
		panic(err) // of constants
	}
	return text
}

// count is a counter of an injector's.
func (i *injector) count(t *testing.T, name string) int {
	t.Helper()
	text, err := i.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (\d+)$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in the metrics", name)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
