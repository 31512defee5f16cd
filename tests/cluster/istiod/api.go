package istiod

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
)

// api stands in for Kubernetes' API server, without which istiod ends at its start also when its configuration is in files. It has
// nothing but what istiod writes itself (its authority, its leases), and takes every token for that of the lab's pod.
type api struct {
	mu      sync.Mutex
	objects map[string]json.RawMessage // by path
}

// review is the answer to the review of any token.
const review = `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{"authenticated":true,"audiences":["istio-ca"],"user":{` +
	`"username":"system:serviceaccount:default:default","groups":["system:serviceaccounts","system:authenticated"]}}}`

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/tokenreviews"):
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, review)
	case r.URL.Path == "/version":
		_, _ = io.WriteString(w, `{"major":"1","minor":"37","gitVersion":"v1.37.0"}`)
	case query.Get("watch") != "": // nothing ever changes
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case r.Method == http.MethodGet:
		a.get(w, r)
	default:
		a.put(w, r)
	}
}

func (a *api) get(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	object, is := a.objects[r.URL.Path]
	a.mu.Unlock()
	switch {
	case is:
		_, _ = w.Write(object)
	case namesObject(r.URL.Path):
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	case strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList"):
		_, _ = io.WriteString(w, `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[]}`)
	default: // the client knows which kind of list it asks for
		_, _ = io.WriteString(w, `{"metadata":{"resourceVersion":"1"},"items":[]}`)
	}
}

// namesObject says whether a path is of one object, not of a collection: /api/v1/... or /apis/GROUP/VERSION/..., with
// namespaces/NAMESPACE before the collection or without.
func namesObject(path string) bool {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	start := 2
	if parts[0] == "apis" {
		start = 3
	}
	if len(parts) > start+2 && parts[start] == "namespaces" {
		start += 2
	}
	return len(parts) > start+1
}

// put keeps an object as it is.
func (a *api) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var object struct {
		Metadata struct{ Name string }
	}
	if err == nil {
		err = json.Unmarshal(body, &object)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := r.URL.Path
	status := http.StatusOK
	if r.Method == http.MethodPost {
		path, status = path+"/"+object.Metadata.Name, http.StatusCreated
	}
	a.mu.Lock()
	a.objects[path] = body
	a.mu.Unlock()
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// secret is a value of a Secret that istiod has written; nil: it has not.
func (a *api) secret(name, key string) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	var secret struct{ Data map[string][]byte }
	if json.Unmarshal(a.objects["/api/v1/namespaces/"+namespace+"/secrets/"+name], &secret) != nil {
		return nil
	}
	return secret.Data[key]
}
