package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	kjson "sigs.k8s.io/json"
)

// review is one about a pod, as the API server writes it, changed by replacements.
func reviewOf(replace ...string) string {
	return strings.NewReplacer(replace...).Replace(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1",
"resource":{"group":"","version":"v1","resource":"pods"},"namespace":"shop","operation":"CREATE","object":{"kind":"Pod","metadata":{"name":"a"}}}}`)
}

func quietHandler(m Mutator) (http.Handler, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	return NewHandler(m, NewMetrics(registry), slog.New(slog.DiscardHandler)), registry
}

// ask sends a body and returns status and answer, which has to be a review.
func ask(t *testing.T, h http.Handler, path, contentType, body string) (int, *admissionv1.AdmissionReview) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	answer := &admissionv1.AdmissionReview{}
	if err := json.Unmarshal(w.Body.Bytes(), answer); err != nil || answer.Kind != "AdmissionReview" || answer.Response == nil {
		t.Fatalf("the answer is no AdmissionReview: %v: %s", err, w.Body)
	}
	return w.Code, answer
}

func TestAnswer(t *testing.T) {
	var asked Request
	h, _ := quietHandler(func(_ context.Context, r Request) (Result, error) {
		asked = r
		return Result{Patch: []byte(`[{"op":"test"}]`), Warnings: []string{"careful"}}, nil
	})
	for _, version := range []string{"v1", "v1beta1"} {
		status, answer := ask(t, h, "/inject/cluster/one/net/two", "application/json; charset=utf-8", reviewOf("io/v1", "io/"+version))
		form := admissionv1.PatchTypeJSONPatch
		want := &admissionv1.AdmissionResponse{UID: "u-1", Allowed: true, Patch: []byte(`[{"op":"test"}]`), PatchType: &form, Warnings: []string{"careful"}}
		if diff := cmp.Diff(want, answer.Response); status != http.StatusOK || answer.APIVersion != "admission.k8s.io/"+version || diff != "" {
			t.Errorf("%s: status %d, %s\n%s", version, status, answer.APIVersion, diff)
		}
	}
	if want := (Request{Namespace: "shop", Path: "cluster/one/net/two", Pod: []byte(`{"kind":"Pod","metadata":{"name":"a"}}`)}); !cmp.Equal(want, asked) {
		t.Errorf("asked %+v, want %+v", asked, want)
	}
}

// TestBadQuestions: whatever comes, the answer is a review that says what was wrong.
func TestBadQuestions(t *testing.T) {
	h, registry := quietHandler(func(_ context.Context, r Request) (Result, error) {
		switch {
		case bytes.Contains(r.Pod, []byte("panic")):
			panic("oh")
		case bytes.Contains(r.Pod, []byte("refuse")):
			return Result{}, errors.New("annotation x: want y")
		}
		return Result{Rule: "policy-off"}, nil
	})
	const json = "application/json"
	tests := []struct {
		name, contentType, body string
		status                  int
		reason, uid             string
	}{
		{"content type", "text/plain", reviewOf(), 415, "want application/json", ""},
		{"no content type", "", reviewOf(), 415, "want application/json", ""},
		{"empty", json, "", 400, "has no body", ""},
		{"not JSON", json, "{", 400, "not JSON", ""},
		{"an array", json, "[]", 400, "not JSON", ""},
		{"not UTF-8", json, reviewOf("shop", "\xff"), 400, "not UTF-8", ""},
		{"too large", json, reviewOf("shop", strings.Repeat("x", maxBody)), 413, "more than 6291456 bytes", ""},
		{"another kind", json, reviewOf(`"AdmissionReview"`, `"Pod"`), 400, "want an AdmissionReview", "u-1"},
		{"another version", json, reviewOf("io/v1", "io/v2"), 400, "want an AdmissionReview", "u-1"},
		{"no request", json, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`, 400, "has no request", ""},
		{"not a pod", json, reviewOf(`"pods"`, `"deployments"`), 200, "asked about deployments", "u-1"},
		{"a subresource", json, reviewOf(`"namespace"`, `"subResource":"status","namespace"`), 200, "asked about pods/status", "u-1"},
		{"an update", json, reviewOf("CREATE", "UPDATE"), 200, "operation UPDATE", "u-1"},
		{"no object", json, reviewOf(`"object":{"kind":"Pod","metadata":{"name":"a"}}`, `"object":null`), 200, "no object", "u-1"},
		{"refused", json, reviewOf(`"a"`, `"refuse"`), 200, "annotation x: want y", "u-1"},
		{"panic", json, reviewOf(`"a"`, `"panic"`), 200, "its fault", "u-1"},
	}
	for _, tt := range tests {
		status, answer := ask(t, h, Path, tt.contentType, tt.body)
		r := answer.Response
		if status != tt.status || r.Allowed || r.Result == nil || !strings.Contains(r.Result.Message, tt.reason) || string(r.UID) != tt.uid {
			t.Errorf("%s: status %d, %+v; want %d, %q", tt.name, status, r, tt.status, tt.reason)
		}
	}
	ask(t, h, Path, json, reviewOf())
	counts := gather(t, registry)
	want := map[string]float64{"sidecar_injection_requests_total": float64(len(tests) + 1), "sidecar_injection_success_total": 0,
		"sidecar_injection_failure_total": float64(len(tests)), "sidecar_injection_skip_total policy-off": 1, "sidecar_injection_time_seconds": float64(len(tests) + 1)}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Error(diff)
	}
}

// gather is what the metrics say, by name and label.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			counts[name] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return counts
}

// FuzzReview holds that every answer is a review, and that a question is what a decoder makes of the whole text.
func FuzzReview(f *testing.F) {
	f.Add(reviewOf())
	f.Add("{")
	f.Add(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"object":{}}}`)
	f.Add(reviewOf(`"object"`, `"oldObject":null,"userInfo":{"extra":{"a":["b"]}},"options":{"a":1},"new":[{}],"Object":1,"object"`))
	f.Add(reviewOf(`"object":{`, `"object":null,"object":{`))
	f.Add(reviewOf(`}}}}`, `}}},"request":null}`))
	f.Add(reviewOf(`"shop"`, `1`))
	f.Add(reviewOf(`"uid"`, `"\u0075id"`))
	h, _ := quietHandler(func(context.Context, Request) (Result, error) { return Result{Rule: "none"}, nil })
	f.Fuzz(func(t *testing.T, body string) {
		ask(t, h, Path, "application/json", body)
		question, err := parse([]byte(body))
		var whole review
		wantErr := kjson.UnmarshalCaseSensitivePreserveInts([]byte(body), &whole)
		if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Fatalf("%v, want %v", err, wantErr)
		}
		whole.Response = nil // nobody reads it
		for _, r := range []*review{&question, &whole} {
			if r.Request != nil && string(r.Request.Object.Raw) == "null" { // no object either
				r.Request.Object.Raw = nil
			}
		}
		if diff := cmp.Diff(whole, question); err == nil && diff != "" {
			t.Fatal(diff)
		}
	})
}
