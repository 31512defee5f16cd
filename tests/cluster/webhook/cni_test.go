package webhook

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/cluster/internal/build"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// cniPlugin is Istio's, built from its release or found among the programs of the cluster.
func cniPlugin(t *testing.T) string {
	t.Helper()
	cache := cmp.Or(os.Getenv("UNDERSTUDY_PROGRAMS"), filepath.Join(programs, "cache"))
	builder := build.Builder{Root: lab.RepoRoot(t), Cache: cache, Say: func(what string) { t.Log(what) }}
	project := build.IstioCNI()
	dir, err := builder.Build(t.Context(), project)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, project.Binaries[0])
}

// plug runs the plugin as a container runtime does that makes a pod, whose network it is to change.
func (w *world) plug(t *testing.T, plugin string, l *lab.Lab, namespace, name string) {
	t.Helper()
	dir := t.TempDir()
	kubeconfig, err := os.ReadFile(w.Kubeconfig)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "istio-cni-kubeconfig"), kubeconfig, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, plugin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=ADD", "CNI_CONTAINERID=sandbox", "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(plugin),
		"CNI_NETNS=" + l.Pod.Path(), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name}
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "node", "type": "istio-cni", "cni_agent_run_dir": %q, "exclude_namespaces": ["kube-system"],
"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "%s/24", "interface": 0}]}}`, dir, lab.PodIP))
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), lab.PodIP) {
		t.Fatalf("istio-cni: %v: %s\n%s", err, out, &log)
	}
}

// names starts a server at each address, which says a name and hangs up.
func names(t *testing.T, n *lab.Namespace, of map[string]string) {
	t.Helper()
	for address, name := range of {
		l := n.Listen(t, address)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, name)
				_ = c.Close()
			}
		}()
	}
}

// lands says whose server a connection reaches.
func lands(t *testing.T, n *lab.Namespace, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	name, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(name)
}

// TestWebhookIstioCNI gives pods as they are injected to Istio's own plugin, which makes of their annotations the rules that istio-init would
// make of its arguments, but for DNS, of which it takes the queries to all servers: istio-validation is content, and connections land where
// they should.
func TestWebhookIstioCNI(t *testing.T) {
	w := newWorld(t)
	port := freeport.Get(t)
	w.start(t, buildInjector(t), port, "--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port), "--linger", "0s")
	w.configuration(t, 4)
	plugin := cniPlugin(t)
	const outbound, inbound, free, kept = lab.OutIP + ":8080", lab.PodIP + ":8080", lab.OutIP + ":7011", lab.PodIP + ":7013"
	// What istio-cni leaves out unless it is told otherwise.
	const status, outbound6, inbound6 = lab.OutIP + ":15020", "[" + lab.OutIPv6 + "]:8080", "[" + lab.PodIPv6 + "]:8080"
	all := map[string]string{outbound: "15001", inbound: "15006", free: "15001", kept: "15006", status: "15001", outbound6: "15001", inbound6: "15006"}
	nothing := map[string]string{outbound: "outside", inbound: "app", free: "outside", kept: "app", status: "outside", outbound6: "outside", inbound6: "app"}
	const ports = `"capture": {"excludeOutboundPorts": [7011], "excludeInboundPorts": [7013]}`
	some := map[string]string{outbound: "15001", inbound: "15006", free: "outside", kept: "app", status: "15001", outbound6: "15001", inbound6: "15006"}
	for _, tt := range []struct {
		name, profile string
		change        func(*corev1.Pod)
		lands         map[string]string
	}{
		{"classic", `{"init": {"cni": true}}`, nil, all},
		{"native", `{"init": {"cni": true}, "proxy": {"native": "Always"}}`, nil, all},
		{"two slots", `{"init": {"cni": true}, "hotUpgrade": {"emptyImage": "empty:v1", "standbyRequests": "Same"}}`, nil, all},
		{"DNS", `{"init": {"cni": true}, "dns": {"capture": true}}`, nil, all},
		{"ports that are left out", `{"init": {"cni": true}, ` + ports + `}`, nil, some},
		{"by annotation", `{"init": {"cni": true}}`, func(p *corev1.Pod) {
			annotation("traffic.sidecar.istio.io/excludeOutboundPorts", "7011")(p)
			annotation("traffic.sidecar.istio.io/excludeInboundPorts", "7013")(p)
		}, some},
		{"no capture", `{"init": {"cni": true}, "capture": {"mode": "NONE"}}`, nil, nothing},
		{"with istio-init", `{}`, nil, nothing},
		{"not injected", `{"init": {"cni": true}}`, label("sidecar.istio.io/inject", "false"), nothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace := w.namespace(t, "istio-injection=enabled")
			w.profile(t, namespace, tt.profile)
			changes := []func(*corev1.Pod){}
			if tt.change != nil {
				changes = append(changes, tt.change)
			}
			var made *corev1.Pod
			lab.Eventually(t, limit, "the pod is created", func() (err error) {
				made, err = w.client.CoreV1().Pods(namespace).Create(t.Context(), pod(changes...), metav1.CreateOptions{})
				return err
			})
			w.captured(t, plugin, made, tt.lands)
		})
	}
}

// captured gives one pod to the plugin and looks where connections land.
func (w *world) captured(t *testing.T, plugin string, made *corev1.Pod, want map[string]string) {
	t.Helper()
	l := lab.New(t)
	w.plug(t, plugin, l, made.Namespace, made.Name)
	a := answer{pod: made}
	if validation := a.container("istio-validation"); validation != nil {
		env := []string{}
		for _, e := range validation.Env {
			env = append(env, e.Name+"="+e.Value)
		}
		c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true})
		// As on a node: the time that it has is not what is tested.
		args := append(slices.Clone(validation.Args), "--probe-timeout", "20s")
		got := c.Run(t, lab.As{UID: int(*validation.SecurityContext.RunAsUser), Env: env}, append([]string{lab.AgentPath}, args...)...)
		if got.Code != 0 {
			t.Errorf("istio-validation: %v\n%s", got, l.Pod.Run(t, "iptables-save"))
		}
		args = slices.DeleteFunc(slices.Clone(validation.Args), func(a string) bool { return a == "--run-validation" || a == "--skip-rule-apply" })
		got = c.Run(t, lab.InitUser(env...), append(append([]string{lab.AgentPath}, args...), "--verify")...)
		dns := slices.Contains(env, "ISTIO_META_DNS_CAPTURE=true")
		if rules := l.Pod.Run(t, "iptables-save"); got.Code != 0 && !dns || dns != strings.Contains(rules, "--to-ports 15053") {
			t.Errorf("other rules than istio-init would make: %v\n%s", got, rules)
		}
	}
	any := func(port int) string { return net.JoinHostPort("::", strconv.Itoa(port)) }
	names(t, l.Out, map[string]string{any(8080): "outside", any(7011): "outside", any(contract.StatusPort): "outside"})
	names(t, l.Pod, map[string]string{any(8080): "app", any(7013): "app", any(contract.OutboundPort): "15001", any(contract.InboundPort): "15006"})
	for address, name := range want {
		from := l.Pod
		if strings.HasPrefix(address, lab.PodIP) || strings.HasPrefix(address, "["+lab.PodIPv6) {
			from = l.Out
		}
		if got := lands(t, from, address); got != name {
			t.Errorf("%s lands at %q, want %q\n%s", address, got, name, l.Pod.Run(t, "iptables-save"))
		}
	}
}
