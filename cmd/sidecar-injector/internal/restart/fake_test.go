package restart

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
)

// object is one of Kubernetes'.
type object = map[string]any

// fake is an API server with objects by their paths. A test is the controllers: it is told of patches and evictions.
type fake struct {
	mu       sync.Mutex
	objects  map[string]object
	patched  func(path string, o object)
	evict    func(pod string) (status int)
	requests []string // those that write
	refuse   int      // the status of the next reads
	now      time.Time
}

func newFake() *fake {
	return &fake{objects: map[string]object{}, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// cluster is the way to it.
func (f *fake) cluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"clusters": [{"name": "c", "cluster": {"server": %q}}], "users": [{"name": "u", "user": {}}]}`, server.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put adds an object, written as YAML's flow style allows: JSON.
func (f *fake) put(path, text string) object {
	var o object
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(fmt.Sprintf("%v: %s", err, text))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[path] = o
	return o
}

func (f *fake) wrote() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Date", f.now.Format(http.TimeFormat))
	body, _ := io.ReadAll(r.Body)
	switch o := f.objects[r.URL.Path]; {
	case r.Method == http.MethodPost:
		pod, ok := strings.CutSuffix(r.URL.Path, "/eviction")
		f.requests = append(f.requests, "evict "+filepath.Base(pod))
		status := http.StatusNotFound
		if ok && f.objects[pod] != nil {
			status = f.evict(pod)
		}
		answer(w, status)
	case r.Method == http.MethodPatch && o != nil:
		f.requests = append(f.requests, "patch "+filepath.Base(r.URL.Path))
		var fields object
		_ = json.Unmarshal(body, &fields)
		merge(o, fields)
		f.patched(r.URL.Path, o)
		_ = json.NewEncoder(w).Encode(o)
	case f.refuse > 0:
		answer(w, f.refuse)
	case o != nil:
		_ = json.NewEncoder(w).Encode(o)
	case strings.Contains(r.URL.Path, "/namespaces/shop/") && strings.Count(r.URL.Path[strings.Index(r.URL.Path, "/shop/"):], "/") > 2:
		answer(w, http.StatusNotFound)
	default:
		items := []object{}
		for _, path := range slices.Sorted(maps.Keys(f.objects)) {
			if filepath.Dir(path) == r.URL.Path {
				items = append(items, f.objects[path])
			}
		}
		_ = json.NewEncoder(w).Encode(object{"items": items})
	}
}

func answer(w http.ResponseWriter, status int) {
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1") // as API servers have it for evictions
	}
	w.WriteHeader(status)
	reason := map[int]string{http.StatusTooManyRequests: "TooManyRequests", http.StatusNotFound: "NotFound", http.StatusForbidden: "Forbidden"}[status]
	_ = json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason, "message": http.StatusText(status) + " says the fake"})
}

// merge is a merge patch (RFC 7396) without removals.
func merge(into, fields object) {
	for key, value := range fields {
		if below, ok := value.(object); ok {
			if _, is := into[key].(object); !is {
				into[key] = object{}
			}
			merge(into[key].(object), below)
			continue
		}
		into[key] = value
	}
}
