// Package standin owns a stand-in for Kubernetes' API server, for programs that end at their start without one, or need a few
// objects that never change. It has what it was given ([API.Put]) and keeps what is written to it; it checks nothing.
package standin

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
)

// API is the server's handler. It takes every token for that of the account default of the namespace default. It is made by New.
type API struct {
	mu      sync.Mutex
	objects map[string]json.RawMessage // by path
	listed  map[string]bool            // paths of those that lists have
}

// New returns one that has nothing.
func New() *API {
	return &API{objects: make(map[string]json.RawMessage), listed: make(map[string]bool)}
}

// Put gives it an object (JSON) by its path, such as /api/v1/namespaces/shop. Lists have it, unlike what clients write; whoever
// watches is not told.
func (a *API) Put(path, object string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.objects[path], a.listed[path] = json.RawMessage(object), true
}

// Object is what is at a path; nil if nothing is.
func (a *API) Object(path string) json.RawMessage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.objects[path]
}

// review is the answer to the review of any token.
const review = `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{"authenticated":true,"audiences":["istio-ca"],"user":{` +
	`"username":"system:serviceaccount:default:default","groups":["system:serviceaccounts","system:authenticated"]}}}`

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	case r.Method == http.MethodGet && !namesObject(r.URL.Path):
		_, _ = io.WriteString(w, a.list(r))
	case r.Method == http.MethodGet:
		object := a.Object(r.URL.Path)
		if object == nil {
			w.WriteHeader(http.StatusNotFound)
			object = json.RawMessage(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		}
		_, _ = w.Write(object)
	default:
		a.put(w, r)
	}
}

// kinds are those of lists that clients without types read, which want to be told; others know what they ask for.
var kinds = map[string]string{
	"nodes":                         `"kind":"NodeList","apiVersion":"v1",`,
	"secrets":                       `"kind":"SecretList","apiVersion":"v1",`,
	"sidecarprofiles":               `"kind":"SidecarProfileList","apiVersion":"understudy.mesh/v1alpha1",`,
	"mutatingwebhookconfigurations": `"kind":"MutatingWebhookConfigurationList","apiVersion":"admissionregistration.k8s.io/v1",`,
}

// list is the list that a request asks for.
func (a *API) list(r *http.Request) string {
	directory, resource := path.Split(strings.TrimSuffix(r.URL.Path, "/"))
	var items []string
	a.mu.Lock()
	for _, at := range slices.Sorted(maps.Keys(a.listed)) {
		parent, _ := path.Split(at)
		namespaced := strings.HasPrefix(at, directory+"namespaces/") && strings.HasSuffix(parent, "/"+resource+"/") // of any namespace
		if parent == r.URL.Path+"/" || namespaced {
			items = append(items, string(a.objects[at]))
		}
	}
	a.mu.Unlock()
	head := kinds[resource]
	if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList") {
		head = `"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1",`
	}
	return `{` + head + `"metadata":{"resourceVersion":"1"},"items":[` + strings.Join(items, ",") + `]}`
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

// put keeps an object as it is. One that is no JSON is taken, and forgotten.
func (a *API) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if kind := r.Header.Get("Content-Type"); err == nil && !strings.Contains(kind, "json") && !strings.Contains(kind, "yaml") {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(body)
		return
	}
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
