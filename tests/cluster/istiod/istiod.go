// Package istiod owns a real istiod beside the pod of a lab: a process that has its configuration in files and serves proxies over
// TLS by an authority of its own. It is killed and started again as a test wants. Kubernetes is not needed, but for an API server
// that has nothing, for which there is a stand-in.
package istiod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"understudy.mesh/tests/cluster/standin"
	"understudy.mesh/tests/lab"
)

const (
	// Address is where istiod serves proxies; its certificate is for Host.
	Address = lab.OutIP + ":15012"
	Host    = "istiod.istio-system.svc"

	// APIAddress is where what stands in for the API server listens, without TLS; InjectAddress is where istiod injects, with TLS.
	APIAddress    = "127.0.0.1:6443"
	InjectAddress = "127.0.0.1:15017"

	namespace  = "istio-system"
	statusAddr = "127.0.0.1:18080"
	// startLimit is how long a start may take, with ten thousand hosts on a busy machine.
	startLimit = 30 * time.Second
)

// meshConfig is what a stock Envoy needs besides the switches of the process: no telemetry, whose filter only Istio's own has.
const meshConfig = "defaultProviders: {}\nenablePrometheusMerge: false\n"

// Istiod is one istiod. It is made by New.
type Istiod struct {
	t   lab.T
	lab *lab.Lab
	// API is what stands in for the API server. What is put there before Start is in its lists.
	API *standin.API
	dir string // what it reads and writes

	binary string
	cmd    *exec.Cmd // nil: it is away
	ended  chan struct{}
	lives  int
}

// New makes an istiod of a program; it does not run yet. Until t ends it may be started and killed.
func New(t lab.T, l *lab.Lab, binary string) *Istiod {
	t.Helper()
	i := &Istiod{t: t, lab: l, binary: binary, dir: filepath.Join(l.Dir, "istiod"), API: standin.New()}
	for path, text := range map[string]string{
		"mesh.yaml":  meshConfig,
		"kubeconfig": "clusters: [{name: c, cluster: {server: 'http://" + APIAddress + "'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n",
	} {
		i.must(os.MkdirAll(i.config(), 0o755))
		i.must(os.WriteFile(filepath.Join(i.dir, path), []byte(text), 0o644))
	}
	server := &http.Server{Handler: i.API}
	listener := l.Out.Listen(t, APIAddress)
	go func() { _ = server.Serve(listener) }() // it ends with Close
	t.Cleanup(func() { i.Kill(); _ = server.Close() })
	return i
}

func (i *Istiod) must(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatalf("istiod: %v", err)
	}
}

func (i *Istiod) config() string { return filepath.Join(i.dir, "config") }

// Write puts a file into its configuration; an empty text takes the file out.
func (i *Istiod) Write(name, text string) {
	i.t.Helper()
	path := filepath.Join(i.config(), name+".yaml")
	if text == "" {
		i.must(os.Remove(path))
		return
	}
	temporary := filepath.Join(i.dir, name)
	i.must(os.WriteFile(temporary, []byte(text), 0o644))
	i.must(os.Rename(temporary, path))
}

// Inject has it inject pods, at [InjectAddress], as its own chart has it by default; it is called before Start.
func (i *Istiod) Inject(p Programs) {
	i.t.Helper()
	manifests, err := exec.Command(p.Istioctl, "manifest", "generate", "--manifests", p.charts).Output()
	i.must(err)
	for text := range bytes.SplitSeq(manifests, []byte("\n---\n")) {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
		}
		i.must(yaml.Unmarshal(text, &object))
		if object.Kind != "ConfigMap" || object.Metadata.Name != "istio-sidecar-injector" {
			continue
		}
		for _, key := range []string{"config", "values"} {
			i.must(os.WriteFile(filepath.Join(i.dirOf("var/lib/istio/inject"), key), []byte(object.Data[key]), 0o644))
		}
		return
	}
	i.t.Fatalf("istiod: its chart has no ConfigMap istio-sidecar-injector")
}

