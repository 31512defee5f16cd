// Package webhook tests the injector's webhook against a real API server: what the API server asks about, what it trusts, what
// becomes of both when something is lost. No node and no pod is needed for that, only the programs of a cluster.
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/cluster/apiserver"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// own is the injector's namespace.
const own = "understudy-system"

// limit is how long the API server and the injector may take to go by a change on a machine that does something else besides.
const limit = time.Minute

// world is an API server with the injector's manifests in it.
type world struct {
	*apiserver.Server
	client     kubernetes.Interface
	dynamic    dynamic.Interface
	kubeconfig string // the injector's, with the rights of its manifests
}

// answer is what the API server made of a pod that it was asked to create, dry.
type answer struct {
	pod      *corev1.Pod
	injected bool
	warnings []string
}

// warnings give each request the warnings of its answer. A request has a list for them in its context, under this key.
type warnings struct{}

func (warnings) HandleWarningHeaderWithContext(ctx context.Context, _ int, _, text string) {
	if list, ok := ctx.Value(warnings{}).(*[]string); ok {
		*list = append(*list, text)
	}
}

// programs is the cluster's directory, which has etcd, kube-apiserver and kubectl.
var programs = os.Getenv("UNDERSTUDY_CLUSTER")

// long is that the tests run as well that take longer than a commit may.
var long = flag.Bool("long", false, "run the long forms as well")

func TestMain(m *testing.M) {
	flag.Parse()
	if programs == "" {
		fmt.Println("no cluster, no tests of it: make test-cluster")
		return
	}
	os.Exit(m.Run())
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Server: apiserver.Start(t, programs, t.TempDir())}
	config := rest.CopyConfig(w.Config)
	config.WarningHandlerWithContext, config.QPS, config.Burst = warnings{}, -1, 0
	var err error
	if w.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if w.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	manifests, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "deploy/sidecar-injector.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// The kind has to be there before its first object.
	lab.Eventually(t, limit, "the manifests are applied", func() error {
		_, err := w.TryKubectl(string(manifests), "apply", "-f", "-")
		return err
	})
	w.kubeconfig = w.AccountKubeconfig(t, own, "sidecar-injector")
	for _, namespace := range []string{"kube-system", "kube-public", "kube-node-lease", own} {
		w.account(t, namespace)
	}
	return w
}

// account makes what a namespace's pods run as, which otherwise a controller makes.
func (w *world) account(t *testing.T, namespace string) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	lab.Eventually(t, limit, "namespace "+namespace+" has an account", func() error { // the API server makes the system's namespaces in its own time
		_, err := w.client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{})
		return err
	})
}

// namespace makes one with labels, "key=value" each.
func (w *world) namespace(t *testing.T, labels ...string) string {
	t.Helper()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns-" + rand.String(6), Labels: map[string]string{}}}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		n.Labels[key] = value
	}
	w.named(t, n)
	return n.Name
}

// named makes a namespace.
func (w *world) named(t *testing.T, n *corev1.Namespace) {
	t.Helper()
	if _, err := w.client.CoreV1().Namespaces().Create(t.Context(), n, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.account(t, n.Name)
}

// pod is a small one, changed, that no namespace's PodSecurity refuses.
func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "app-"}, Spec: corev1.PodSpec{
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{Name: "app", Image: "app", SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}}},
	}}
	for _, c := range change {
		c(p)
	}
	return p
}

func label(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { metav1.SetMetaDataLabel(&p.ObjectMeta, key, value) }
}

func annotation(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { metav1.SetMetaDataAnnotation(&p.ObjectMeta, key, value) }
}

// create makes a pod, dry, and reports whether it was injected.
func (w *world) create(namespace string, p *corev1.Pod) (injected bool, err error) {
	made, err := w.try(namespace, p)
	return made.injected, err
}

// try makes a pod, dry, and returns all that the API server says of it. It tries again where the API server has waited in vain for an
// answer: the machine may stand still for longer than that.
func (w *world) try(namespace string, p *corev1.Pod) (answer, error) {
	for began := time.Now(); ; {
		a, err := w.once(namespace, p)
		if !unanswered(err) || time.Since(began) > limit {
			return a, err
		}
	}
}

// unanswered reports whether a pod was refused because the API server has waited in vain.
func unanswered(err error) bool {
	return err != nil && strings.Contains(err.Error(), "failed calling webhook") && strings.Contains(err.Error(), context.DeadlineExceeded.Error())
}

// once is try at the first try.
func (w *world) once(namespace string, p *corev1.Pod) (answer, error) {
	var a answer
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), warnings{}, &a.warnings), limit)
	defer cancel()
	var err error
	if a.pod, err = w.client.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		return a, err
	}
	a.injected = a.container(contract.ProxyContainer) != nil
	return a, nil
}

// container is one of the pod's, whichever list it is in; nil if there is none.
func (a answer) container(name string) *corev1.Container {
	all := slices.Concat(a.pod.Spec.InitContainers, a.pod.Spec.Containers)
	i := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// injector is one replica.
type injector struct {
	process *exec.Cmd
	log     string // a file
	status  string
	address string
}

// buildInjector compiles the injector.
func buildInjector(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sidecar-injector")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "vtprotobuf,grpcnotrace", "-o", file, "./cmd/sidecar-injector")
	cmd.Dir = lab.RepoRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return file
}

// start starts a replica at a port, and returns when it is ready.
func (w *world) start(t *testing.T, program string, port uint16, arguments ...string) *injector {
	t.Helper()
	i := &injector{log: filepath.Join(t.TempDir(), "log"), address: fmt.Sprintf("127.0.0.1:%d", port), status: fmt.Sprintf("http://127.0.0.1:%d", freeport.Get(t))}
	i.process = exec.Command(program, append([]string{"serve", "--kubeconfig", w.kubeconfig, "--address", i.address, "--status-address", strings.TrimPrefix(i.status, "http://")}, arguments...)...)
	log, err := os.Create(i.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	i.process.Stderr = log
	i.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := i.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		i.stop(syscall.SIGKILL)
		if t.Failed() {
			text, _ := os.ReadFile(i.log)
			t.Logf("injector %s:\n%s", i.address, text)
		}
	})
	i.awaitReady(t)
	return i
}

func (i *injector) awaitReady(t *testing.T) {
	t.Helper()
	lab.Eventually(t, limit, "the injector is ready", func() error { return i.look("/readyz") })
}

func (i *injector) look(path string) error {
	_, err := i.get(path)
	return err
}

func (i *injector) get(path string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(i.status + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var body bytes.Buffer
	_, _ = body.ReadFrom(response.Body)
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", path, response.Status, body.String())
	}
	return body.String(), nil
}

// stop ends it, if it runs, and returns how it ended.
func (i *injector) stop(signal syscall.Signal) error {
	if i.process.ProcessState != nil {
		return nil
	}
	_ = i.process.Process.Signal(signal)
	return i.process.Wait()
}

// settings makes the mesh's SidecarProfile, of a spec as JSON.
func (w *world) settings(t *testing.T, spec string) {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(spec), &fields); err != nil {
		t.Fatal(err)
	}
	w.Kubectl(t, fmt.Sprintf(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default", "namespace": %q}, "spec": %s}`, own, spec), "replace", "-f", "-")
}
