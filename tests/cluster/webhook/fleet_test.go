package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// The images of a fleet. No agent of badImage comes up.
const (
	firstImage, secondImage, badImage, idleImage = "proxy:v1", "proxy:v2", "proxy:bad", "empty:v1"
)

// fleet is a namespace of pods with two slots that no node runs: the test plays their kubelets and agents, and holds what is done to them against
// what must never be. The upgrader is the program, which reaches the API server by a gate of the test's.
type fleet struct {
	*world
	t                  *testing.T
	gate               *gate
	program, namespace string
	port               uint16 // of the agents
	starts, drains     time.Duration

	mu         sync.Mutex
	pods       map[string]*fakePod // by name
	byIP       map[string]*fakePod
	flying     int
	mostFlying int
}

// fakePod is what a kubelet and the agents know of a pod.
type fakePod struct {
	name, ip string
	template *corev1.Pod // as it was made
	slots    map[string]*fakeSlot
	working  bool     // its kubelet is
	unready  int      // how often it became so
	switches []string // what became of its slots, in turn
}

// fakeSlot is a container with a generation in it, if its image is not the empty one.
type fakeSlot struct {
	image, version, role string
	restarts             int32
	broken               bool
	given                corev1.ResourceList
}

// newFleet makes n pods as the injector makes them, changed. Agents take starts from their image to their service, and drain for drains.
func newFleet(t *testing.T, n int, starts, drains time.Duration, change ...func(*corev1.Pod)) *fleet {
	t.Helper()
	w := newWorld(t)
	manifests, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "deploy/sidecar-upgrader.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.Kubectl(t, string(manifests), "apply", "-f", "-")
	f := &fleet{
		world: w, gate: newGate(t, w.Config), t: t, program: buildInjector(t), port: freeport.Get(t), starts: starts, drains: drains,
		namespace: w.namespace(t, "istio-injection=enabled", "understudy.mesh/upgrader=enabled"), pods: map[string]*fakePod{}, byIP: map[string]*fakePod{},
	}
	w.settings(t, fmt.Sprintf(`{"proxy": {"image": %q, "statusPort": %d}, "hotUpgrade": {"emptyImage": %q}}`, firstImage, f.port, idleImage))
	f.node()
	f.serveAgents()
	template := f.template()
	for _, c := range change {
		c(template)
	}
	f.create(template, n)
	f.runKubelets()
	return f
}

