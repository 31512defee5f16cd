package pods

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// captureMode is README's pod, captured in one of the ways of docs/capture.md.
type captureMode struct {
	name    string
	patches []string
	native  bool
	// seesClients is that the application sees its clients' addresses, and not Envoy's.
	seesClients bool
	// status is what the kernel says of the agent.
	status map[string]string
}

const noCapability = "0000000000000000"

// captureModes are all of them; privileged is the securityContext that two of them need.
func captureModes(privileged string) []captureMode {
	const init = "spec: {initContainers: [{name: istio-init, args: [istio-iptables, -p, '15001', -z, '15006', %s, -i, '*', -x, '', -b, '*', -d, '15090,15021,15020']}]}"
	ordinary := map[string]string{"Uid": "1337", "CapEff": noCapability, "CapBnd": noCapability, "NoNewPrivs": "1", "Seccomp": "0"}
	root := map[string]string{"Uid": "0", "Gid": "1337", "CapEff": "0000000000001000", "NoNewPrivs": "1"} // NET_ADMIN
	return []captureMode{
		{name: "redirect", status: ordinary},
		{
			name: "tproxy", seesClients: true, status: root,
			patches: []string{
				fmt.Sprintf(init, "-u, '1337', -m, TPROXY"),
				"spec: {containers: [{name: istio-proxy, env: [{name: ISTIO_META_INTERCEPTION_MODE, value: TPROXY}], " + privileged + "}]}",
			},
		},
		{
			name: "mark", status: root,
			patches: []string{
				fmt.Sprintf(init, "--proxy-mark, '0x5357', -u, none, -g, none, -m, REDIRECT"),
				"spec: {containers: [{name: istio-proxy, env: [{name: PROXY_MARK, value: '0x5357'}], " + privileged + "}]}",
			},
		},
		{name: "native", native: true, status: ordinary},
		{
			name: "seccomp", status: map[string]string{"Uid": "1337", "CapEff": noCapability, "Seccomp": "2"},
			patches: []string{"spec: {securityContext: {seccompProfile: {type: RuntimeDefault}}}"},
		},
	}
}

// TestCapture has a pod for each way of capture, and asks each from another pod and as its application: no request fails,
// all go through Envoy, and the application sees the client that the documentation promises.
func TestCapture(t *testing.T) {
	ns := shared.Namespace(t, "capture")
	// The remedy that the documentation gives, to the letter.
	text, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "docs", "capture.md"))
	if err != nil {
		t.Fatal(err)
	}
	privileged := regexp.MustCompile("(?m)^`(securityContext: \\{.*\\})`$").FindSubmatch(text)
	if privileged == nil {
		t.Fatal("docs/capture.md has no securityContext for TPROXY and the mark")
	}
	modes := captureModes(string(privileged[1]))
	manifests, names := []string{mesh, client}, []string{"pod/client"}
	for _, mode := range modes {
		pod := firstPod(t, ns, mode.name, append(mode.patches, serves)...)
		if mode.native {
			pod = nativeSidecar(t, pod)
		}
		manifests, names = append(manifests, pod), append(names, "pod/"+mode.name)
	}
	ns.Apply(t, join(manifests...))
	ns.Wait(t, podLimit, "condition=Ready", names...)
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) { checkCapture(t, ns, mode) })
	}
}

func checkCapture(t *testing.T, ns *cluster.Namespace, mode captureMode) {
	t.Helper()
	pod := ns.Pod(t, mode.name)
	if first := ns.Exec(t, mode.name, app, "cat", "/tmp/first"); first != "server=world\n" {
		t.Errorf("the application's first act, a request, got %q", first)
	}
	has := kernelStatus(ns.Exec(t, mode.name, proxy, "sh", "-c", "while read -r line; do echo \"$line\"; done </proc/1/status"))
	for key, want := range mode.status {
		if has[key] != want {
			t.Errorf("the agent has %s %q, want %q", key, has[key], want)
		}
	}
	seen := "127.0.0.6"
	if mode.seesClients {
		seen = ns.Pod(t, "client").IP
	}
	before := forwarded(t, ns, mode.name)
	inbound := ns.Load(t, fromClient,
		load.Flow{Kind: load.HTTP1New, Target: "http://" + pod.IP + ":8080" + load.ClientPath, Want: "client=" + seen + "\n", Rate: 50},
		load.Flow{Kind: load.TCPStream, Target: pod.IP + ":9000", Rate: 50, Life: load.Duration(100 * time.Millisecond)})
	out := ns.Load(t, cluster.FromPod(mode.name, app), outbound()...)
	awaitRequests(t, inbound, enough)
	awaitRequests(t, out, enough)
	mustServe(t, "inbound", inbound)
	mustServe(t, "outbound", out)
	after := forwarded(t, ns, mode.name)
	for _, name := range []string{"InboundPassthroughCluster", "outbound|80||shop.world.test", "PassthroughCluster"} {
		if n := after[name] - before[name]; n < enough {
			t.Errorf("Envoy passed %d requests on to %s, of %d and more", n, name, enough)
		}
	}
	mustStay(t, pod, ns.Pod(t, mode.name))
}