// Start runs it, and returns once it is ready.
func (i *Istiod) Start() {
	i.t.Helper()
	i.Launch()
	lab.Eventually(i.t, startLimit, "istiod is ready", func() error {
		select {
		case <-i.ended:
			i.t.Fatalf("istiod ended at its start: %s", i.tail())
		default:
		}
		status, body, err := i.lab.Out.Get("http://" + statusAddr + "/ready")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
}

// Launch is Start without waiting.
func (i *Istiod) Launch() {
	i.t.Helper()
	i.lives++
	log, err := os.Create(i.log())
	i.must(err)
	defer log.Close()
	// The switches are of extensions that only Istio's own Envoy has. WatchListClient is a way to list that the stand-in does not go.
	cmd := i.lab.Out.Command(context.Background(), "env", "-C", i.dir, "-i", "PATH="+os.Getenv("PATH"),
		"POD_NAME=istiod-0", "POD_NAMESPACE="+namespace, "CLUSTER_ID=Kubernetes", "REVISION=default", "PILOT_CERT_PROVIDER=istiod",
		"PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false", "PILOT_ENABLE_IP_AUTOALLOCATE=false", "KUBE_FEATURE_WatchListClient=false",
		i.binary, "discovery", "--kubeconfig", "kubeconfig", "--configDir", "config", "--meshConfig", "mesh.yaml", "--httpAddr", statusAddr,
		"--secureGRPCAddr", Address, "--grpcAddr", "", "--monitoringAddr", "127.0.0.1:15014", "--httpsAddr", InjectAddress, "--ctrlz_port", "0")
	cmd.Stdout, cmd.Stderr = log, log
	i.must(cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	i.cmd, i.ended = cmd, ended
}

// PID is that of its process; it runs.
func (i *Istiod) PID() int { return i.cmd.Process.Pid }

// Kill ends it at once, if it runs.
func (i *Istiod) Kill() {
	if i.cmd == nil {
		return
	}
	_ = i.cmd.Process.Kill()
	<-i.ended
	i.cmd = nil
	if i.t.Failed() {
		i.t.Logf("log of istiod's life %d:\n%s", i.lives, i.tail())
	}
}

func (i *Istiod) log() string { return filepath.Join(i.dir, fmt.Sprintf("log-%d", i.lives)) }

func (i *Istiod) tail() string {
	text, _ := os.ReadFile(i.log())
	return string(text[max(0, len(text)-4000):])
}

// Root is the certificate of its authority, in PEM, once it has started.
func (i *Istiod) Root() []byte {
	i.t.Helper()
	var secret struct{ Data map[string][]byte }
	err := json.Unmarshal(i.API.Object("/api/v1/namespaces/"+namespace+"/secrets/istio-ca-secret"), &secret)
	root := secret.Data["ca-cert.pem"]
	if err != nil || len(root) == 0 {
		i.t.Fatalf("istiod: %v", errors.New("it has not written its authority's certificate"))
	}
	return root
}

// Connected is how many proxies have a stream to it.
func (i *Istiod) Connected() (n int, err error) {
	status, body, err := i.lab.Out.Get("http://" + statusAddr + "/debug/syncz")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	if err != nil {
		return 0, err
	}
	var proxies []any
	err = json.NewDecoder(strings.NewReader(body)).Decode(&proxies)
	return len(proxies), err
}

// Metric is one of its own metrics, by name and labels as they are written; 0 if there is none.
func (i *Istiod) Metric(name string) (value float64, err error) {
	status, body, err := i.lab.Out.Get("http://127.0.0.1:15014/metrics")
	if err != nil || status != http.StatusOK {
		return 0, errors.Join(err, fmt.Errorf("status %d", status))
	}
	for line := range strings.Lines(body) {
		if text, is := strings.CutPrefix(line, name+" "); is {
			_, err = fmt.Sscan(text, &value)
			return value, err
		}
	}
	return 0, nil
}
