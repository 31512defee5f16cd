// Package apiserver owns an API server with its etcd and no node: for tests of what the API server itself does (admission,
// conditions in CEL, server-side apply), which need no pod that runs. It is the program of the cluster, on ports of its own. Controllers are
// missing as well, so a namespace has no service account but those that a test makes.
package apiserver

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"understudy.mesh/tests/cluster/internal/pki"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// startLimit is how long etcd and the API server may take together, on a machine that does something else besides.
const startLimit = 3 * time.Minute

// Server is one that runs.
type Server struct {
	// Config is the administrator's way to it.
	Config *rest.Config
	// Kubeconfig is a file with the same.
	Kubeconfig string

	programs string
	dir      string
	etcd     string
	ports    [2]int
	process  *exec.Cmd
}

// Start starts one with the programs of a cluster's directory (UNDERSTUDY_CLUSTER), until the test ends.
func Start(t testing.TB, cluster, dir string) *Server {
	t.Helper()
	s := &Server{programs: filepath.Join(cluster, "node", "bin"), dir: dir}
	s.ports = [2]int{int(freeport.Get(t)), int(freeport.Get(t))}
	address := "https://127.0.0.1:" + strconv.Itoa(s.ports[0])
	err := pki.Write(dir, pki.Config{Server: address, Names: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Node: "none", World: []string{"none"}})
	if err != nil {
		t.Fatalf("%v", err)
	}
	s.Kubeconfig = filepath.Join(dir, "admin.kubeconfig")
	if s.Config, err = clientcmd.BuildConfigFromFlags("", s.Kubeconfig); err != nil {
		t.Fatalf("%v", err)
	}
	s.etcd = "http://127.0.0.1:" + strconv.Itoa(s.ports[1])
	peer := "http://127.0.0.1:" + strconv.Itoa(int(freeport.Get(t)))
	etcd := s.run(t, "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", s.etcd, "--advertise-client-urls", s.etcd, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default="+peer)
	t.Cleanup(func() { end(etcd, syscall.SIGKILL) })
	s.Up(t)
	t.Cleanup(s.Down)
	return s
}

// Up starts the API server, on what etcd has.
func (s *Server) Up(t testing.TB) {
	t.Helper()
	key := func(name string) string { return filepath.Join(s.dir, name) }
	s.process = s.run(t, "kube-apiserver", "--etcd-servers="+s.etcd, "--bind-address=127.0.0.1", "--secure-port="+strconv.Itoa(s.ports[0]),
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/24",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+key("sa.pub"), "--service-account-signing-key-file="+key("sa.key"),
		"--client-ca-file="+key("ca.crt"), "--tls-cert-file="+key("apiserver.crt"), "--tls-private-key-file="+key("apiserver.key"),
		"--authorization-mode=RBAC")
	client, err := kubernetes.NewForConfig(s.Config)
	if err != nil {
		t.Fatalf("%v", err)
	}
	lab.Eventually(t, startLimit, "the API server is ready", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return err
		}
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		return err
	})
}

// Down ends the API server at once.
func (s *Server) Down() {
	end(s.process, syscall.SIGKILL)
}

// Kubectl runs kubectl as the administrator and returns what it said. It must succeed.
func (s *Server) Kubectl(t testing.TB, stdin string, arguments ...string) string {
	t.Helper()
	out, err := s.TryKubectl(stdin, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryKubectl is Kubectl for what may fail.
func (s *Server) TryKubectl(stdin string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.programs, "kubectl"), append([]string{"--kubeconfig", s.Kubeconfig}, arguments...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, out)
	}
	return string(out), nil
}

// AccountKubeconfig writes a kubeconfig by which one is a service account, with no more rights than that has.
func (s *Server) AccountKubeconfig(t testing.TB, namespace, account string) string {
	t.Helper()
	token := strings.TrimSpace(s.Kubectl(t, "", "create", "token", account, "-n", namespace, "--duration", "10h"))
	file := filepath.Join(s.dir, account+".kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority": %q}}], "users": [{"name": "u", "user": {"token": %q}}]}`,
		s.Config.Host, filepath.Join(s.dir, "ca.crt"), token)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	return file
}

// run starts a program, whose log is a file beside the keys.
func (s *Server) run(t testing.TB, name string, arguments ...string) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.programs, name), arguments...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	return cmd
}

// end ends a process that may have ended already, and takes its status.
func end(cmd *exec.Cmd, signal syscall.Signal) {
	_ = cmd.Process.Signal(signal)
	_ = cmd.Wait()
}