// kernelStatus reads a /proc/PID/status, of lists the first value.
func kernelStatus(text string) map[string]string {
	status := make(map[string]string)
	for line := range strings.Lines(text) {
		if key, value, _ := strings.Cut(line, ":"); value != "" {
			status[key], _, _ = strings.Cut(strings.TrimSpace(value), "\t")
		}
	}
	return status
}

// forwarded is how many requests the Envoy of a pod has passed on, by cluster; a TCP connection counts as one.
func forwarded(t *testing.T, ns *cluster.Namespace, pod string) map[string]int {
	t.Helper()
	requests := make(map[string]int)
	// outbound|80||shop.world.test::10.77.0.80:80::rq_total::4
	line := regexp.MustCompile(`(?m)^(.+?)::.*::rq_total::(\d+)$`)
	for _, match := range line.FindAllStringSubmatch(ns.Exec(t, pod, proxy, "pilot-agent", "request", "GET", "clusters"), -1) {
		n, err := strconv.Atoi(match[2])
		if err != nil {
			t.Fatalf("read Envoy's clusters: %v", err)
		}
		requests[match[1]] += n
	}
	return requests
}

// TestDoctorCapture asks README's pod by the commands of docs/capture.md, to the letter, on a terminal as a user has it.
func TestDoctorCapture(t *testing.T) {
	ns := shared.Namespace(t, "doctor")
	ns.Apply(t, join(mesh, firstPod(t, ns, app)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	blocks := blocksOf(t, "docs/capture.md", "Why is my traffic (not) captured", "sh")
	commands := strings.Split(strings.TrimSpace(blocks[len(blocks)-1]), "\n")
	if len(commands) != 2 || !strings.HasPrefix(commands[1], "kubectl debug -it "+app+" ") {
		t.Fatalf("docs/capture.md has other commands than the test knows: %q", commands)
	}
	argv, environ, err := shared.KubectlArguments("--namespace", ns.Name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "session.sh"), "set -eu\nkubectl() { "+strings.Join(argv, " ")+" \"$@\"; }\n"+strings.Join(commands, "\n"))
	// script is a terminal.
	session := exec.CommandContext(t.Context(), "script", "--quiet", "--return", "--command", "bash session.sh", os.DevNull)
	session.Dir, session.Env = dir, environ
	out, err := session.CombinedOutput()
	t.Logf("%s\n%s", strings.Join(commands, "\n"), out)
	if err != nil {
		t.Errorf("the commands: %v", err)
	}
	var doctor string
	lab.Eventually(t, podLimit, "doctor capture has ended well", func() error { // the kubelet reports it a moment later
		for name, c := range ns.Pod(t, app).Containers {
			if !strings.HasPrefix(name, "debugger-") {
				continue
			}
			if c.State.String() != "Completed (exit 0)" {
				return fmt.Errorf("it is %v", c.State)
			}
			doctor = name
			return nil
		}
		return errors.New("the pod has no such container")
	})
	// Not on the terminal: kubectl may attach after the first lines.
	said := ns.Logs(t, app, doctor)
	for _, want := range []string{
		"outbound (IPv4): TCP to every destination -> Envoy, port 15001",
		"inbound: TCP to every port but 15090, 15021, 15020 -> Envoy, port 15006, by REDIRECT",
		"-> the agent, port 15053",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("doctor capture does not say %q, but:\n%s", want, said)
		}
	}
}