// node makes one whose kubelet can do whatever the injector makes use of.
func (f *fleet) node() {
	f.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}}
	made, err := f.client.CoreV1().Nodes().Create(f.t.Context(), node, metav1.CreateOptions{})
	if err == nil {
		made.Status.NodeInfo.KubeletVersion = "v1.37.0"
		_, err = f.client.CoreV1().Nodes().UpdateStatus(f.t.Context(), made, metav1.UpdateOptions{})
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// template is a pod of an application, injected.
func (f *fleet) template() *corev1.Pod {
	f.t.Helper()
	cmd := exec.Command(f.program, "inject", "-f", "-", "--kubeconfig", f.Kubeconfig)
	cmd.Stdin = strings.NewReader(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "` + f.namespace + `", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}`)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("%v: %v: %s", cmd, err, &stderr)
	}
	template := new(corev1.Pod)
	if err := json.Unmarshal(f.asJSON(out), template); err != nil {
		f.t.Fatal(err)
	}
	return template
}

// asJSON is YAML as the API server reads it.
func (f *fleet) asJSON(yaml []byte) []byte {
	f.t.Helper()
	return []byte(f.Kubectl(f.t, string(yaml), "create", "-f", "-", "--dry-run=client", "-o", "json"))
}

// create makes pods that are ready.
func (f *fleet) create(template *corev1.Pod, n int) {
	f.t.Helper()
	var group sync.WaitGroup
	const makers = 16
	for maker := range makers {
		for i := maker; i < n; i += makers {
			p := &fakePod{name: fmt.Sprintf("web-%05d", i), ip: fmt.Sprintf("127.1.%d.%d", i/250, i%250+1), template: template, slots: map[string]*fakeSlot{}}
			p.slots[contract.ProxyContainer] = &fakeSlot{image: firstImage, version: "1", role: "serving"}
			p.slots[contract.SecondContainer] = &fakeSlot{image: idleImage}
			f.pods[p.name], f.byIP[p.ip] = p, p
		}
		group.Go(func() {
			for i := maker; i < n; i += makers {
				pod := template.DeepCopy()
				pod.Name, pod.Namespace = fmt.Sprintf("web-%05d", i), f.namespace
				made, err := f.client.CoreV1().Pods(f.namespace).Create(f.t.Context(), pod, metav1.CreateOptions{})
				if err == nil {
					err = f.report(f.pods[pod.Name], made)
				}
				if err != nil {
					f.t.Errorf("make pod %s: %v", pod.Name, err)
					return
				}
			}
		})
	}
	group.Wait()
	if f.t.Failed() {
		f.t.FailNow()
	}
}

// serveAgents answers as the agent of the pod at whose address one asks.
func (f *fleet) serveAgents() {
	f.t.Helper()
	listener, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", f.port))
	if err != nil {
		f.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		f.mu.Lock()
		defer f.mu.Unlock()
		p := f.byIP[host]
		if p == nil {
			http.NotFound(out, r)
			return
		}
		status := contract.UpgradeStatus{HandoffDir: "/etc/asm/uds"}
		for _, s := range p.slots {
			if s.role != "" {
				status.Generations = append(status.Generations, contract.GenerationStatus{ID: s.version, Role: s.role, SidecarSetVersion: s.version})
			}
		}
		_ = json.NewEncoder(out).Encode(status)
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	f.t.Cleanup(server.Close)
}

// runKubelets does what is asked for of the pods, as their kubelets would.
func (f *fleet) runKubelets() {
	f.t.Helper()
	lists := cache.NewListWatchFromClient(f.client.CoreV1().RESTClient(), "pods", f.namespace, fields.Everything())
	var pods cache.Store
	take := func(object any) {
		if pod, ok := object.(*corev1.Pod); ok {
			f.sync(pods, pod)
		}
	}
	var controller cache.Controller
	pods, controller = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lists, ObjectType: &corev1.Pod{}, Handler: cache.ResourceEventHandlerFuncs{AddFunc: take, UpdateFunc: func(_, object any) { take(object) }},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { controller.RunWithContext(ctx) })
	f.t.Cleanup(func() { cancel(); watching.Wait() })
}

// containersOf are those of a pod that a kubelet reports.
func containersOf(pod *corev1.Pod) []corev1.Container {
	return slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
}

// sync begins what a pod asks for and does not have, unless its kubelet is at it.
func (f *fleet) sync(store cache.Store, pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pods[pod.Name]
	if p == nil || p.working || p.as(pod) {
		return
	}
	p.working = true
	image := f.takes(p, pod)
	wait := time.Duration(0)
	if image {
		wait = f.starts
	}
	time.AfterFunc(wait, func() {
		f.started(p)
		err := f.report(p, pod)
		f.mu.Lock()
		p.working = false
		f.mu.Unlock()
		if err != nil {
			f.t.Logf("kubelet of %s: %v", p.name, err)
		}
		if object, ok, _ := store.GetByKey(f.namespace + "/" + p.name); ok {
			f.sync(store, object.(*corev1.Pod))
		}
	})
}

// as reports whether a pod has what it asks for.
func (p *fakePod) as(pod *corev1.Pod) bool {
	for _, c := range containersOf(pod) {
		if s := p.slots[c.Name]; s != nil && (s.image != c.Image || !sameRequests(s.given, c.Resources.Requests)) {
			return false
		}
	}
	return true
}

func sameRequests(a, b corev1.ResourceList) bool {
	return a.Cpu().Cmp(*b.Cpu()) == 0 && a.Memory().Cmp(*b.Memory()) == 0
}

// takes takes what a pod asks for: requests, and images, of which it reports whether there is one. That ends what ran in the slot, so nothing may need it.
func (f *fleet) takes(p *fakePod, pod *corev1.Pod) (image bool) {
	for _, c := range containersOf(pod) {
		s := p.slots[c.Name]
		if s == nil {
			continue
		}
		s.given = c.Resources.Requests
		if s.image == c.Image {
			continue
		}
		image = true
		other := p.slots[contract.ProxyContainer]
		if other == s {
			other = p.slots[contract.SecondContainer]
		}
		if s.role == "draining" || s.role == "serving" && other.role != "standby" {
			f.t.Errorf("pod %s: %s gets %s while it is %s, and the other one %q; so far: %q", p.name, c.Name, c.Image, s.role, other.role, p.switches)
		}
		if c.Image != idleImage {
			f.flying++
			f.mostFlying = max(f.mostFlying, f.flying)
		}
		if s.role == "serving" {
			other.role = "serving" // it stood by
		}
		s.role, s.version, s.image = "", pod.Annotations[contract.VersionAnnotation+c.Name], c.Image
		p.switches = append(p.switches, c.Name+" "+c.Image)
	}
	return image
}

// started is that the slots of a pod run what they have got: a new proxy takes over.
func (f *fleet) started(p *fakePod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, s := range p.slots {
		image := name + " " + s.image
		switch last := len(p.switches) - 1; {
		case last < 0 || p.switches[last] != image:
			continue
		}
		p.switches[len(p.switches)-1] += "."
		s.restarts++
		s.broken = s.image == badImage
		if s.image == idleImage {
			continue
		}
		f.flying--
		if s.broken {
			p.unready++
			continue
		}
		for _, other := range p.slots {
			if other.role == "serving" {
				other.role = "draining"
				time.AfterFunc(f.drains, func() {
					f.mu.Lock()
					defer f.mu.Unlock()
					if other.role == "draining" {
						other.role = "standby"
					}
				})
			}
		}
		s.role = "serving"
	}
}

// report writes a pod's status.
func (f *fleet) report(p *fakePod, pod *corev1.Pod) error {
	f.mu.Lock()
	ready := corev1.ConditionTrue
	statuses := func(of []corev1.Container) (all []corev1.ContainerStatus) {
		for _, c := range of {
			running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
			status := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image, Ready: true, Started: new(true), State: running,
				Resources: &corev1.ResourceRequirements{Requests: c.Resources.Requests, Limits: c.Resources.Limits}}
			if s := p.slots[c.Name]; s != nil {
				if s.given == nil {
					s.given = c.Resources.Requests
				}
				status.Image, status.ImageID, status.RestartCount, status.Resources.Requests = s.image, s.image, s.restarts, s.given
				if s.broken {
					ready, status.Ready = corev1.ConditionFalse, false
					status.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off"}}
				}
			}
			all = append(all, status)
		}
		return all
	}
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.ip, PodIPs: []corev1.PodIP{{IP: p.ip}}, StartTime: new(metav1.Now())}
	status.InitContainerStatuses, status.ContainerStatuses = statuses(pod.Spec.InitContainers), statuses(pod.Spec.Containers)
	status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}, {Type: corev1.ContainersReady, Status: ready}}
	f.mu.Unlock()
	text, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = f.client.CoreV1().Pods(f.namespace).Patch(context.Background(), p.name, types.MergePatchType, text, metav1.PatchOptions{}, "status")
	return err
}

// ask asks for an image. spec are more fields of it, as JSON.
func (f *fleet) ask(image, spec string) {
	f.t.Helper()
	f.Kubectl(f.t, fmt.Sprintf(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarUpgrade", "metadata": {"name": "default", "namespace": %q},
		"spec": {"image": %q, "bake": "0s", "soak": "0s", "requestedAt": %q, "allowTags": true, %s}}`, f.namespace, image, time.Now().UTC().Format(time.RFC3339), spec), "apply", "-f", "-")
}

