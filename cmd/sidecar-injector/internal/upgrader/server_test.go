package upgrader

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/contract"
)

const (
	oldImage, newImage, emptyImage = "proxy:v1", "proxy:v2", "empty:v1"
	apiPods                        = "/api/v1/namespaces/shop/pods"
	apiUpgrades                    = "/apis/understudy.mesh/v1alpha1/namespaces/shop/sidecarupgrades"
	apiLeases                      = "/apis/coordination.k8s.io/v1/namespaces/shop/leases"
	apiBudgets                     = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets"
)

// world plays an API server, the kubelets and the agents of some pods, by connections in memory: so a test has a clock of its own
// (testing/synctest), and waits for nothing.
type world struct {
	t           *testing.T
	connections chan net.Conn
	closed      chan struct{}

	mu       sync.Mutex
	version  int
	pods     map[string]*corev1.Pod
	upgrade  *rollout.SidecarUpgrade
	lease    json.RawMessage
	events   []string
	watchers map[string]map[chan []byte]bool // by path
	requests int
	// fault is what is to become of a request; nil: nothing. It reports whether the request was answered, or is not to be.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// mute lets the next write have its effect and no answer.
	mute bool
}

// inWorld runs a test in a world of n pods.
func inWorld(t *testing.T, n int, test func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newWorld(t, n)) })
}

func newWorld(t *testing.T, n int) *world {
	t.Helper()
	w := &world{
		t: t, connections: make(chan net.Conn), closed: make(chan struct{}), pods: map[string]*corev1.Pod{}, watchers: map[string]map[chan []byte]bool{},
	}
	server := &http.Server{Handler: http.HandlerFunc(w.serve)}
	go func() { _ = server.Serve(w) }()
	t.Cleanup(func() { _ = server.Close() })
	for i := range n {
		w.store(newPod(i + 1))
	}
	none := metav1.Duration{}
	w.upgrade = &rollout.SidecarUpgrade{Spec: rollout.Spec{Image: newImage, Bake: &none, Soak: &none, Observe: &metav1.Duration{Duration: time.Millisecond}}}
	w.upgrade.APIVersion, w.upgrade.Kind = "understudy.mesh/v1alpha1", rollout.Kind
	w.upgrade.ObjectMeta = metav1.ObjectMeta{Name: "default", Namespace: "shop", UID: "u", Generation: 1, ResourceVersion: "1"}
	return w
}

// dial connects with the API server, or with an agent: requests say with which.
func (w *world) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case w.connections <- there:
		return here, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Accept is the listener's of the world's server.
func (w *world) Accept() (net.Conn, error) {
	select {
	case c := <-w.connections:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Close ends the listener.
func (w *world) Close() error {
	close(w.closed)
	return nil
}

// Addr is nobody's.
func (w *world) Addr() net.Addr { return &net.UnixAddr{Name: "world"} }

// upgrader is an engine's in the world.
func (w *world) upgrader(identity string) *Upgrader {
	w.t.Helper()
	u, err := New(&rest.Config{Host: "http://world", Dial: w.dial}, identity, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	u.dial = w.dial
	return u
}

// newPod is one at the address 127.0.1.n.
func newPod(n int) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", n), Namespace: "shop", UID: types.UID(strconv.Itoa(n)), Annotations: map[string]string{
			contract.VersionAnnotation + contract.ProxyContainer: "1", contract.VersionAltAnnotation + contract.ProxyContainer: "0",
			contract.VersionAnnotation + contract.SecondContainer: "0", contract.VersionAltAnnotation + contract.SecondContainer: "1",
		}},
		Status: corev1.PodStatus{PodIP: fmt.Sprintf("127.0.1.%d", n), Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for name, image := range map[string]string{contract.ProxyContainer: oldImage, contract.SecondContainer: emptyImage} {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name, Image: image})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: name, Ready: true, Started: new(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})
	}
	return p
}

// store keeps a state of a pod, and tells who watches.
func (w *world) store(p *corev1.Pod) {
	w.version++
	p.ResourceVersion = strconv.Itoa(w.version)
	w.pods[p.Name] = p
	w.tell(apiPods, p)
}

func (w *world) tell(path string, object any) {
	text, _ := json.Marshal(map[string]any{"type": "MODIFIED", "object": object})
	for c := range w.watchers[path] {
		c <- text
	}
}

func (w *world) serve(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	fault := w.fault
	w.requests++
	w.mu.Unlock()
	if fault != nil && fault(out, r) {
		return
	}
	out.Header().Set("Content-Type", "application/json")
	switch path := r.URL.Path; {
	case path == contract.UpgradePath:
		w.agent(out, r)
	case r.URL.Query().Get("watch") != "" && r.URL.Query().Get("sendInitialEvents") != "":
		refuse(out, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case r.URL.Query().Get("watch") != "":
		w.watch(out, r)
	case r.Method == http.MethodGet && path != apiLeases+"/"+leaseName:
		w.list(out, path, r.URL.Query().Get("continue"))
	case strings.HasPrefix(path, apiPods+"/"):
		w.patch(out, r, strings.TrimPrefix(path, apiPods+"/"))
	case path == apiUpgrades+"/default/status":
		w.status(out, r)
	case strings.HasPrefix(path, apiLeases):
		w.leases(out, r)
	case strings.HasSuffix(path, "/events"):
		text, _ := io.ReadAll(r.Body)
		object, _, _ := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil)
		e, ok := object.(*corev1.Event)
		if !ok {
			w.t.Errorf("%s", text)
			return
		}
		w.mu.Lock()
		w.events = append(w.events, e.Reason+": "+e.Message)
		w.mu.Unlock()
		fmt.Fprint(out, `{"kind": "Event", "apiVersion": "v1"}`)
	default:
		w.t.Errorf("%s %s", r.Method, path)
	}
}

