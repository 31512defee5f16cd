package standin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAPI(t *testing.T) {
	a := New()
	a.Put("/api/v1/namespaces/shop", `{"metadata":{"name":"shop"}}`)
	a.Put("/apis/understudy.mesh/v1alpha1/namespaces/shop/sidecarprofiles/default", `{"metadata":{"name":"default"}}`)
	const profiles = `{"kind":"SidecarProfileList","apiVersion":"understudy.mesh/v1alpha1","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"default"}}]}`
	for _, tt := range []struct {
		method, path, kind, body string
		status                   int
		want                     string
	}{
		{"GET", "/api/v1/namespaces/shop", "", "", 200, `{"metadata":{"name":"shop"}}`},
		{"GET", "/api/v1/namespaces", "", "", 200, `{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"shop"}}]}`},
		{"GET", "/api/v1/namespaces/other", "", "", 404, "NotFound"},
		{"GET", "/apis/understudy.mesh/v1alpha1/sidecarprofiles", "", "", 200, profiles},
		{"GET", "/apis/understudy.mesh/v1alpha1/namespaces/shop/sidecarprofiles", "", "", 200, profiles},
		{"GET", "/apis/understudy.mesh/v1alpha1/namespaces/other/sidecarprofiles", "", "", 200, `"items":[]`},
		{"POST", "/api/v1/namespaces/shop/secrets", "application/json", `{"metadata":{"name":"s"}}`, 201, `"s"`},
		{"GET", "/api/v1/namespaces/shop/secrets/s", "", "", 200, `"s"`},
		{"GET", "/api/v1/namespaces/shop/secrets", "", "", 200, `"items":[]`},
		{"PATCH", "/api/v1/namespaces/shop", "application/apply-patch+yaml", `{`, 400, "JSON"},
		{"POST", "/api/v1/namespaces/shop/leases", "application/vnd.kubernetes.protobuf", "k8s", 200, "k8s"},
		{"POST", "/apis/authentication.k8s.io/v1/tokenreviews", "application/json", "{}", 201, `"authenticated":true`},
	} {
		r := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
		r.Header.Set("Content-Type", tt.kind)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
			t.Errorf("%s %s: %d: %s, want %d: %s", tt.method, tt.path, w.Code, w.Body, tt.status, tt.want)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/api/v1/namespaces", nil)
	r.Header.Set("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
	w := httptest.NewRecorder()
	if a.ServeHTTP(w, r); !strings.HasPrefix(w.Body.String(), `{"kind":"PartialObjectMetadataList"`) {
		t.Error(w.Body)
	}
}