// status is what the engine has written.
func (f *fleet) status() (s struct {
	Phase, Image, Engine, Waiting, Finished string
	Pods                                    struct{ Total, Done, InFlight, Draining, Failed, Held int }
	Failed, Held                            []struct{ Pod, Reason string }
	Started                                 time.Time
}) {
	f.t.Helper()
	text := f.Kubectl(f.t, "", "get", "sidecarupgrade", "default", "-n", f.namespace, "-o", "jsonpath={.status}")
	if text != "" {
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			f.t.Fatalf("%v: %s", err, text)
		}
	}
	return s
}

// await waits until a request for an image has come to its end.
func (f *fleet) await(within time.Duration, image string) {
	f.t.Helper()
	lab.Eventually(f.t, within, "the upgrade to "+image+" ends", func() error {
		if s := f.status(); s.Image != image || s.Finished == "" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// mustRun demands that every pod came from one image to another by one switch each way, of one slot and then of the other, and that nobody was unready.
func (f *fleet) mustRun(image string) {
	f.t.Helper()
	if s := f.status(); s.Phase != "Done" || s.Pods.Done != len(f.pods) {
		f.t.Errorf("%+v", s)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods {
		want := []string{contract.SecondContainer + " " + image + ".", contract.ProxyContainer + " " + idleImage + "."}
		if !slices.Equal(p.switches, want) || p.unready > 0 {
			f.t.Errorf("pod %s: %q, %d times unready; want %q", p.name, p.switches, p.unready, want)
		}
	}
}

// engine is a process of the upgrader.
type engine struct {
	*exec.Cmd
	log string // a file
}

// start starts an upgrader, which lasts no longer than the test.
func (f *fleet) start() *engine {
	f.t.Helper()
	e := &engine{Cmd: exec.Command(f.program, "upgrader", "--kubeconfig", f.gate.kubeconfig)}
	log, err := os.CreateTemp(f.t.TempDir(), "upgrader")
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	e.log, e.Stdout, e.Stderr = log.Name(), log, log
	e.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if e.ProcessState == nil {
			_ = e.Process.Kill()
			_ = e.Wait()
		}
		if f.t.Failed() {
			text, _ := os.ReadFile(e.log)
			f.t.Logf("upgrader %d:\n%s", e.Process.Pid, text[max(0, len(text)-4000):])
		}
	})
	return e
}

// gate is the upgrader's way to the API server: all that it asks comes by.
type gate struct {
	kubeconfig string
	forward    http.Handler

	mu      sync.Mutex
	seconds map[int64]int  // requests by second
	kinds   map[string]int // and by what they are, with the status of the answer
	spoil   func(out http.ResponseWriter, r *http.Request, forward http.Handler)
}

// newGate makes one that spoils nothing.
func newGate(t *testing.T, config *rest.Config) *gate {
	t.Helper()
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{seconds: map[int64]int{}, kinds: map[string]int{}, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	g.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: transport, FlushInterval: -1,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: g.note,
	}
	server := httptest.NewServer(g)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q}}], "users": [{"name": "u", "user": {}}]}`, server.URL)
	if err := os.WriteFile(g.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gate) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.seconds[time.Now().Unix()]++
	spoil := g.spoil
	g.mu.Unlock()
	if spoil != nil {
		spoil(out, r, g.forward)
		return
	}
	g.forward.ServeHTTP(out, r)
}

// note counts an answer by its request: the method, the kind of object with its subresource, and the status.
func (g *gate) note(r *http.Response) error {
	kind := r.Request.URL.Path
	if _, of, ok := strings.Cut(kind, "/namespaces/"); ok {
		parts := append(strings.Split(of, "/"), "", "", "")
		kind = strings.TrimSuffix(parts[1]+"/"+parts[3], "/")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kinds[fmt.Sprintf("%s %s %d", r.Request.Method, kind, r.StatusCode)]++
	return nil
}

// spoils has every request judged from now on.
func (g *gate) spoils(spoil func(out http.ResponseWriter, r *http.Request, forward http.Handler)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spoil = spoil
}

// count is how many requests there were, and how many in the second of most.
func (g *gate) count() (all, most int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.seconds {
		all, most = all+n, max(most, n)
	}
	return all, most
}