func refuse(out http.ResponseWriter, code int, reason metav1.StatusReason) {
	out.Header().Set("Content-Type", "application/json")
	out.WriteHeader(code)
	fmt.Fprintf(out, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d}`, reason, code)
}

// agent answers as the agent of the pod that was asked.
func (w *world) agent(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pods {
		if strings.HasPrefix(r.Host, p.Status.PodIP+":") {
			version := max(p.Annotations[contract.VersionAnnotation+contract.ProxyContainer], p.Annotations[contract.VersionAnnotation+contract.SecondContainer])
			fmt.Fprintf(out, `{"handoffDir": "/etc/asm/uds", "generations": [{"role": "serving", "sidecarSetVersion": %q}]}`, version)
			return
		}
	}
	http.NotFound(out, r)
}

// list lists a kind; of pods there is one on a page, after the one that is named.
func (w *world) list(out http.ResponseWriter, path, after string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	items, kind, api, next := []any{}, "PodList", "v1", ""
	switch path {
	case apiPods:
		names := slices.Sorted(maps.Keys(w.pods))
		names = slices.DeleteFunc(names, func(name string) bool { return name <= after })
		if len(names) > 0 {
			items = append(items, w.pods[names[0]])
		}
		if len(names) > 1 {
			next = names[0]
		}
	case apiUpgrades:
		items, kind, api = append(items, w.upgrade), "SidecarUpgradeList", "understudy.mesh/v1alpha1"
	case apiBudgets:
		kind, api = "PodDisruptionBudgetList", "policy/v1"
	}
	_ = json.NewEncoder(out).Encode(map[string]any{"kind": kind, "apiVersion": api, "metadata": map[string]any{"resourceVersion": strconv.Itoa(w.version), "continue": next}, "items": items})
}

func (w *world) watch(out http.ResponseWriter, r *http.Request) {
	changes := make(chan []byte, 1000)
	w.mu.Lock()
	if w.watchers[r.URL.Path] == nil {
		w.watchers[r.URL.Path] = map[chan []byte]bool{}
	}
	w.watchers[r.URL.Path][changes] = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.watchers[r.URL.Path], changes)
		w.mu.Unlock()
	}()
	out.WriteHeader(http.StatusOK)
	for {
		out.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case text := <-changes:
			fmt.Fprintf(out, "%s\n", text)
		}
	}
}

// patch changes a pod, if nobody has since it was seen, and lets its kubelet do what that asks for.
func (w *world) patch(out http.ResponseWriter, r *http.Request, name string) {
	text, _ := io.ReadAll(r.Body)
	var sent struct {
		Metadata struct{ ResourceVersion string }
	}
	_ = json.Unmarshal(text, &sent)
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[name]
	if sent.Metadata.ResourceVersion != p.ResourceVersion {
		refuse(out, http.StatusConflict, metav1.StatusReasonConflict)
		return
	}
	before, _ := json.Marshal(p)
	merged, err := strategicpatch.StrategicMergePatch(before, text, &corev1.Pod{})
	after := new(corev1.Pod)
	if err != nil || json.Unmarshal(merged, after) != nil {
		w.t.Errorf("%s: %v", text, err)
	}
	for i, c := range after.Spec.Containers {
		if c.Image != p.Spec.Containers[i].Image {
			time.AfterFunc(20*time.Millisecond, func() { w.runs(name, c.Name) })
		}
	}
	w.store(after)
	if w.mute {
		w.mute = false
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(out).Encode(after)
}

// runs is that a kubelet has started what a slot is to run.
func (w *world) runs(name, slot string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[name].DeepCopy()
	for i := range p.Status.ContainerStatuses {
		if p.Status.ContainerStatuses[i].Name == slot {
			p.Status.ContainerStatuses[i].RestartCount++
		}
	}
	w.store(p)
}

func (w *world) status(out http.ResponseWriter, r *http.Request) {
	var operations []struct {
		Path  string
		Value json.RawMessage
	}
	_ = json.NewDecoder(r.Body).Decode(&operations)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(operations) > 0 && string(operations[0].Value) != strconv.Quote(w.upgrade.ResourceVersion) {
		refuse(out, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		return
	}
	after := *w.upgrade
	after.Status = rollout.Status{}
	if len(operations) != 2 || json.Unmarshal(operations[1].Value, &after.Status) != nil {
		w.t.Errorf("%+v", operations)
	}
	w.version++
	after.ResourceVersion = strconv.Itoa(w.version)
	w.upgrade = &after
	w.tell(apiUpgrades, w.upgrade)
	_ = json.NewEncoder(out).Encode(w.upgrade)
}

func (w *world) leases(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		if w.lease == nil {
			refuse(out, http.StatusNotFound, metav1.StatusReasonNotFound)
			return
		}
	default:
		text, _ := io.ReadAll(r.Body)
		lease, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil) // it comes as protobuf
		if err != nil {
			w.t.Errorf("%s: %v", text, err)
		}
		w.lease, _ = json.Marshal(lease)
	}
	_, _ = out.Write(w.lease)
}
